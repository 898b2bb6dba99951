#include <ATen/ops/log_sigmoid.h>

#include "ops/autocast.h"
#include "ops/reduction.h"

namespace minidl {
namespace {

LossParams parse_loss(const char* op, std::string_view kind, int64_t reduction, double beta) {
  using enum LossKind;
  constexpr std::pair<std::string_view, LossKind> known[] = {
      {"mse", mse},     {"l1", l1},   {"smooth_l1", smooth_l1},
      {"huber", huber}, {"bce", bce}, {"bce_with_logits", bce_with_logits}};
  for (const auto& [name, k] : known) {
    if (kind != name) continue;
    TORCH_CHECK(k != smooth_l1 || beta >= 0, "minidl::", op,
                ": smooth_l1 does not support a negative beta, got ", beta);
    TORCH_CHECK(k != huber || beta > 0, "minidl::", op, ": huber does not support a non-positive delta, got ",
                beta);
    const bool is_l1 = k == smooth_l1 && beta == 0;  // the limit, which the formula divides by 0
    return {is_l1 ? l1 : k, parse_reduction(op, reduction), beta};
  }
  TORCH_CHECK_VALUE(false, "minidl::", op, ": unknown loss '", std::string(kind),
                    "'; expected mse, l1, smooth_l1, huber, bce or bce_with_logits");
}

// The operands as flat arrays in the memory order of x, checked.
struct Operands {
  Tensor x, t;
  OptionalTensor weight, pos_weight;
};

OptionalTensor weights_for(const Tensor& x, const OptionalTensor& weight) {
  if (!weight.has_value() || !weight->defined()) return {};
  return laid_out_as(weight->to(x.scalar_type()).expand_symint(x.sym_sizes()), x);
}

Operands prepare(const char* op, const Tensor& x_, const Tensor& t, const OptionalTensor& weight,
                 const OptionalTensor& pos_weight, LossKind kind) {
  check_dtype(op, x_);
  check_same_dtype(op, "input", x_, "target", t);
  check_same_shape(op, "input", x_, "target", t);
  TORCH_CHECK(kind == LossKind::bce_with_logits || !pos_weight.has_value(), "minidl::", op,
              ": only bce_with_logits has a pos_weight");
  const Tensor x = dense(x_);
  return {x, laid_out_as(t, x), weights_for(x, weight), weights_for(x, pos_weight)};
}

void check_unit_interval(const char* name, const Tensor& x) {
  bool inside = true;
  launch("loss", x, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.all_in_unit_interval(&inside, data<T>(x), x.numel(), ctx);
  });
  TORCH_CHECK(inside, "minidl::loss: bce: all elements of ", name, " should be between 0 and 1");
}

Tensor loss(const Tensor& x_, const Tensor& t_, std::string_view kind, int64_t reduction,
            const OptionalTensor& weight_, const OptionalTensor& pos_weight_, double beta) {
  const LossParams p = parse_loss("loss", kind, reduction, beta);
  const auto [x, t, weight, pos_weight] = prepare("loss", x_, t_, weight_, pos_weight_, p.kind);
  Tensor y = p.reduction == Reduction::none ? output_like(x) : output({}, x);
  if (y.is_meta()) return y;
  if (p.kind == LossKind::bce) {
    check_unit_interval("input", x);
    check_unit_interval("target", t);
  }
  launch("loss", x,
         [&, &x = x, &t = t, &weight = weight, &pos_weight = pos_weight](const auto& k, auto zero,
                                                                         const Context& ctx) {
           using T = decltype(zero);
           k.loss_forward(mutable_data<T>(y), data<T>(x), data<T>(t), data<T>(weight), data<T>(pos_weight),
                          x.numel(), p, ctx);
         });
  return y;
}

Tensor loss_backward(const Tensor& dy_, const Tensor& x_, const Tensor& t_, std::string_view kind,
                     int64_t reduction, const OptionalTensor& weight_, const OptionalTensor& pos_weight_,
                     double beta, bool wrt_target) {
  const LossParams p = parse_loss("loss_backward", kind, reduction, beta);
  const auto [x, t, weight, pos_weight] = prepare("loss_backward", x_, t_, weight_, pos_weight_, p.kind);
  check_same_dtype("loss_backward", "dy", dy_, "input", x);
  Tensor dy = dy_;
  if (p.reduction == Reduction::none) {
    check_same_shape("loss_backward", "dy", dy, "input", x);
    dy = laid_out_as(dy, x);
  } else {
    TORCH_CHECK(dy.sym_numel() == 1, "minidl::loss_backward: expected one dy, but got shape ",
                dy.sym_sizes());
  }
  Tensor d = output_like(x);
  if (d.is_meta()) return d;
  launch("loss_backward", x,
         [&, &x = x, &t = t, &weight = weight, &pos_weight = pos_weight](const auto& k, auto zero,
                                                                         const Context& ctx) {
           using T = decltype(zero);
           k.loss_backward(mutable_data<T>(d), data<T>(dy), data<T>(x), data<T>(t), data<T>(weight),
                           data<T>(pos_weight), x.numel(), p, wrt_target, ctx);
         });
  return d;
}

Tensor call_backward(const Tensor& dy, const Tensor& x, const Tensor& t, std::string_view kind,
                     int64_t reduction, const OptionalTensor& weight, const OptionalTensor& pos_weight,
                     double beta, bool wrt_target) {
  static const auto op = find_op<decltype(loss_backward)>("minidl::loss_backward");
  return op.call(dy, x, t, kind, reduction, weight, pos_weight, beta, wrt_target);
}

// The derivative of one element of the loss, with respect to x or t, from differentiable operators.
Tensor differentiable_slope(const Tensor& x, const Tensor& t, const Tensor& pos_weight, LossParams p,
                            bool wrt_target) {
  const Tensor d = wrt_target ? t - x : x - t;
  switch (p.kind) {
    case LossKind::mse:
      return d * 2;
    case LossKind::l1:
      return d.sign();
    case LossKind::smooth_l1:
      return at::where(d.abs().lt(p.beta), d / p.beta, d.sign());
    case LossKind::huber:
      return at::where(d.abs().lt(p.beta), d, d.sign() * p.beta);
    case LossKind::bce:
      if (wrt_target) return (-x).log1p() - x.log();
      return (x - t) / ((1 - x) * x).clamp_min(1e-12);
    case LossKind::bce_with_logits:
      if (wrt_target) return pos_weight.defined() ? (1 - pos_weight) * at::log_sigmoid(x) - x : -x;
      if (!pos_weight.defined()) return x.sigmoid() - t;
      return ((pos_weight - 1) * t + 1) * x.sigmoid() - pos_weight * t;
  }
  return d;
}

// dy * slope, from differentiable operators.
Tensor differentiable_loss_backward(const Tensor& dy, const Tensor& x, const Tensor& t,
                                    const OptionalTensor& weight, const Tensor& pos_weight, LossParams p,
                                    bool wrt_target) {
  Tensor d = dy * differentiable_slope(x, t, pos_weight, p, wrt_target);
  if (weight.has_value()) d = d * *weight;
  return p.reduction == Reduction::mean ? d / at::Scalar(x.sym_numel()) : d;
}

class LossNode final : public Node {
 public:
  LossNode(std::string_view kind, int64_t reduction, double beta)
      : Node("LossBackward"), kind_(kind), reduction_(reduction), beta_(beta) {}

