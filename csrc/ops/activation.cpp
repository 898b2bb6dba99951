#include "ops/activation.h"

#include "ops/autocast.h"

namespace minidl {
namespace {

Tensor activation(const Tensor& x_, std::string_view name, double alpha, double beta) {
  const Activation f = parse_activation("activation", name, alpha, beta);
  check_dtype("activation", x_);
  const Tensor x = dense(x_);
  Tensor y = output_like(x);
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
  Tensor dx = output_like(saved);
  if (dx.is_meta()) return dx;
  launch("activation_backward", saved, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.activation_backward(mutable_data<T>(dx), data<T>(dy), data<T>(saved), saved.numel(), f, ctx);
  });
  return dx;
}

class ActivationNode final : public Node {
 public:
  ActivationNode(std::string_view activation, Activation f)
      : Node("ActivationBackward"), activation_(activation), f_(f) {}

 private:
  variable_list backward(const Tensor& dy) override {
    const Tensor x_or_y = saved(0);
    if (at::GradMode::is_enabled()) return {differentiable_activation_backward(dy, x_or_y, f_)};
    at::AutoDispatchBelowADInplaceOrView guard;
    return {ops::activation_backward(dy, x_or_y, activation_, f_.alpha, f_.beta)};
  }
  std::string activation_;
  Activation f_;
};

Tensor activation_autograd(const Tensor& x, std::string_view name, double alpha, double beta) {
  Tensor y = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return ops::activation(x, name, alpha, beta);
  }();
  if (!needs_graph(x)) return y;
  const Activation f = parse_activation("activation", name, alpha, beta);
  const auto node = make_node<ActivationNode>(name, f);
  link(y, node, x);
  saves_output(f.kind) ? node->save_output(y) : node->save_input(x);
  return y;
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

Activation fused_activation(const char* op, std::string_view name) {
  const Activation f = parse_activation(op, name);
  TORCH_CHECK_VALUE(f.kind != ActivationKind::leaky_relu && f.kind != ActivationKind::softplus,
                    "minidl::", op, ": activation '", std::string(name),
                    "' has parameters and is not fused; apply it to the result");
  return f;
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

// softplus alone: the others keep the dtype of their input.
static Tensor activation_autocast(const Tensor& x, std::string_view name, double alpha, double beta) {
  if (name == "softplus") return Autocast<activation, Cast::to_float>::call(x, name, alpha, beta);
  const c10::impl::ExcludeDispatchKeyGuard once(c10::DispatchKey::AutocastCUDA);
  return ops::activation(x, name, alpha, beta);
}

TORCH_LIBRARY_FRAGMENT(minidl, m) {
  define_op(m, "activation", "(Tensor x, str name, float alpha=0, float beta=0) -> Tensor", activation,
            activation_autograd);
  define_autocast<activation, Cast::to_float>(m, "activation", activation_autocast);
  define_backward_op(m, "activation_backward",
                     "(Tensor dy, Tensor saved, str name, float alpha=0, float beta=0) -> Tensor",
                     activation_backward);
}

}  // namespace minidl
