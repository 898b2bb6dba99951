// The shapes and checks that the operators of ops/pool.cpp share.
#pragma once
#include <array>

#include "ops/op.h"

namespace minidl {
namespace {

using c10::SymInt;
using SymShape = c10::SymDimVector;
using Pair = std::array<int64_t, 2>;  // of rows and columns

struct Pooling {
  Pair kernel{1, 1}, stride{1, 1}, padding{0, 0}, dilation{1, 1};
  bool ceil_mode = false;
  bool adaptive = false;  // the windows follow from the sizes of input and output, and the rest says nothing

  at::IntArrayRef kernel_list() const { return adaptive ? at::IntArrayRef() : at::IntArrayRef(kernel); }
};

inline Pair pair(const char* op, const char* name, at::IntArrayRef list) {
  TORCH_CHECK(list.size() == 1 || list.size() == 2, "minidl::", op, ": ", name,
              " must be a single int or a tuple of two ints, but got ", list);
  return {list.front(), list.back()};
}

// Without kernel_size: adaptive. So the backward operators say it.
inline Pooling pooling(const char* op, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  if (kernel_size.empty()) return {.adaptive = true};
  const Pair kernel = pair(op, "kernel_size", kernel_size);
  const Pooling p{kernel, stride.empty() ? kernel : pair(op, "stride", stride), pair(op, "padding", padding),
                  pair(op, "dilation", dilation), ceil_mode};
  for (const int d : {0, 1}) {
    TORCH_CHECK(p.kernel[d] > 0, "minidl::", op, ": kernel size should be greater than zero, but got ",
                kernel_size);
    TORCH_CHECK(p.stride[d] > 0, "minidl::", op, ": stride should be greater than zero, but got ", stride);
    TORCH_CHECK(p.dilation[d] > 0, "minidl::", op, ": dilation should be greater than zero, but got ",
                dilation);
    TORCH_CHECK(p.padding[d] >= 0 && p.padding[d] <= p.kernel[d] / 2, "minidl::", op,
                ": padding should be between zero and half of the kernel size, but got padding ", padding,
                " for kernel size ", kernel_size);
  }
  return p;
}

// Of axis d of p, windows every `stride` that begin inside the input or its left padding.
inline SymInt pooled_size(const Pooling& p, int d, const SymInt& in) {
  const int64_t stride = p.stride[d];
  const SymInt room = in + (2 * p.padding[d] - p.dilation[d] * (p.kernel[d] - 1) - 1);
  const SymInt rounded = p.ceil_mode ? room + (stride - 1) : room;
  if (rounded < 0) return 0;
  const SymInt out = rounded / stride + 1;
  return p.ceil_mode && (out - 1) * stride >= in + p.padding[d] ? out - 1 : out;
}

// The input's sizes but for the last two.
inline SymShape pooled_shape(const Tensor& x, const SymInt& height, const SymInt& width) {
  SymShape shape(x.sym_sizes().begin(), x.sym_sizes().end());
  shape[shape.size() - 2] = height;
  shape[shape.size() - 1] = width;
  return shape;
}

// Sizes may be 0 in the batch, and in the first `may_lack` of the three dimensions of an image.
inline void check_image(const char* op, const Tensor& x, int64_t may_lack = 0) {
  check_dtype(op, x);
  TORCH_CHECK(x.dim() == 3 || x.dim() == 4, "minidl::", op, ": expected a 3D or 4D input, but got ",
              x.sym_sizes());
  for (int64_t d = -3; d <= -1; ++d) {
    TORCH_CHECK(d < may_lack - 3 || x.sym_size(d) != 0, "minidl::", op,
                ": expected an input without empty dimensions but for the batch, but got ", x.sym_sizes());
  }
}

inline SymShape shape_of(const char* op, const Tensor& x, const Pooling& p) {
  TORCH_CHECK(!p.adaptive, "minidl::", op, ": kernel_size must not be empty");
  check_image(op, x);
  const SymInt height = pooled_size(p, 0, x.sym_size(-2)), width = pooled_size(p, 1, x.sym_size(-1));
  TORCH_CHECK(height > 0 && width > 0, "minidl::", op, ": the output ", height, "x", width,
              " is too small, of input ", x.sym_sizes(), " and kernel size ", at::IntArrayRef(p.kernel));
  return pooled_shape(x, height, width);
}

inline SymShape adaptive_shape_of(const char* op, const Tensor& x, c10::SymIntArrayRef output_size) {
  TORCH_CHECK(output_size.size() == 2, "minidl::", op, ": output_size must be two ints, but got ",
              output_size);
  TORCH_CHECK(output_size[0] >= 0 && output_size[1] >= 0, "minidl::", op,
              ": elements of output_size must not be negative, but got ", output_size);
  return pooled_shape(x, output_size[0], output_size[1]);
}

inline at::MemoryFormat format_of(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}
inline bool is_channels_last(const Tensor& x) {
  return x.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
}

inline PoolAxis axis(const Pooling& p, int d, int64_t in, int64_t out) {
  if (!p.adaptive) return {in, out, p.kernel[d], p.stride[d], p.padding[d], p.dilation[d], false};
  if (out > 0 && in % out == 0) return {in, out, in / out, in / out, 0, 1, false};
  return {in, out, out > 0 ? std::min(in, in / out + 2) : 1, 1, 0, 1, true};
}
inline PoolShape kernel_shape(const Pooling& p, at::IntArrayRef in, at::IntArrayRef out, bool channels_last) {
  const size_t n = in.size();
  return {n == 4 ? in[0] : 1, in[n - 3], axis(p, 0, in[n - 2], out[n - 2]), axis(p, 1, in[n - 1], out[n - 1]),
          channels_last};
}

// dy of a backward operator, and what of its sizes follows from the input's.
inline void check_dy(const char* op, const Tensor& dy, c10::SymIntArrayRef in) {
  check_dtype(op, dy);
  const auto out = dy.sym_sizes();
  TORCH_CHECK((in.size() == 3 || in.size() == 4) && in.size() == out.size() &&
                  in.slice(0, in.size() - 2) == out.slice(0, in.size() - 2),
              "minidl::", op, ": dy of shape ", out, " does not fit input ", in);
}

}  // namespace
}  // namespace minidl