 private:
  variable_list backward(const Tensor& dy) override {
    const Tensor x = saved(0), t = saved(1);
    const OptionalTensor weight = saved_optional(2), pos_weight = saved_optional(3);
    const auto gradient = [&](bool wrt_target) {
      if (!wanted(wrt_target ? 1 : 0)) return Tensor();
      if (at::GradMode::is_enabled()) {
        return differentiable_loss_backward(dy, x, t, weight, pos_weight.value_or(Tensor()),
                                            parse_loss("loss", kind_, reduction_, beta_), wrt_target);
      }
      at::AutoDispatchBelowADInplaceOrView guard;
      return call_backward(dy, x, t, kind_, reduction_, weight, pos_weight, beta_, wrt_target);
    };
    return {gradient(false), gradient(true)};
  }
  std::string kind_;
  int64_t reduction_;
  double beta_;
};

Tensor loss_autograd(const Tensor& x, const Tensor& t, std::string_view kind, int64_t reduction,
                     const OptionalTensor& weight, const OptionalTensor& pos_weight, double beta) {
  check_constant("loss", "weight", weight);
  check_constant("loss", "pos_weight", pos_weight);
  Tensor y = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return ops::loss(x, t, kind, reduction, weight, pos_weight, beta);
  }();
  if (!needs_graph(x) && !needs_graph(t)) return y;
  const auto node = make_node<LossNode>(kind, reduction, beta);
  link(y, node, x, t);
  node->save_input(x);
  node->save_input(t);
  node->save_input(weight);
  node->save_input(pos_weight);
  return y;
}

// As torch: 16-bit probabilities cannot be told from 0 and 1.
Tensor loss_autocast(const Tensor& x, const Tensor& t, std::string_view kind, int64_t reduction,
                     const OptionalTensor& weight, const OptionalTensor& pos_weight, double beta) {
  TORCH_CHECK(kind != "bce",
              "minidl::loss: binary_cross_entropy and BCELoss are unsafe to autocast; use "
              "binary_cross_entropy_with_logits or BCEWithLogitsLoss, which are safe");
  return Autocast<loss, Cast::to_float>::call(x, t, kind, reduction, weight, pos_weight, beta);
}

}  // namespace

Tensor ops::loss(const Tensor& x, const Tensor& t, std::string_view kind, int64_t reduction,
                 const OptionalTensor& weight, const OptionalTensor& pos_weight, double beta) {
  static const auto op = find_op<decltype(ops::loss)>("minidl::loss");
  return op.call(x, t, kind, reduction, weight, pos_weight, beta);
}

TORCH_LIBRARY_FRAGMENT(minidl, m) {
  define_op(m, "loss",
            "(Tensor input, Tensor target, str kind, int reduction=1, Tensor? weight=None, Tensor? "
            "pos_weight=None, "
            "float beta=1) -> Tensor",
            loss, loss_autograd);
  define_autocast<loss, Cast::to_float>(m, "loss", loss_autocast);
  define_backward_op(
      m, "loss_backward",
      "(Tensor dy, Tensor input, Tensor target, str kind, int reduction=1, Tensor? weight=None, "
      "Tensor? pos_weight=None, float beta=1, bool wrt_target=False) -> Tensor",
      loss_backward);
}

}  // namespace minidl
