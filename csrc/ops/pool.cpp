#include "ops/pool.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>

namespace minidl {
namespace {

// ---- maximum ------------------------------------------------------------------------------------

// Bytes tell the places of a window apart where these are few.
bool fits_bytes(const Pooling& p, const Tensor& x, c10::SymIntArrayRef out) {
  SymInt places = p.kernel[0] * p.kernel[1];
  if (p.adaptive) {
    for (const int d : {-2, -1}) {
      const SymInt& size = out[out.size() + d];
      if (size == 0) return true;
      places = places * (x.sym_size(d) / size + 2);
    }
  }
  return places <= 256;
}

PoolPosition kernel_position(const Tensor& position) {
  if (position.scalar_type() == at::kByte) return {position.mutable_data_ptr<uint8_t>(), nullptr};
  return {nullptr, position.mutable_data_ptr<int64_t>()};
}

std::tuple<Tensor, Tensor> max_forward(const char* op, const Tensor& x_, const Pooling& p, SymShape shape,
                                       bool indices) {
  const bool channels_last = is_channels_last(x_);
  const auto format = format_of(channels_last);
  const Tensor x = x_.contiguous(format);
  const Tensor y = output(shape, x, format);
  const bool bytes = !indices && fits_bytes(p, x, shape);
  const Tensor position = output(shape, x, bytes ? at::kByte : at::kLong, format);
  if (y.is_meta()) return {y, position};
  launch(op, x, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.max_pool_forward(mutable_data<T>(y), kernel_position(position), data<T>(x),
                       kernel_shape(p, x.sizes(), y.sizes(), channels_last), ctx);
  });
  return {y, position};
}

std::tuple<Tensor, Tensor> max_pool2d_forward(const Tensor& x, at::IntArrayRef kernel_size,
                                              at::IntArrayRef stride, at::IntArrayRef padding,
                                              at::IntArrayRef dilation, bool ceil_mode, bool indices) {
  const char* op = "max_pool2d";
  const Pooling p = pooling(op, kernel_size, stride, padding, dilation, ceil_mode);
  return max_forward(op, x, p, shape_of(op, x, p), indices);
}

std::tuple<Tensor, Tensor> adaptive_max_pool2d_forward(const Tensor& x, c10::SymIntArrayRef output_size,
                                                       bool indices) {
  const char* op = "adaptive_max_pool2d";
  check_image(op, x);
  return max_forward(op, x, {.adaptive = true}, adaptive_shape_of(op, x, output_size), indices);
}

Tensor max_pool2d_backward(const Tensor& dy_, const Tensor& position_, c10::SymIntArrayRef input_size,
                           bool channels_last, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                           at::IntArrayRef padding, at::IntArrayRef dilation) {
  const char* op = "max_pool2d_backward";
  const Pooling p = pooling(op, kernel_size, stride, padding, dilation, false);
  check_dy(op, dy_, input_size);
  check_same_shape(op, "dy", dy_, "position", position_);
  TORCH_CHECK(position_.scalar_type() == at::kByte || position_.scalar_type() == at::kLong, "minidl::", op,
              ": position must be uint8 or int64, but is ", position_.scalar_type());
  const auto format = format_of(channels_last);
  const Tensor dy = dy_.contiguous(format), position = position_.contiguous(format);
  Tensor dx = output(input_size, dy, format);
  if (dx.is_meta()) return dx;
  launch(op, dy, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.max_pool_backward(mutable_data<T>(dx), data<T>(dy), kernel_position(position),
                        kernel_shape(p, dx.sizes(), dy.sizes(), channels_last), ctx);
  });
  return dx;
}

// Along one axis, for each output: where its window starts, and whether it holds any input.
std::pair<Tensor, Tensor> window_starts(const PoolAxis& a, const Tensor& like) {
  const Tensor o = at::arange(a.out, like.options().dtype(at::kLong));
  if (a.adaptive) return {(o * a.in).floor_divide(a.out), o >= 0};
  const Tensor start = o * a.stride - a.padding;
  const Tensor before = (-start).clamp_min(0);  // places outside, to be stepped over
  return {start, start + (before + (a.dilation - 1)).floor_divide(a.dilation) * a.dilation < a.in};
}

