#include <ATen/WrapDimUtils.h>
#include <ATen/ops/zeros_like.h>

#include "ops/op.h"
#include "ops/reduction.h"

namespace minidl {
namespace {

// ---- softmax, log_softmax -------------------------------------------------------------------------------------

ClassShape class_shape(const Tensor& x, int64_t dim) {
  if (x.dim() == 0) return {1, 1, 1};
  ClassShape s{1, x.size(dim), 1};
  for (int64_t d = 0; d < dim; ++d) s.outer *= x.size(d);
  for (int64_t d = dim + 1; d < x.dim(); ++d) s.inner *= x.size(d);
  return s;
}

Tensor softmax(const Tensor& x_, int64_t dim_, bool log) {
  check_dtype("softmax", x_);
  const int64_t dim = at::maybe_wrap_dim(dim_, x_.dim());
  const Tensor x = x_.contiguous();
  Tensor y = at::empty_like(x);
  if (y.is_meta()) return y;
  launch("softmax", x, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.softmax_forward(mutable_data<T>(y), data<T>(x), class_shape(x, dim), log, ctx);
  });
  return y;
}

Tensor softmax_backward(const Tensor& dy_, const Tensor& y_, int64_t dim_, bool log) {
  check_dtype("softmax_backward", y_);
  check_same_dtype("softmax_backward", "dy", dy_, "output", y_);
  check_same_shape("softmax_backward", "dy", dy_, "output", y_);
  const int64_t dim = at::maybe_wrap_dim(dim_, y_.dim());
  const Tensor dy = dy_.contiguous(), y = y_.contiguous();
  Tensor dx = at::empty_like(y);
  if (dx.is_meta()) return dx;
  launch("softmax_backward", y, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.softmax_backward(mutable_data<T>(dx), data<T>(dy), data<T>(y), class_shape(y, dim), log, ctx);
  });
  return dx;
}

struct SoftmaxFunction : torch::autograd::Function<SoftmaxFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, int64_t dim, bool log) {
    at::AutoDispatchBelowADInplaceOrView guard;
    Tensor y = ops::softmax(x, dim, log);
    ctx->save_for_backward({y});
    ctx->saved_data["dim"] = dim;
    ctx->saved_data["log"] = log;
    return y;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Tensor& dy = grads[0];
    const Tensor y = ctx->get_saved_variables()[0];
    const int64_t dim = ctx->saved_data["dim"].toInt();
    const bool log = ctx->saved_data["log"].toBool();
    if (at::GradMode::is_enabled()) {
      if (log) return {dy - y.exp() * dy.sum(dim, /*keepdim=*/true), {}, {}};
      return {y * (dy - (dy * y).sum(dim, /*keepdim=*/true)), {}, {}};
    }
    static const auto op = find_op<decltype(softmax_backward)>("minidl::softmax_backward");
    return {op.call(dy, y, dim, log), {}, {}};
  }
};

Tensor softmax_autograd(const Tensor& x, int64_t dim, bool log) {
  if (needs_graph(x)) return SoftmaxFunction::apply(x, dim, log);
  at::AutoDispatchBelowADInplaceOrView guard;
  return ops::softmax(x, dim, log);
}

// ---- cross_entropy, nll_loss: operands and checks -------------------------------------------------------------

int64_t class_dim(const Tensor& x) { return x.dim() == 1 ? 0 : 1; }

// As torch: a target of the logits' own shape holds probabilities.
bool holds_probabilities(const Tensor& x, const Tensor& target) { return x.sym_sizes() == target.sym_sizes(); }

struct Classification {
  Tensor x, target;  // contiguous
  OptionalTensor weight;
  bool probabilities;
  int64_t ignore_index;
  double label_smoothing;
  Reduction reduction;

  ClassShape shape() const { return class_shape(x, class_dim(x)); }
  template <class T>
  ClassTarget<T> kernel_target() const {
    const int64_t* index = probabilities ? nullptr : data<int64_t>(target);
    return {index, probabilities ? data<T>(target) : nullptr, data<T>(weight), ignore_index, label_smoothing};
  }
};

void check_index_target(const char* op, const Tensor& x, const Tensor& target) {
  const auto x_shape = x.sym_sizes(), t_shape = target.sym_sizes();
  const bool index_dtype = target.scalar_type() == at::kLong || (target.scalar_type() == at::kByte && x.dim() <= 2);
  TORCH_CHECK(index_dtype, "minidl::", op,
              ": expected class indices of dtype int64 (or uint8, for inputs of up to 2 dimensions), but got ",
              target.scalar_type());
  TORCH_CHECK(x.device() == target.device(), "minidl::", op,
              ": expected input and target on the same device, but got ", x.device(), " and ", target.device());
  if (x.dim() == 1) {
    TORCH_CHECK(target.dim() <= 1 && target.sym_numel() == 1, "minidl::", op, ": expected one class index for input ",
                x_shape, ", but got target ", t_shape);
    return;
  }
  TORCH_CHECK_VALUE(target.dim() > 0 && x_shape[0] == t_shape[0], "minidl::", op,
                    ": expected the batch sizes of input ", x_shape, " and target ", t_shape, " to match");
  TORCH_CHECK(t_shape.slice(1) == x_shape.slice(2), "minidl::", op, ": expected a target of the shape of input ",
              x_shape, " without its dimension 1 (the classes), but got ", t_shape);
}

