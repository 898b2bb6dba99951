#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <mutex>

#include "ops/op.h"

namespace minidl {
namespace {

void check_p(const char* op, double p) {
  TORCH_CHECK(p >= 0 && p <= 1, "minidl::", op, ": dropout probability has to be between 0 and 1, but got ",
              p);
}

// 126 random bits and more, so that no two calls meet: seed and offset of Philox. On another device than the
// CPU, the device draws them: the host does not wait, and each replay of a CUDA graph has masks of its own.
Tensor draw_state(const Tensor& x, const std::optional<at::Generator>& generator) {
  Tensor state = output({2}, x, at::kLong);
  if (state.is_meta()) return state;
  if (!state.is_cpu()) return state.random_(generator);
  auto* source =
      at::get_generator_or_default<at::CPUGeneratorImpl>(generator, at::detail::getDefaultCPUGenerator());
  const std::lock_guard lock(source->mutex_);
  for (const int i : {0, 1}) state.mutable_data_ptr<int64_t>()[i] = static_cast<int64_t>(source->random64());
  return state;
}

DropoutParams kernel_params(const Tensor& state, double p) {
  // Where p is 1 everything is multiplied by 0, as torch does, and no threshold is large enough.
  const double threshold = p == 1 ? 0 : std::min(std::round(p * 0x1p32), 0x1p32 - 1);
  return {state.const_data_ptr<int64_t>(), static_cast<uint32_t>(threshold), p == 1 ? 0 : 1 / (1 - p)};
}

// ---- the mask, applied --------------------------------------------------------------------------

Tensor apply(const char* op, const Tensor& x_, const Tensor& state_, double p, bool channels,
             bool channels_last) {
  check_dtype(op, x_);
  check_p(op, p);
  TORCH_CHECK(state_.scalar_type() == at::kLong && state_.dim() == 1 && state_.sym_size(0) == 2 &&
                  state_.device() == x_.device(),
              "minidl::", op, ": the state must be two int64 on ", x_.device(), ", but is ",
              state_.scalar_type(), " ", state_.sym_sizes(), " on ", state_.device());
  TORCH_CHECK(!channels || x_.dim() >= 2, "minidl::", op,
              ": dropout of channels requires at least 2 dimensions in the input, but got ", x_.sym_sizes());
  const auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  const Tensor x = x_.contiguous(format), state = state_.contiguous();
  Tensor y = output(x.sym_sizes(), x, format);
  if (y.is_meta()) return y;
  const int64_t images = channels ? x.size(0) : 1, features = channels ? x.size(1) : x.numel();
  const int64_t inner = channels ? c10::multiply_integers(x.sizes().slice(2)) : 1;
  launch(op, x, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.dropout(mutable_data<T>(y), data<T>(x), {images, features, inner, channels_last},
              kernel_params(state, p), ctx);
  });
  return y;
}

// The derivative of dropout, and its own: the same mask.
Tensor dropout_backward(const Tensor& dy, const Tensor& state, double p, bool channels, bool channels_last) {
  return apply("dropout_backward", dy, state, p, channels, channels_last);
}

auto call_dropout_backward(const Tensor& dy, const Tensor& state, double p, bool channels,
                           bool channels_last) {
  static const auto op = find_op<decltype(dropout_backward)>("minidl::dropout_backward");
  return op.call(dy, state, p, channels, channels_last);
}

class DropoutNode final : public Node {
 public:
  DropoutNode(double p, bool channels, bool channels_last)
      : Node("DropoutBackward"), p_(p), channels_(channels), channels_last_(channels_last) {}

 private:
  variable_list backward(const Tensor& dy) override {
    const Tensor state = saved(0);
    if (at::GradMode::is_enabled()) return {call_dropout_backward(dy, state, p_, channels_, channels_last_)};
    at::AutoDispatchBelowADInplaceOrView guard;
    return {call_dropout_backward(dy, state, p_, channels_, channels_last_)};
  }
  double p_;
  bool channels_, channels_last_;
};

void link_dropout(const Tensor& y, const Tensor& x, const Tensor& state, double p, bool channels,
                  bool channels_last) {
  if (!needs_graph(x)) return;
  const auto node = make_node<DropoutNode>(p, channels, channels_last);
  link(y, node, x);
  node->save_input(state);
}

Tensor dropout_backward_autograd(const Tensor& dy, const Tensor& state, double p, bool channels,
                                 bool channels_last) {
  const Tensor dx = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_dropout_backward(dy, state, p, channels, channels_last);
  }();
  link_dropout(dx, dy, state, p, channels, channels_last);
  return dx;
}

// ---- dropout ------------------------------------------------------------------------------------

bool is_channels_last(const Tensor& x) { return x.suggest_memory_format() == at::MemoryFormat::ChannelsLast; }

std::tuple<Tensor, Tensor> dropout_forward(const Tensor& x, double p, bool channels,
                                           std::optional<at::Generator> generator) {
  check_dtype("dropout", x);
  check_p("dropout", p);
  const Tensor state = draw_state(x, generator);
  return {apply("dropout", x, state, p, channels, is_channels_last(x)), state};
}

auto call_dropout(const Tensor& x, double p, bool channels, const std::optional<at::Generator>& generator) {
  static const auto op = find_op<decltype(dropout_forward)>("minidl::dropout_forward");
  return op.call(x, p, channels, generator);
}

std::tuple<Tensor, Tensor> dropout_autograd(const Tensor& x, double p, bool channels,
                                            std::optional<at::Generator> generator) {
  auto result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_dropout(x, p, channels, generator);
  }();
  const auto& [y, state] = result;
  link_dropout(y, x, state, p, channels, is_channels_last(x));
  return result;
}

}  // namespace

Tensor ops::dropout(const Tensor& x, double p, bool channels, std::optional<at::Generator> generator) {
  return std::get<0>(call_dropout(x, p, channels, generator));
}

TORCH_LIBRARY_FRAGMENT(minidl, m) {
  define_op(m, "dropout_forward",
            "(Tensor input, float p, bool channels=False, Generator? generator=None) -> (Tensor output, "
            "Tensor state)",
            dropout_forward, dropout_autograd, {at::Tag::nondeterministic_seeded});
  define_op(m, "dropout_backward",
            "(Tensor dy, Tensor state, float p, bool channels=False, bool channels_last=False) -> Tensor",
            dropout_backward, dropout_backward_autograd);

  m.def("dropout(Tensor input, float p, bool channels=False, Generator? generator=None) -> Tensor",
        {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.impl("dropout", torch::dispatch(c10::DispatchKey::CompositeImplicitAutograd, ops::dropout));
}

}  // namespace minidl