// max_pool2d_backward from differentiable operators.
Tensor differentiable_max_backward(const Tensor& dy, const Tensor& position, at::IntArrayRef in,
                                   const Pooling& p) {
  const PoolShape s = kernel_shape(p, in, dy.sizes(), false);
  auto [row, has_rows] = window_starts(s.h, position);
  auto [column, has_columns] = window_starts(s.w, position);
  Tensor index = position;
  if (position.scalar_type() == at::kByte) {
    const Tensor place = position.to(at::kLong);
    row = row.unsqueeze(1) + place.floor_divide(s.w.kernel) * s.h.dilation;
    column = column + place.remainder(s.w.kernel) * s.w.dilation;
    index = row * s.w.in + column;
  }
  const Tensor empty = (has_rows.unsqueeze(1) & has_columns).logical_not();
  index = index.masked_fill(empty, 0).flatten(-2);
  const Tensor zeros = at::zeros(in, dy.options()).flatten(-2);
  return zeros.scatter_add(-1, index, dy.masked_fill(empty, 0).flatten(-2)).view(in);
}

class MaxPool2dNode final : public Node {
 public:
  MaxPool2dNode(const Tensor& x, const Pooling& p)
      : Node("MaxPool2dBackward"), size_(x.sym_sizes().vec()), channels_last_(is_channels_last(x)), p_(p) {}

 private:
  variable_list backward(const Tensor& dy) override {
    const Tensor position = saved(0);
    if (at::GradMode::is_enabled()) {
      return {differentiable_max_backward(dy, position, C10_AS_INTARRAYREF_SLOW(size_), p_)};
    }
    static const auto op = find_op<decltype(max_pool2d_backward)>("minidl::max_pool2d_backward");
    at::AutoDispatchBelowADInplaceOrView guard;
    return {
        op.call(dy, position, size_, channels_last_, p_.kernel_list(), p_.stride, p_.padding, p_.dilation)};
  }
  std::vector<SymInt> size_;
  bool channels_last_;
  Pooling p_;
};

auto call_max_pool2d(const Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                     at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode, bool indices) {
  static const auto op = find_op<decltype(max_pool2d_forward)>("minidl::max_pool2d_forward");
  return op.call(x, kernel_size, stride, padding, dilation, ceil_mode, indices);
}
auto call_adaptive_max_pool2d(const Tensor& x, c10::SymIntArrayRef output_size, bool indices) {
  static const auto op =
      find_op<decltype(adaptive_max_pool2d_forward)>("minidl::adaptive_max_pool2d_forward");
  return op.call(x, output_size, indices);
}

std::tuple<Tensor, Tensor> with_node(std::tuple<Tensor, Tensor> result, const Tensor& x, const Pooling& p) {
  if (!needs_graph(x)) return result;
  const auto& [y, position] = result;
  const auto node = make_node<MaxPool2dNode>(x, p);
  link(y, node, x);
  node->save_input(position);
  return result;
}

std::tuple<Tensor, Tensor> max_pool2d_autograd(const Tensor& x, at::IntArrayRef kernel_size,
                                               at::IntArrayRef stride, at::IntArrayRef padding,
                                               at::IntArrayRef dilation, bool ceil_mode, bool indices) {
  auto result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode, indices);
  }();
  return with_node(std::move(result), x,
                   pooling("max_pool2d", kernel_size, stride, padding, dilation, ceil_mode));
}

std::tuple<Tensor, Tensor> adaptive_max_pool2d_autograd(const Tensor& x, c10::SymIntArrayRef output_size,
                                                        bool indices) {
  auto result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_adaptive_max_pool2d(x, output_size, indices);
  }();
  return with_node(std::move(result), x, {.adaptive = true});
}

// ---- average ------------------------------------------------------------------------------------

PoolDivisor kernel_divisor(const char* op, bool count_include_pad, std::optional<int64_t> override) {
  TORCH_CHECK(override != 0, "minidl::", op, ": divisor must not be zero");
  return {static_cast<double>(override.value_or(0)), count_include_pad};
}

Tensor average(const char* op, const Tensor& x_, const Pooling& p, SymShape shape, PoolDivisor divisor) {
  const bool channels_last = is_channels_last(x_);
  const auto format = format_of(channels_last);
  const Tensor x = x_.contiguous(format);
  Tensor y = output(shape, x, format);
  if (y.is_meta()) return y;
  launch(op, x, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.avg_pool_forward(mutable_data<T>(y), data<T>(x), kernel_shape(p, x.sizes(), y.sizes(), channels_last),
                       divisor, ctx);
  });
  return y;
}

Tensor avg_pool2d(const Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                  at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                  std::optional<int64_t> divisor_override) {
  const char* op = "avg_pool2d";
  TORCH_CHECK_INDEX(x.dim() >= 3, "minidl::", op, ": expected a 3D or 4D input, but got ", x.sym_sizes());
  const PoolDivisor divisor = kernel_divisor(op, count_include_pad, divisor_override);
  const Pooling p = pooling(op, kernel_size, stride, padding, {1}, ceil_mode);
  return average(op, x, p, shape_of(op, x, p), divisor);
}

