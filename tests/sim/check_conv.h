// What only the CUDA table has of convolutions: 16-bit types and tf32 on tensor cores, where operands are read in
// vectors or one by one; groups that take no tensor core; sums long enough to be split.
#pragma once
#include "native/check_conv.h"
#include "sim/narrow.h"

namespace {

template <class U, class T>
const U* input(const Both<T>& x) {
  return x.template as<U>();
}

struct NarrowConvolution {
  ConvShape s;
  int channels_last;  // bits: of x, y, w
};

template <class T>
void check_narrow_convolution(const NarrowConvolution& c, int round) {
  ConvShape s = c.s;
  for (int d = 0; d < 2; ++d) {
    s.out[d] = (s.in[d] + 2 * s.padding[d] - s.dilation[d] * (s.kernel[d] - 1) - 1) / s.stride[d] + 1;
  }
  const int64_t in = s.groups * s.in_channels, out = s.groups * s.out_channels;
  const int64_t x_size = s.n * in * s.in[0] * s.in[1], y_size = s.n * out * s.out[0] * s.out[1];
  const int64_t w_size = out * s.in_channels * s.kernel[0] * s.kernel[1];
  const Both<T> x(x_size, -1, 1), weight(w_size, -1, 1), dy(y_size, -1, 1), b(out), bx(in);
  const auto view_x = [&](auto* p) { return pictures(p, in, s.in[0], s.in[1], c.channels_last & 1); };
  const auto view_y = [&](auto* p) { return pictures(p, out, s.out[0], s.out[1], c.channels_last & 2); };
  const auto view_w = [&](auto* p) {
    return pictures(p, s.in_channels, s.kernel[0], s.kernel[1], c.channels_last & 4);
  };
  const Activation f{static_cast<ActivationKind>(round % 3)};  // none, relu, leaky_relu
  const bool tf32 = sizeof(T) == 4;
  const std::string size = sizes(
      "n %ld, groups %ld, channels %ld to %ld, in %ld x %ld, kernel %ld, stride %ld, order %ld", s.n,
      s.groups, s.in_channels, s.out_channels, s.in[0], s.in[1], s.kernel[0], s.stride[0], c.channels_last);
  check_narrow<T>(
      "conv_forward", size, {y_size}, {},
      RUN_NARROW {
        const Epilogue<U> epilogue{round % 2 ? b.template as<U>() : nullptr, f};
        k.conv_forward(view_y(o[0]), view_x(input<U>(x)), view_w(input<U>(weight)), s, epilogue, ctx);
      },
      tf32);
  check_narrow<T>(
      "conv_backward_input", size, {x_size}, {},
      RUN_NARROW {
        const Epilogue<U> epilogue{round % 2 ? nullptr : bx.template as<U>(), f};
        k.conv_backward_input(view_x(o[0]), view_y(input<U>(dy)), view_w(input<U>(weight)), s, epilogue, ctx);
      },
      tf32);
  check_narrow<T>(
      "conv_backward_weight", size, {w_size}, {},
      RUN_NARROW { k.conv_backward_weight(view_w(o[0]), view_y(input<U>(dy)), view_x(input<U>(x)), s, ctx); },
      tf32);
}

template <class T>
void check_narrow_conv() {
  const ConvShape shapes[] = {
      // n, groups, channels in and out, in, out, kernel, stride, padding, dilation
      {2, 1, 8, 16, {7, 9}, {}, {3, 3}, {1, 1}, {1, 1}, {1, 1}},
      {1, 2, 16, 24, {9, 8}, {}, {3, 2}, {2, 1}, {1, 0}, {1, 2}},
      {3, 1, 3, 5, {6, 11}, {}, {2, 3}, {2, 3}, {0, 2}, {2, 1}},
      {1, 1, 40, 72, {5, 5}, {}, {1, 1}, {1, 1}, {0, 0}, {1, 1}},
      {2, 12, 1, 2, {8, 7}, {}, {3, 3}, {2, 1}, {1, 1}, {1, 1}},
      {0, 1, 8, 8, {5, 5}, {}, {3, 3}, {1, 1}, {1, 1}, {1, 1}},
      {2, 1, 72, 136, {12, 13}, {}, {1, 2}, {1, 1}, {0, 1}, {1, 1}},  // large tiles
  };
  int round = 0;
  for (const ConvShape& s : shapes) {
    for (const int order : {0, 7, 3, 4}) check_narrow_convolution<T>({s, order}, round++);
  }
  if constexpr (sizeof(T) == 2) {
    for (const int64_t inner : {3, 8, 700}) {
      const ClassShape s{3, 5, inner};
      const int64_t n = 15 * inner;
      const Both<T> dy(n), y(n);
      check_narrow<T>(
          "planes_epilogue_backward", sizes("inner %ld", inner), {n, 5}, {}, RUN_NARROW {
            k.planes_epilogue_backward(o[0], o[1], dy.template as<U>(), y.template as<U>(), s,
                                       Activation{ActivationKind::tanh}, ctx);
          });
    }
  }
}

}  // namespace
