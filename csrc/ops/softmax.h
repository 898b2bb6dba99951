// The operands of the classification losses (cross_entropy, nll_loss): what is accepted, and the target as a
// distribution over the classes.
#pragma once
#include <ATen/ops/zeros_like.h>

#include "ops/reduction.h"

namespace minidl {
namespace {

inline int64_t class_dim(const Tensor& x) { return x.dim() == 1 ? 0 : 1; }

inline ClassShape class_shape(const Tensor& x, int64_t dim) {
  if (x.dim() == 0) return {1, 1, 1};
  ClassShape s{1, x.size(dim), 1};
  for (int64_t d = 0; d < dim; ++d) s.outer *= x.size(d);
  for (int64_t d = dim + 1; d < x.dim(); ++d) s.inner *= x.size(d);
  return s;
}

// Checked and contiguous; index targets as int64.
struct Classification {
  Tensor x, target;
  OptionalTensor weight;
  bool probabilities;
  Reduction reduction;
  int64_t ignore_index;
  double label_smoothing;

  ClassShape shape() const { return class_shape(x, class_dim(x)); }
  c10::SymDimVector row_shape() const {
    c10::SymDimVector shape(x.sym_sizes().begin(), x.sym_sizes().end());
    shape.erase(shape.begin() + class_dim(x));
    return shape;
  }
  template <class T>
  ClassTarget<T> kernel_target() const {
    return {.index = probabilities ? nullptr : data<int64_t>(target),
            .probability = probabilities ? data<T>(target) : nullptr,
            .weight = data<T>(weight),
            .ignore_index = ignore_index,
            .label_smoothing = label_smoothing};
  }
};

inline void check_index_target(const char* op, const Tensor& x, const Tensor& target) {
  const auto x_shape = x.sym_sizes(), t_shape = target.sym_sizes();
  const bool index_dtype =
      target.scalar_type() == at::kLong || (target.scalar_type() == at::kByte && x.dim() <= 2);
  TORCH_CHECK(
      index_dtype, "minidl::", op,
      ": expected class indices of dtype int64 (or uint8, for inputs of up to 2 dimensions), but got ",
      target.scalar_type());
  TORCH_CHECK(x.device() == target.device(), "minidl::", op,
              ": expected input and target on the same device, but got ", x.device(), " and ",
              target.device());
  if (x.dim() == 1) {
    TORCH_CHECK_VALUE(target.dim() <= 1 && target.sym_numel() == 1, "minidl::", op,
                      ": expected one class index for input ", x_shape, ", but got target ", t_shape);
    return;
  }
  TORCH_CHECK_VALUE(target.dim() > 0 && x_shape[0] == t_shape[0], "minidl::", op,
                    ": expected the batch sizes of input ", x_shape, " and target ", t_shape, " to match");
  TORCH_CHECK(t_shape.slice(1) == x_shape.slice(2), "minidl::", op,
              ": expected a target of the shape of input ", x_shape,
              " without its dimension 1 (the classes), but got ", t_shape);
}

inline void check_probability_target(const char* op, const Tensor& x, const Tensor& target,
                                     int64_t ignore_index) {
  TORCH_CHECK(target.is_floating_point(), "minidl::", op, ": a target of the shape of input ", x.sym_sizes(),
              " holds class probabilities and must be floating point, but got ", target.scalar_type());
  check_same_dtype(op, "input", x, "target", target);
  TORCH_CHECK(ignore_index < 0, "minidl::", op,
              ": ignore_index is not supported for class probabilities, got ", ignore_index);
}

// As torch, a target of the logits' own shape holds probabilities, where they are allowed.
inline Classification classification(const char* op, const Tensor& x, const Tensor& target,
                                     const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                                     bool allow_probabilities = false, double label_smoothing = 0) {
  check_dtype(op, x);
  TORCH_CHECK_VALUE(x.dim() >= 1, "minidl::", op, ": expected an input of 1 or more dimensions, but got 0");
  const bool probabilities = allow_probabilities && x.sym_sizes() == target.sym_sizes();
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
  return {.x = x.contiguous(),
          .target = probabilities ? target.contiguous() : target.to(at::kLong).contiguous(),
          .weight = weight.has_value() ? OptionalTensor(weight->contiguous()) : std::nullopt,
          .probabilities = probabilities,
          .reduction = parse_reduction(op, reduction),
          .ignore_index = ignore_index,
          .label_smoothing = label_smoothing > 0 ? label_smoothing : 0};  // negative or NaN: none, as torch
}

inline Tensor empty_loss(const Classification& c) {
  return c.reduction == Reduction::none ? output(c.row_shape(), c.x) : output({}, c.x);
}

inline void check_wide(const char* op, const char* name, const Tensor& sums, const Tensor& x) {
  TORCH_CHECK(sums.scalar_type() == wide_dtype(x) && sums.device() == x.device(), "minidl::", op,
              ": expected ", name, " of dtype ", wide_dtype(x), " on ", x.device(), ", but got ",
              sums.scalar_type(), " on ", sums.device());
}

inline void check_dy(const char* op, const Classification& c, const Tensor& dy, const Tensor& total_weight) {
  check_same_dtype(op, "dy", dy, "input", c.x);
  check_wide(op, "total_weight", total_weight, c.x);
  const bool fits = c.reduction == Reduction::none ? dy.sym_sizes() == c.row_shape() : dy.sym_numel() == 1;
  TORCH_CHECK(fits && total_weight.sym_numel() == 1, "minidl::", op, ": dy of shape ", dy.sym_sizes(),
              " or total_weight of shape ", total_weight.sym_sizes(), " does not fit input ",
              c.x.sym_sizes());
}

// Launches f(k, zero, ctx) once every index is known to be a class; else IndexError, as torch.
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

// The same loss from differentiable operators, for derivatives of higher order: the distribution q of
// kernels.def, of the shape of x, and dy of each row, which broadcasts against it.
struct DifferentiableTarget {
  Tensor q, dy;
};

inline Tensor target_distribution(const Classification& c, const Tensor& p) {
  Tensor q = p;
  if (c.label_smoothing > 0) {
    q = q * (1 - c.label_smoothing) + c.label_smoothing / static_cast<double>(c.shape().classes);
  }
  if (!c.weight.has_value()) return q;
  c10::SymDimVector shape(c.x.dim(), 1);
  shape[class_dim(c.x)] = c.weight->sym_numel();
  return q * c.weight->view_symint(shape);
}

inline DifferentiableTarget differentiable_target(const Classification& c, const Tensor& dy_,
                                                  const Tensor& total_weight) {
  const int64_t dim = class_dim(c.x);
  Tensor dy = c.reduction == Reduction::mean ? dy_ / total_weight : dy_;
  if (c.reduction == Reduction::none) dy = dy.unsqueeze(dim);
  if (c.probabilities) return {target_distribution(c, c.target), dy};
  const Tensor index = c.target.reshape_symint(c.row_shape()).unsqueeze(dim);
  const Tensor ignored = index.eq(c.ignore_index);
  const Tensor one_hot = at::zeros_like(c.x).scatter(dim, index.masked_fill(ignored, 0), 1);
  return {target_distribution(c, one_hot), dy.expand_symint(index.sym_sizes()).masked_fill(ignored, 0)};
}

}  // namespace
}  // namespace minidl
