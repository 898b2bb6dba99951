#include "ops/softmax.h"

#include <ATen/WrapDimUtils.h>

#include "ops/op.h"

namespace minidl {
namespace {

// ---- softmax, log_softmax
// -------------------------------------------------------------------------------------

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

// ---- cross_entropy
// --------------------------------------------------------------------------------------------

// loss; stats, shape (2, rows), and total_weight, which only the backward pass wants.
std::tuple<Tensor, Tensor, Tensor> cross_entropy_forward(const Tensor& x, const Tensor& target,
                                                         const OptionalTensor& weight, int64_t reduction,
                                                         int64_t ignore_index, double label_smoothing) {
  const Classification c =
      classification("cross_entropy", x, target, weight, reduction, ignore_index, true, label_smoothing);
  const Tensor loss = empty_loss(c), total_weight = at::empty({}, c.x.options());
  c10::SymInt rows = 1;
  for (const c10::SymInt& size : c.row_shape()) rows = rows * size;
  const Tensor stats = at::empty_symint({2, rows}, c.x.options());
  if (loss.is_meta()) return {loss, stats, total_weight};
  launch_classification("cross_entropy", c, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.cross_entropy_forward(mutable_data<T>(loss), mutable_data<T>(stats), mutable_data<T>(total_weight),
                            data<T>(c.x), c.kernel_target<T>(), c.shape(), c.reduction, ctx);
  });
  return {loss, stats, total_weight};
}

Tensor cross_entropy_backward(const Tensor& dy_, const Tensor& x, const Tensor& target, const Tensor& stats_,
                              const Tensor& total_weight, const OptionalTensor& weight, int64_t reduction,
                              int64_t ignore_index, double label_smoothing) {
  const char* name = "cross_entropy_backward";
  const Classification c =
      classification(name, x, target, weight, reduction, ignore_index, true, label_smoothing);
  check_dy(name, c, dy_, total_weight);
  check_same_dtype(name, "stats", stats_, "input", x);
  TORCH_CHECK(stats_.sym_numel() * x.sym_size(class_dim(x)) == 2 * x.sym_numel(), "minidl::", name,
              ": stats of shape ", stats_.sym_sizes(), " does not fit input ", x.sym_sizes());
  const Tensor dy = dy_.contiguous(), stats = stats_.contiguous();
  const Tensor dx = at::empty_like(c.x);
  if (dx.is_meta()) return dx;
  launch_classification(name, c, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.cross_entropy_backward(mutable_data<T>(dx), data<T>(dy), data<T>(c.x), data<T>(stats),
                             data<T>(total_weight), c.kernel_target<T>(), c.shape(), c.reduction, ctx);
  });
  return dx;
}

auto call_cross_entropy(const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                        int64_t reduction, int64_t ignore_index, double label_smoothing) {
  static const auto op = find_op<decltype(cross_entropy_forward)>("minidl::cross_entropy_forward");
  return op.call(x, target, weight, reduction, ignore_index, label_smoothing);
}

struct CrossEntropyFunction : torch::autograd::Function<CrossEntropyFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& target,
                               const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                               double label_smoothing) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, stats, total_weight] =
        call_cross_entropy(x, target, weight, reduction, ignore_index, label_smoothing);
    ctx->save_for_backward({x, target, stats, total_weight, weight.value_or(Tensor())});
    ctx->mark_non_differentiable({stats, total_weight});
    ctx->set_materialize_grads(false);
    ctx->saved_data["reduction"] = reduction;
    ctx->saved_data["ignore_index"] = ignore_index;
    ctx->saved_data["label_smoothing"] = label_smoothing;
    return {loss, stats, total_weight};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return variable_list(6);
    const variable_list saved = ctx->get_saved_variables();
    const auto& [x, target, stats, total_weight] = std::tie(saved[0], saved[1], saved[2], saved[3]);
    const OptionalTensor weight = saved[4].defined() ? OptionalTensor(saved[4]) : std::nullopt;
    const int64_t reduction = ctx->saved_data["reduction"].toInt();
    const int64_t ignore_index = ctx->saved_data["ignore_index"].toInt();
    const double label_smoothing = ctx->saved_data["label_smoothing"].toDouble();
    if (at::GradMode::is_enabled()) {
      const Classification c =
          classification("cross_entropy", x, target, weight, reduction, ignore_index, true, label_smoothing);
      const auto [q, dy] = differentiable_target(c, grads[0], total_weight);
      const int64_t dim = class_dim(x);
      return {dy * (ops::softmax(x, dim, false) * q.sum(dim, /*keepdim=*/true) - q), {}, {}, {}, {}, {}};
    }
    static const auto op = find_op<decltype(cross_entropy_backward)>("minidl::cross_entropy_backward");
    return {
        op.call(grads[0], x, target, stats, total_weight, weight, reduction, ignore_index, label_smoothing),
        {},
        {},
        {},
        {},
        {}};
  }
};

