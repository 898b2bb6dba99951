#include <ATen/ops/convolution_backward.h>

#include "ops/activation.h"
#include "ops/autocast.h"

namespace minidl {
namespace {

using c10::SymInt;
using SymShape = c10::SymDimVector;

// A convolution's options, one number for each dimension of a picture.
struct Options {
  at::DimVector stride, padding, dilation, output_padding;
  bool transposed;
  int64_t groups;
};

at::DimVector per_dimension(const char* op, const char* name, at::IntArrayRef values, int64_t dims,
                            int64_t least) {
  TORCH_CHECK(static_cast<int64_t>(values.size()) == dims || values.size() == 1, "minidl::", op,
              ": expected ", name, " to be a single integer value or a list of ", dims,
              " values to match the convolution dimensions, but got ", name, "=", values);
  for (const int64_t v : values) {
    TORCH_CHECK(v >= least, "minidl::", op, ": ", least ? "non-positive " : "negative ", name,
                " is not supported, got ", values);
  }
  return values.size() == 1 ? at::DimVector(dims, values[0]) : at::DimVector(values);
}

Options parse_options(const char* op, const Tensor& w, at::IntArrayRef stride, at::IntArrayRef padding,
                      at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
                      int64_t groups) {
  const int64_t dims = w.dim() - 2;
  TORCH_CHECK(dims == 1 || dims == 2, "minidl::", op,
              ": expected a weight for pictures of 1 or 2 dimensions, but got one of shape ", w.sym_sizes());
  TORCH_CHECK(groups > 0, "minidl::", op, ": non-positive groups is not supported, got ", groups);
  Options o{per_dimension(op, "stride", stride, dims, 1),
            per_dimension(op, "padding", padding, dims, 0),
            per_dimension(op, "dilation", dilation, dims, 1),
            per_dimension(op, "output_padding", output_padding, dims, 0),
            transposed,
            groups};
  for (int64_t d = 0; d < dims; ++d) {
    TORCH_CHECK(
        transposed ? o.output_padding[d] < std::max(o.stride[d], o.dilation[d]) : o.output_padding[d] == 0,
        "minidl::", op, ": output padding must be smaller than either stride or dilation",
        transposed ? "" : ", and 0 unless transposed", ", but got output_padding=", output_padding,
        " stride=", stride, " dilation=", dilation);
  }
  return o;
}

// Checks the tensors, and says what shape the output has.
SymShape convolution_shape(const char* op, const Tensor& x, const Tensor& w, const OptionalTensor& b,
                           const Options& o) {
  check_dtype(op, x);
  check_same_dtype(op, "input", x, "weight", w);
  TORCH_CHECK(x.dim() == w.dim(), "minidl::", op, ": expected an input of ", w.dim(),
              " dimensions, as weight has (", w.sym_sizes(), "), but got input of size: ", x.sym_sizes());
  const auto x_size = x.sym_sizes(), w_size = w.sym_sizes();
  TORCH_CHECK(w_size[0] >= o.groups && w_size[0] % o.groups == 0, "minidl::", op, ": Given groups=", o.groups,
              ", expected weight to be at least ", o.groups,
              " and divisible by it at dimension 0, but got weight of size ", w_size);
  const SymInt in_channels = o.transposed ? w_size[0] : w_size[1] * o.groups;
  const SymInt out_channels = o.transposed ? w_size[1] * o.groups : w_size[0];
  TORCH_CHECK(x_size[1] == in_channels, "minidl::", op, ": Given groups=", o.groups, ", weight of size ",
              w_size, ", expected input", x_size, " to have ", in_channels, " channels, but got ", x_size[1],
              " channels instead");
  if (b.has_value()) {
    check_same_dtype(op, "input", x, "bias", *b);
    TORCH_CHECK(b->dim() == 1 && b->sym_size(0) == out_channels, "minidl::", op, ": Given weight of size ",
                w_size, ", expected bias to be 1-dimensional with ", out_channels,
                " elements, but got bias of size ", b->sym_sizes());
  }
  SymShape shape{x_size[0], out_channels};
  for (int64_t d = 0; d < x.dim() - 2; ++d) {
    const SymInt kernel = w_size[d + 2], reach = o.dilation[d] * (kernel - 1) + 1;
    TORCH_CHECK(kernel > 0, "minidl::", op, ": expected a kernel without zero sizes, but got weight of size ",
                w_size);
    if (o.transposed) {
      const SymInt size = (x_size[d + 2] - 1) * o.stride[d] - 2 * o.padding[d] + reach + o.output_padding[d];
      TORCH_CHECK(size > 0, "minidl::", op, ": input ", x_size, " and weight ", w_size, " give an output of ",
                  size, " in dimension ", d + 2, "; output size is too small");
      shape.push_back(size);
    } else {
      const SymInt padded = x_size[d + 2] + 2 * o.padding[d];
      TORCH_CHECK(padded >= reach, "minidl::", op, ": Calculated padded input size: ", padded,
                  ", kernel size: ", reach, " in dimension ", d + 2, " of input ", x_size, " and weight ",
                  w_size, ". Kernel size can't be greater than actual input size");
      shape.push_back((padded - reach) / o.stride[d] + 1);
    }
  }
  return shape;
}

bool is_channels_last(const Tensor& x) { return x.suggest_memory_format() == at::MemoryFormat::ChannelsLast; }
at::MemoryFormat format_of(const Tensor& x) {
  return is_channels_last(x) ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

template <class T>
ImageView<T> image_view(const Tensor& x) {
  const auto pointer = [&] {
    if constexpr (std::is_const_v<T>) {
      return data<std::remove_const_t<T>>(x);
    } else {
      return mutable_data<T>(x);
    }
  }();
  const bool flat = x.dim() == 3;  // one dimension: pictures of a single row
  return {pointer,      x.stride(0),          x.stride(1), flat ? 0 : x.stride(2),
          x.stride(-1), flat ? 1 : x.size(2), x.size(-1)};
}

// The shape of the convolution that leads from x to y; a transposed one is read backwards.
ConvShape conv_shape(const Tensor& x, const Tensor& y, const Tensor& w, const Options& o) {
  ConvShape s{
      .n = x.size(0), .groups = o.groups, .in_channels = w.size(1), .out_channels = w.size(0) / o.groups};
  const int64_t dims = x.dim() - 2, missing = 2 - dims;
  for (int64_t d = 0; d < 2; ++d) {
    const int64_t e = d - missing;
    s.in[d] = e < 0 ? 1 : x.size(e + 2);
    s.out[d] = e < 0 ? 1 : y.size(e + 2);
    s.kernel[d] = e < 0 ? 1 : w.size(e + 2);
    s.stride[d] = e < 0 ? 1 : o.stride[e];
    s.padding[d] = e < 0 ? 0 : o.padding[e];
    s.dilation[d] = e < 0 ? 1 : o.dilation[e];
  }
  return s;
}

Tensor convolution(const Tensor& x, const Tensor& w, const OptionalTensor& b_, at::IntArrayRef stride,
                   at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                   at::IntArrayRef output_padding, int64_t groups, std::string_view activation_name) {
  const char* op = "convolution";
  const Activation activation = fused_activation(op, activation_name);
  const Options o = parse_options(op, w, stride, padding, dilation, transposed, output_padding, groups);
  const SymShape shape = convolution_shape(op, x, w, b_, o);
  Tensor y = output(shape, x, format_of(is_channels_last(x) ? x : w));
  if (y.is_meta()) return y;
  const OptionalTensor b = b_.has_value() ? OptionalTensor(b_->contiguous()) : b_;
  launch(op, x, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    const Epilogue<T> epilogue{data<T>(b), activation};
    if (transposed) {
      k.conv_backward_input(image_view<T>(y), image_view<const T>(x), image_view<const T>(w),
                            conv_shape(y, x, w, o), epilogue, ctx);
    } else {
      k.conv_forward(image_view<T>(y), image_view<const T>(x), image_view<const T>(w), conv_shape(x, y, w, o),
                     epilogue, ctx);
    }
  });
  return y;
}

using Wanted = std::array<bool, 3>;

// dz = dy * f' and db, the sum of dz over all but the channels; either may be undefined: not wanted.
void undo_epilogue(const char* op, const Tensor& dz, const Tensor& db, const Tensor& dy, const Tensor& y,
                   Activation f) {
  const int64_t pixels = dy.numel() / std::max<int64_t>(dy.size(0) * dy.size(1), 1);
  launch(op, dy, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    const T* y_data = y.defined() ? data<T>(y) : nullptr;
    if (is_channels_last(dy)) {
      k.epilogue_backward(mutable_data<T>(dz), mutable_data<T>(db), data<T>(dy), y_data, dy.size(0) * pixels,
                          dy.size(1), f, ctx);
    } else {
      k.planes_epilogue_backward(mutable_data<T>(dz), mutable_data<T>(db), data<T>(dy), y_data,
                                 {dy.size(0), dy.size(1), pixels}, f, ctx);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& dy_, const Tensor& x, const Tensor& w,
                                                        const OptionalTensor& y, at::IntArrayRef stride,
                                                        at::IntArrayRef padding, at::IntArrayRef dilation,
                                                        bool transposed, at::IntArrayRef output_padding,
                                                        int64_t groups, std::string_view activation_name,
                                                        Wanted wanted) {
  const char* op = "convolution_backward";
  const Activation activation = fused_activation(op, activation_name);
  const bool activated = activation.kind != ActivationKind::none;
  const Options o = parse_options(op, w, stride, padding, dilation, transposed, output_padding, groups);
  const SymShape shape = convolution_shape(op, x, w, {}, o);
  check_same_dtype(op, "dy", dy_, "input", x);
  TORCH_CHECK(dy_.sym_sizes() == c10::SymIntArrayRef(shape), "minidl::", op, ": dy of shape ",
              dy_.sym_sizes(), " does not fit input ", x.sym_sizes(), " and weight ", w.sym_sizes());
  TORCH_CHECK(y.has_value() == activated && (!activated || saves_output(activation.kind)), "minidl::", op,
              ": an output is needed for the activations relu, sigmoid and tanh, and for no other");
  if (activated) {
    check_same_dtype(op, "dy", dy_, "output", *y);
    check_same_shape(op, "dy", dy_, "output", *y);
  }
  const auto if_wanted = [&](bool is_wanted, const Tensor& like) {
    return is_wanted ? output(like.sym_sizes(), like, format_of(like)) : output({0}, dy_);
  };
  Tensor dx = if_wanted(wanted[0], x), dw = if_wanted(wanted[1], w);
  Tensor db = output({wanted[2] ? shape[1] : SymInt(0)}, dy_);
  if (dx.is_meta()) return {dx, dw, db};

  Tensor dz = dy_;
  if (activated || wanted[2]) {
    const auto format = format_of(activated ? *y : dy_);
    const Tensor dy = dy_.contiguous(format);
    dz = activated ? output(dy.sym_sizes(), dy, format) : dy;
    undo_epilogue(op, activated ? dz : Tensor(), wanted[2] ? db : Tensor(), dy,
                  activated ? y->contiguous(format) : Tensor(), activation);
  }
  launch(op, x, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    const auto view = [](const Tensor& t) { return image_view<const T>(t); };
    const ConvShape s = transposed ? conv_shape(dz, x, w, o) : conv_shape(x, dz, w, o);
    if (wanted[0] && transposed) k.conv_forward(image_view<T>(dx), view(dz), view(w), s, {}, ctx);
    if (wanted[0] && !transposed) k.conv_backward_input(image_view<T>(dx), view(dz), view(w), s, {}, ctx);
    if (wanted[1]) {
      k.conv_backward_weight(image_view<T>(dw), view(transposed ? x : dz), view(transposed ? dz : x), s, ctx);
    }
  });
  return {dx, dw, db};
}

class ConvolutionNode final : public Node {
 public:
  ConvolutionNode(Options options, std::string_view activation, bool has_bias)
      : Node("ConvolutionBackward"), o_(std::move(options)), activation_(activation), has_bias_(has_bias) {}

 private:
  variable_list backward(const Tensor& dy) override {
    const Tensor x = saved(0), w = saved(1);
    const OptionalTensor y = saved_optional(2);
    const Wanted want = {wanted(0), wanted(1), has_bias_ && wanted(2)};
    auto [dx, dw, db] = at::GradMode::is_enabled() ? differentiable_backward(dy, x, w, y, want)
                                                   : below_autograd(dy, x, w, y, want);
    return {want[0] ? dx : Tensor(), want[1] ? dw : Tensor(), want[2] ? db : Tensor()};
  }

  std::tuple<Tensor, Tensor, Tensor> below_autograd(const Tensor& dy, const Tensor& x, const Tensor& w,
                                                    const OptionalTensor& y, Wanted want) const {
    static const auto op = find_op<decltype(convolution_backward)>("minidl::convolution_backward");
    at::AutoDispatchBelowADInplaceOrView guard;
    return op.call(dy, x, w, y, o_.stride, o_.padding, o_.dilation, o_.transposed, o_.output_padding,
                   o_.groups, activation_, want);
  }

  std::tuple<Tensor, Tensor, Tensor> differentiable_backward(const Tensor& dy, const Tensor& x,
                                                             const Tensor& w, const OptionalTensor& y,
                                                             Wanted want) const {
    const Activation f = fused_activation("convolution", activation_);
    const Tensor dz = y.has_value() ? differentiable_activation_backward(dy, *y, f) : dy;
    const int64_t channels = dy.size(1);
    return at::convolution_backward(dz, x, w, at::OptionalIntArrayRef(channels), o_.stride, o_.padding,
                                    o_.dilation, o_.transposed, o_.output_padding, o_.groups, want);
  }

  Options o_;
  std::string activation_;
  bool has_bias_;
};

Tensor convolution_autograd(const Tensor& x, const Tensor& w, const OptionalTensor& b, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                            at::IntArrayRef output_padding, int64_t groups, std::string_view activation) {
  const char* op = "convolution";
  const bool graph = needs_graph(x) || needs_graph(w) || needs_graph(b);
  const bool activated = activation != "none";
  // Where the derivative needs the input z of the activation, z must exist: two nodes instead of one.
  if (graph && activated && !saves_output(fused_activation(op, activation).kind)) {
    return ops::activation(
        convolution_autograd(x, w, b, stride, padding, dilation, transposed, output_padding, groups, "none"),
        activation, 0, 0);
  }
  Tensor y = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return ops::convolution(x, w, b, stride, padding, dilation, transposed, output_padding, groups,
                            activation);
  }();
  if (!graph) return y;
  const auto node = make_node<ConvolutionNode>(
      parse_options(op, w, stride, padding, dilation, transposed, output_padding, groups), activation,
      b.has_value());
  link(y, node, x, w, b);
  node->save_input(x);
  node->save_input(w);
  activated ? node->save_output(y) : node->save_input(Tensor());
  return y;
}

}  // namespace

Tensor ops::convolution(const Tensor& x, const Tensor& w, const OptionalTensor& b, at::IntArrayRef stride,
                        at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                        at::IntArrayRef output_padding, int64_t groups, std::string_view activation) {
  static const auto op = find_op<decltype(ops::convolution)>("minidl::convolution");
  return op.call(x, w, b, stride, padding, dilation, transposed, output_padding, groups, activation);
}

TORCH_LIBRARY_FRAGMENT(minidl, m) {
  define_op(m, "convolution",
            "(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
            "bool transposed, int[] output_padding, int groups, str activation='none') -> Tensor",
            convolution, convolution_autograd);
  define_autocast<convolution, Cast::lower>(m, "convolution");
  define_backward_op(
      m, "convolution_backward",
      "(Tensor dy, Tensor input, Tensor weight, Tensor? output, int[] stride, int[] padding, int[] dilation, "
      "bool transposed, int[] output_padding, int groups, str activation, bool[3] wanted) "
      "-> (Tensor dx, Tensor dw, Tensor db)",
      convolution_backward);
}

}  // namespace minidl
