#include "ops/activation.h"

#include "ops/op.h"

namespace minidl {
namespace {

Tensor activation(const Tensor& x_, std::string_view name, double alpha, double beta) {
  const Activation f = parse_activation("activation", name, alpha, beta);
  check_dtype("activation", x_);
  const Tensor x = dense(x_);
  Tensor y = at::empty_like(x);
  if (y.is_meta()) return y;
  launch("activation", x, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.activation_forward(mutable_data<T>(y), data<T>(x), x.numel(), f, ctx);
  });
  return y;
}

Tensor activation_backward(const Tensor& dy_, const Tensor& saved_, std::string_view name, double alpha,
                           double beta) {
  const Activation f = parse_activation("activation_backward", name, alpha, beta);
  check_dtype("activation_backward", saved_);
  check_same_dtype("activation_backward", "dy", dy_, "saved", saved_);
  check_same_shape("activation_backward", "dy", dy_, "saved", saved_);
  const Tensor saved = dense(saved_);
  const Tensor dy = laid_out_as(dy_, saved);
  Tensor dx = at::empty_like(saved);
  if (dx.is_meta()) return dx;
  launch("activation_backward", saved, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.activation_backward(mutable_data<T>(dx), data<T>(dy), data<T>(saved), saved.numel(), f, ctx);
  });
  return dx;
}

struct ActivationFunction : torch::autograd::Function<ActivationFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, std::string_view name, double alpha,
                        double beta) {
    at::AutoDispatchBelowADInplaceOrView guard;
    Tensor y = ops::activation(x, name, alpha, beta);
    const Activation f = parse_activation("activation", name, alpha, beta);
    ctx->save_for_backward({saves_output(f.kind) ? y : x});
    ctx->saved_data["name"] = std::string(name);
    if (alpha != 0 || beta != 0) {
      ctx->saved_data["alpha"] = alpha;
      ctx->saved_data["beta"] = beta;
    }
    return y;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Tensor saved = ctx->get_saved_variables()[0];
    const std::string name = ctx->saved_data["name"].toStringRef();
    const bool parameters = ctx->saved_data.size() > 1;
    const double alpha = parameters ? ctx->saved_data["alpha"].toDouble() : 0;
    const double beta = parameters ? ctx->saved_data["beta"].toDouble() : 0;
    if (at::GradMode::is_enabled()) {
      const Activation f = parse_activation("activation", name, alpha, beta);
      return {differentiable_activation_backward(grads[0], saved, f), {}, {}, {}};
    }
    return {ops::activation_backward(grads[0], saved, name, alpha, beta), {}, {}, {}};
  }
};

Tensor activation_autograd(const Tensor& x, std::string_view name, double alpha, double beta) {
  if (needs_graph(x)) return ActivationFunction::apply(x, name, alpha, beta);
  at::AutoDispatchBelowADInplaceOrView guard;
  return ops::activation(x, name, alpha, beta);
}

}  // namespace

Activation parse_activation(const char* op, std::string_view name, double alpha, double beta) {
  using enum ActivationKind;
  constexpr std::pair<std::string_view, ActivationKind> known[] = {
      {"none", none},           {"relu", relu}, {"leaky_relu", leaky_relu},
      {"sigmoid", sigmoid},     {"tanh", tanh}, {"gelu", gelu},
      {"gelu_tanh", gelu_tanh}, {"silu", silu}, {"softplus", softplus}};
  for (const auto& [known_name, kind] : known) {
    if (name == known_name) return {kind, alpha, beta};
  }
  TORCH_CHECK_VALUE(false, "minidl::", op, ": unknown activation '", std::string(name),
                    "'; expected none, relu, leaky_relu, sigmoid, tanh, gelu, gelu_tanh, silu or softplus");
}

bool saves_output(ActivationKind kind) {
  return kind == ActivationKind::relu || kind == ActivationKind::sigmoid || kind == ActivationKind::tanh;
}

Tensor differentiable_activation_backward(const Tensor& dy, const Tensor& s, Activation f) {
  switch (f.kind) {
    case ActivationKind::none:
      return dy;
    case ActivationKind::relu:
      return dy.masked_fill(s.le(0), 0);
    case ActivationKind::leaky_relu:
      return at::where(s.gt(0), dy, dy * f.alpha);
    case ActivationKind::sigmoid:
      return dy * (1 - s) * s;
    case ActivationKind::tanh:
      return dy * (1 - s * s);
    case ActivationKind::gelu: {
      const Tensor cdf = ((s * M_SQRT1_2).erf() + 1) * 0.5;
      const Tensor pdf = (s * s * -0.5).exp() * (M_2_SQRTPI * M_SQRT1_2 * 0.5);
      return dy * (cdf + s * pdf);
    }
    case ActivationKind::gelu_tanh: {
      const double k = M_2_SQRTPI * M_SQRT1_2, c = 0.044715;
      const Tensor t = (k * (s + c * s * s * s)).tanh();
      return dy * (0.5 * (1 + t) + 0.5 * s * (1 - t * t) * (k * (1 + 3 * c * s * s)));
    }
    case ActivationKind::silu: {
      const Tensor g = s.sigmoid();
      return dy * g * (1 + s * (1 - g));
    }
    case ActivationKind::softplus:
      return at::where((s * f.alpha).gt(f.beta), dy, dy * (s * f.alpha).sigmoid());
  }
  return dy;
}

Tensor ops::activation(const Tensor& x, std::string_view name, double alpha, double beta) {
  static const auto op = find_op<decltype(ops::activation)>("minidl::activation");
  return op.call(x, name, alpha, beta);
}

Tensor ops::activation_backward(const Tensor& dy, const Tensor& saved, std::string_view name, double alpha,
                                double beta) {
  static const auto op = find_op<decltype(ops::activation_backward)>("minidl::activation_backward");
  return op.call(dy, saved, name, alpha, beta);
}

TORCH_LIBRARY_FRAGMENT(minidl, m) {
  define_op(m, "activation", "(Tensor x, str name, float alpha=0, float beta=0) -> Tensor", activation,
            activation_autograd);
  define_backward_op(m, "activation_backward",
                     "(Tensor dy, Tensor saved, str name, float alpha=0, float beta=0) -> Tensor",
                     activation_backward);
}

}  // namespace minidl