std::tuple<Tensor, Tensor, Tensor> cross_entropy_autograd(const Tensor& x, const Tensor& target,
                                                          const OptionalTensor& weight, int64_t reduction,
                                                          int64_t ignore_index, double label_smoothing) {
  check_constant("cross_entropy_forward", "target", target);
  check_constant("cross_entropy_forward", "weight", weight);
  if (needs_graph(x)) {
    const variable_list out =
        CrossEntropyFunction::apply(x, target, weight, reduction, ignore_index, label_smoothing);
    return {out[0], out[1], out[2]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_cross_entropy(x, target, weight, reduction, ignore_index, label_smoothing);
}

// With gradients for the probabilities and the weights too.
Tensor differentiable_cross_entropy(const Classification& c) {
  const int64_t dim = class_dim(c.x);
  const Tensor rows = -(ops::softmax(c.x, dim, true) * target_distribution(c, c.target)).sum(dim);
  if (c.reduction == Reduction::none) return rows;
  return c.reduction == Reduction::mean ? rows.mean() : rows.sum();
}

// ---- nll_loss
// -------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> nll_loss_forward(const Tensor& x, const Tensor& target,
                                            const OptionalTensor& weight, int64_t reduction,
                                            int64_t ignore_index) {
  const Classification c = classification("nll_loss", x, target, weight, reduction, ignore_index);
  const Tensor loss = empty_loss(c), total_weight = at::empty({}, c.x.options());
  if (loss.is_meta()) return {loss, total_weight};
  launch_classification("nll_loss", c, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.nll_loss_forward(mutable_data<T>(loss), mutable_data<T>(total_weight), data<T>(c.x),
                       c.kernel_target<T>(), c.shape(), c.reduction, ctx);
  });
  return {loss, total_weight};
}

Tensor nll_loss_backward(const Tensor& dy_, const Tensor& x, const Tensor& target, const Tensor& total_weight,
                         const OptionalTensor& weight, int64_t reduction, int64_t ignore_index) {
  const Classification c = classification("nll_loss_backward", x, target, weight, reduction, ignore_index);
  check_dy("nll_loss_backward", c, dy_, total_weight);
  const Tensor dy = dy_.contiguous();
  const Tensor dx = at::empty_like(c.x);
  if (dx.is_meta()) return dx;
  launch_classification("nll_loss_backward", c, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.nll_loss_backward(mutable_data<T>(dx), data<T>(dy), data<T>(total_weight), c.kernel_target<T>(),
                        c.shape(), c.reduction, ctx);
  });
  return dx;
}

auto call_nll_loss(const Tensor& x, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                   int64_t ignore_index) {
  static const auto op = find_op<decltype(nll_loss_forward)>("minidl::nll_loss_forward");
  return op.call(x, target, weight, reduction, ignore_index);
}