Tensor adaptive_avg_pool2d(const Tensor& x, c10::SymIntArrayRef output_size) {
  const char* op = "adaptive_avg_pool2d";
  // The mean of nothing is NaN; other windows of an image without elements are an error, as in torch.
  const bool global = output_size.size() == 2 && output_size[0] == 1 && output_size[1] == 1;
  check_image(op, x, /*may_lack=*/global ? 3 : 1);
  return average(op, x, {.adaptive = true}, adaptive_shape_of(op, x, output_size), {});
}

Tensor avg_pool2d_backward(const Tensor& dy_, c10::SymIntArrayRef input_size, bool channels_last,
                           at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                           bool ceil_mode, bool count_include_pad, std::optional<int64_t> divisor_override) {
  const char* op = "avg_pool2d_backward";
  const PoolDivisor divisor = kernel_divisor(op, count_include_pad, divisor_override);
  const Pooling p = pooling(op, kernel_size, stride, padding, {1}, ceil_mode);
  check_dy(op, dy_, input_size);
  const auto format = format_of(channels_last);
  const Tensor dy = dy_.contiguous(format);
  Tensor dx = output(input_size, dy, format);
  if (dx.is_meta()) return dx;
  launch(op, dy, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.avg_pool_backward(mutable_data<T>(dx), data<T>(dy),
                        kernel_shape(p, dx.sizes(), dy.sizes(), channels_last), divisor, ctx);
  });
  return dx;
}

// The operator and its backward operator are linear, each the other's transpose, so each is the other's
// derivative.
struct AveragePooling {
  std::vector<SymInt> size;
  bool channels_last;
  Pooling p;
  bool count_include_pad;
  std::optional<int64_t> divisor_override;

  Tensor forward(const Tensor& x, c10::SymIntArrayRef out) const {
    if (p.adaptive) return ops::adaptive_avg_pool2d(x, out.slice(out.size() - 2));
    return ops::avg_pool2d(x, p.kernel, p.stride, p.padding, p.ceil_mode, count_include_pad,
                           divisor_override);
  }
  Tensor backward(const Tensor& dy) const {
    static const auto op = find_op<decltype(avg_pool2d_backward)>("minidl::avg_pool2d_backward");
    return op.call(dy, size, channels_last, p.kernel_list(), p.stride, p.padding, p.ceil_mode,
                   count_include_pad, divisor_override);
  }
};

class AvgPool2dNode final : public Node {
 public:
  explicit AvgPool2dNode(AveragePooling a) : Node("AvgPool2dBackward"), a_(std::move(a)) {}

 private:
  variable_list backward(const Tensor& dy) override {
    if (at::GradMode::is_enabled()) return {a_.backward(dy)};
    at::AutoDispatchBelowADInplaceOrView guard;
    return {a_.backward(dy)};
  }
  AveragePooling a_;
};

class AvgPool2dBackwardNode final : public Node {
 public:
  AvgPool2dBackwardNode(AveragePooling a, c10::SymIntArrayRef out)
      : Node("AvgPool2dBackwardBackward"), a_(std::move(a)), out_(out.vec()) {}

 private:
  variable_list backward(const Tensor& ddx) override { return {a_.forward(ddx, out_)}; }
  AveragePooling a_;
  std::vector<SymInt> out_;
};

Tensor avg_pool2d_autograd(const Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                           at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                           std::optional<int64_t> divisor_override) {
  Tensor y = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return ops::avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override);
  }();
  if (!needs_graph(x)) return y;
  const Pooling p = pooling("avg_pool2d", kernel_size, stride, padding, {1}, ceil_mode);
  link(y,
       make_node<AvgPool2dNode>(
           AveragePooling{x.sym_sizes().vec(), is_channels_last(x), p, count_include_pad, divisor_override}),
       x);
  return y;
}

Tensor adaptive_avg_pool2d_autograd(const Tensor& x, c10::SymIntArrayRef output_size) {
  Tensor y = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return ops::adaptive_avg_pool2d(x, output_size);
  }();
  if (!needs_graph(x)) return y;
  link(y,
       make_node<AvgPool2dNode>(
           AveragePooling{x.sym_sizes().vec(), is_channels_last(x), {.adaptive = true}, true, {}}),
       x);
  return y;
}