void check_probability_target(const char* op, const Tensor& x, const Tensor& target, int64_t ignore_index) {
  TORCH_CHECK(target.is_floating_point(), "minidl::", op, ": a target of the shape of input ", x.sym_sizes(),
              " holds class probabilities and must be floating point, but got ", target.scalar_type());
  check_same_dtype(op, "input", x, "target", target);
  TORCH_CHECK(ignore_index < 0, "minidl::", op, ": ignore_index is not supported for class probabilities, got ",
              ignore_index);
}

Classification prepare(const char* op, bool probabilities, const Tensor& x, const Tensor& target,
                       const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                       double label_smoothing = 0) {
  check_dtype(op, x);
  TORCH_CHECK_VALUE(x.dim() >= 1, "minidl::", op, ": expected an input of 1 or more dimensions, but got 0");
  if (probabilities) {
    check_probability_target(op, x, target, ignore_index);
  } else {
    check_index_target(op, x, target);
  }
  TORCH_CHECK(!(label_smoothing > 1), "minidl::", op, ": label_smoothing must be between 0.0 and 1.0, got ",
              label_smoothing);
  if (weight.has_value()) {
    check_same_dtype(op, "input", x, "weight", *weight);
    TORCH_CHECK(weight->dim() == 1 && weight->sym_numel() == x.sym_size(class_dim(x)), "minidl::", op,
                ": expected one weight for each class of input ", x.sym_sizes(), ", but got weight ",
                weight->sym_sizes());
  }
  return {x.contiguous(),
          (probabilities ? target : target.to(at::kLong)).contiguous(),
          weight.has_value() ? OptionalTensor(weight->contiguous()) : std::nullopt,
          probabilities,
          ignore_index,
          label_smoothing > 0 ? label_smoothing : 0,  // negative or NaN: none, as torch
          parse_reduction(op, reduction)};
}

Tensor empty_loss(const Classification& c) {
  if (c.reduction != Reduction::none || c.x.dim() == 1) return at::empty({}, c.x.options());
  c10::SymDimVector shape(c.x.sym_sizes());
  shape.erase(shape.begin() + class_dim(c.x));
  return at::empty_symint(shape, c.x.options());
}

// Launches f(k, zero, ctx), once it is certain that every index is a class. The exception type is torch's.
template <class F>
void launch_classification(const char* op, const Classification& c, F f) {
  launch(op, c.x, [&](const auto& k, auto zero, const Context& ctx) {
    if (!c.probabilities) {
      const int64_t* target = data<int64_t>(c.target);
      int64_t position = -1;
      k.find_bad_target(&position, target, c.target.numel(), c.shape().classes, c.ignore_index, ctx);
      TORCH_CHECK_INDEX(position < 0, "minidl::", op, ": Target ", target[position], " is out of bounds.");
    }
    f(k, zero, ctx);
  });
}

void check_dy(const char* op, const Classification& c, const Tensor& dy, const Tensor& total_weight) {
  check_same_dtype(op, "dy", dy, "input", c.x);
  check_same_dtype(op, "total_weight", total_weight, "input", c.x);
  const bool each = c.reduction == Reduction::none;
  const auto rows = each ? c.x.sym_numel() : c10::SymInt(1), dys = each ? dy.sym_numel() * c.x.sym_size(class_dim(c.x)) : dy.sym_numel();
  TORCH_CHECK(rows == dys && total_weight.sym_numel() == 1, "minidl::", op, ": dy ", dy.sym_sizes(),
              " or total_weight ", total_weight.sym_sizes(), " does not fit input ", c.x.sym_sizes());
}

// ---- the same from differentiable operators -------------------------------------------------------------------

// q of kernels.def, of the shape of x.
Tensor target_distribution(const Classification& c) {
  const int64_t dim = class_dim(c.x);
  Tensor p = c.target;
  if (!c.probabilities) {
    const Tensor index = c.target.reshape_symint(empty_loss_shape(c)).unsqueeze(dim);
    const Tensor counts = index.ne(c.ignore_index);
    p = at::zeros_like(c.x).scatter(dim, index.where(counts, 0), counts.to(c.x.scalar_type()));
  }
  return p;
}

}  // namespace
}  // namespace minidl