struct NllLossFunction : torch::autograd::Function<NllLossFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& target,
                               const OptionalTensor& weight, int64_t reduction, int64_t ignore_index) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, total_weight] = call_nll_loss(x, target, weight, reduction, ignore_index);
    ctx->save_for_backward({x, target, total_weight, weight.value_or(Tensor())});
    ctx->mark_non_differentiable({total_weight});
    ctx->set_materialize_grads(false);
    ctx->saved_data["reduction"] = reduction;
    ctx->saved_data["ignore_index"] = ignore_index;
    return {loss, total_weight};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return variable_list(5);
    const variable_list saved = ctx->get_saved_variables();
    const auto& [x, target, total_weight] = std::tie(saved[0], saved[1], saved[2]);
    const OptionalTensor weight = saved[3].defined() ? OptionalTensor(saved[3]) : std::nullopt;
    const int64_t reduction = ctx->saved_data["reduction"].toInt();
    const int64_t ignore_index = ctx->saved_data["ignore_index"].toInt();
    if (at::GradMode::is_enabled()) {
      const Classification c = classification("nll_loss", x, target, weight, reduction, ignore_index);
      const auto [q, dy] = differentiable_target(c, grads[0], total_weight);
      return {-dy * q, {}, {}, {}, {}};
    }
    static const auto op = find_op<decltype(nll_loss_backward)>("minidl::nll_loss_backward");
    return {op.call(grads[0], x, target, total_weight, weight, reduction, ignore_index), {}, {}, {}, {}};
  }
};

std::tuple<Tensor, Tensor> nll_loss_autograd(const Tensor& x, const Tensor& target,
                                             const OptionalTensor& weight, int64_t reduction,
                                             int64_t ignore_index) {
  check_constant("nll_loss_forward", "weight", weight);
  if (needs_graph(x)) {
    const variable_list out = NllLossFunction::apply(x, target, weight, reduction, ignore_index);
    return {out[0], out[1]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_nll_loss(x, target, weight, reduction, ignore_index);
}

}  // namespace

// ---- the operators
// --------------------------------------------------------------------------------------------

Tensor ops::softmax(const Tensor& x, int64_t dim, bool log) {
  static const auto op = find_op<decltype(ops::softmax)>("minidl::softmax");
  return op.call(x, dim, log);
}

Tensor ops::cross_entropy(const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                          int64_t reduction, int64_t ignore_index, double label_smoothing) {
  if (needs_graph(target) || (needs_graph(weight) && target.is_floating_point())) {
    return differentiable_cross_entropy(
        classification("cross_entropy", x, target, weight, reduction, ignore_index, true, label_smoothing));
  }
  return std::get<0>(call_cross_entropy(x, target, weight, reduction, ignore_index, label_smoothing));
}

Tensor ops::nll_loss(const Tensor& x, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                     int64_t ignore_index) {
  return std::get<0>(call_nll_loss(x, target, weight, reduction, ignore_index));
}

// cross_entropy and nll_loss are the first result of their _forward operators: the other results serve the
// backward pass.
TORCH_LIBRARY_FRAGMENT(minidl, m) {
  define_op(m, "softmax", "(Tensor input, int dim, bool log=False) -> Tensor", softmax, softmax_autograd);
  define_backward_op(m, "softmax_backward", "(Tensor dy, Tensor output, int dim, bool log=False) -> Tensor",
                     softmax_backward);

  const std::string targets = "Tensor input, Tensor target, ";
  const std::string options = "Tensor? weight=None, int reduction=1, int ignore_index=-100";
  define_op(m, "cross_entropy_forward",
            "(" + targets + options +
                ", float label_smoothing=0) -> (Tensor loss, Tensor stats, Tensor total_weight)",
            cross_entropy_forward, cross_entropy_autograd);
  define_backward_op(m, "cross_entropy_backward",
                     "(Tensor dy, " + targets + "Tensor stats, Tensor total_weight, " + options +
                         ", float label_smoothing=0) -> Tensor",
                     cross_entropy_backward);
  define_op(m, "nll_loss_forward", "(" + targets + options + ") -> (Tensor loss, Tensor total_weight)",
            nll_loss_forward, nll_loss_autograd);
  define_backward_op(m, "nll_loss_backward",
                     "(Tensor dy, " + targets + "Tensor total_weight, " + options + ") -> Tensor",
                     nll_loss_backward);

  const auto composite = c10::DispatchKey::CompositeImplicitAutograd;
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(("cross_entropy(" + targets + options + ", float label_smoothing=0) -> Tensor").c_str(), tags);
  m.impl("cross_entropy", torch::dispatch(composite, ops::cross_entropy));
  m.def(("nll_loss(" + targets + options + ") -> Tensor").c_str(), tags);
  m.impl("nll_loss", torch::dispatch(composite, ops::nll_loss));
}

}  // namespace minidl