Tensor avg_pool2d_backward_autograd(const Tensor& dy, c10::SymIntArrayRef input_size, bool channels_last,
                                    at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                    at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                                    std::optional<int64_t> divisor_override) {
  const Pooling p = pooling("avg_pool2d_backward", kernel_size, stride, padding, {1}, ceil_mode);
  AveragePooling a{input_size.vec(), channels_last, p, count_include_pad, divisor_override};
  Tensor dx = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return a.backward(dy);
  }();
  if (needs_graph(dy)) link(dx, make_node<AvgPool2dBackwardNode>(std::move(a), dy.sym_sizes()), dy);
  return dx;
}

}  // namespace

// ---- the operators ------------------------------------------------------------------------------

Tensor ops::max_pool2d(const Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  return std::get<0>(call_max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode, false));
}
std::tuple<Tensor, Tensor> ops::max_pool2d_with_indices(const Tensor& x, at::IntArrayRef kernel_size,
                                                        at::IntArrayRef stride, at::IntArrayRef padding,
                                                        at::IntArrayRef dilation, bool ceil_mode) {
  return call_max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode, true);
}
Tensor ops::adaptive_max_pool2d(const Tensor& x, c10::SymIntArrayRef output_size) {
  return std::get<0>(call_adaptive_max_pool2d(x, output_size, false));
}
std::tuple<Tensor, Tensor> ops::adaptive_max_pool2d_with_indices(const Tensor& x,
                                                                 c10::SymIntArrayRef output_size) {
  return call_adaptive_max_pool2d(x, output_size, true);
}

Tensor ops::avg_pool2d(const Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                       at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                       std::optional<int64_t> divisor_override) {
  static const auto op = find_op<decltype(ops::avg_pool2d)>("minidl::avg_pool2d");
  return op.call(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override);
}
Tensor ops::adaptive_avg_pool2d(const Tensor& x, c10::SymIntArrayRef output_size) {
  static const auto op = find_op<decltype(ops::adaptive_avg_pool2d)>("minidl::adaptive_avg_pool2d");
  return op.call(x, output_size);
}

// The maxima are the first result of their _forward operators: the second, the place of each in its window
// (uint8), or in the image (int64) if that was asked for or the window is large, serves the backward pass.
TORCH_LIBRARY_FRAGMENT(minidl, m) {
  const std::string windows = "int[2] kernel_size, int[2] stride=[], int[2] padding=0";
  const std::string max_windows = windows + ", int[2] dilation=1";
  const std::string max_options = "(Tensor input, " + max_windows + ", bool ceil_mode=False";
  const std::string averages =
      ", bool ceil_mode=False, bool count_include_pad=True, int? divisor_override=None) -> Tensor";
  const std::string of_input = "SymInt[] input_size, bool channels_last, ";

  define_op(m, "max_pool2d_forward",
            max_options + ", bool indices=False) -> (Tensor output, Tensor position)", max_pool2d_forward,
            max_pool2d_autograd);
  define_op(m, "adaptive_max_pool2d_forward",
            "(Tensor input, SymInt[2] output_size, bool indices=False) -> (Tensor output, Tensor position)",
            adaptive_max_pool2d_forward, adaptive_max_pool2d_autograd);
  define_backward_op(m, "max_pool2d_backward",
                     "(Tensor dy, Tensor position, " + of_input + max_windows + ") -> Tensor",
                     max_pool2d_backward);
  define_op(m, "avg_pool2d", "(Tensor input, " + windows + averages, avg_pool2d, avg_pool2d_autograd);
  define_op(m, "adaptive_avg_pool2d", "(Tensor input, SymInt[2] output_size) -> Tensor", adaptive_avg_pool2d,
            adaptive_avg_pool2d_autograd);
  define_op(m, "avg_pool2d_backward", "(Tensor dy, " + of_input + windows + averages, avg_pool2d_backward,
            avg_pool2d_backward_autograd);

  const auto composite = c10::DispatchKey::CompositeImplicitAutograd;
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  const auto define = [&](const std::string& name, const std::string& signature, auto* function) {
    m.def((name + signature).c_str(), tags);
    m.impl(name.c_str(), torch::dispatch(composite, function));
  };
  const std::string adaptive = "(Tensor input, SymInt[2] output_size)",
                    indexed = "(Tensor output, Tensor indices)";
  define("max_pool2d", max_options + ") -> Tensor", ops::max_pool2d);
  define("max_pool2d_with_indices", max_options + ") -> " + indexed, ops::max_pool2d_with_indices);
  define("adaptive_max_pool2d", adaptive + " -> Tensor", ops::adaptive_max_pool2d);
  define("adaptive_max_pool2d_with_indices", adaptive + " -> " + indexed,
         ops::adaptive_max_pool2d_with_indices);
}

}  // namespace minidl
