// Convolutions: both orders of memory, strides, dilation, padding, groups, one group a channel, and what is left over.
#pragma once
#include "check.h"

namespace {

// Dense pictures, the channels of a pixel side by side or a plane each.
template <class T>
ImageView<T> pictures(T* data, int64_t channels, int64_t height, int64_t width, bool channels_last) {
  if (channels_last) return {data, channels * height * width, 1, width * channels, channels, height, width};
  return {data, channels * height * width, height * width, width, 1, height, width};
}

template <class T>
void check_convolution(const ConvShape& s, int round) {
  const int64_t in = s.groups * s.in_channels, out = s.groups * s.out_channels;
  const int64_t x_size = s.n * in * s.in[0] * s.in[1], y_size = s.n * out * s.out[0] * s.out[1];
  const int64_t w_size = out * s.in_channels * s.kernel[0] * s.kernel[1];
  const auto x = random<T>(x_size, -1, 1), w = random<T>(w_size, -1, 1), dy = random<T>(y_size, -1, 1),
             b = random<T>(out), bx = random<T>(in);
  const auto view_x = [&](auto* p) { return pictures(p, in, s.in[0], s.in[1], round & 1); };
  const auto view_y = [&](auto* p) { return pictures(p, out, s.out[0], s.out[1], round & 2); };
  const auto view_w = [&](auto* p) {
    return pictures(p, s.in_channels, s.kernel[0], s.kernel[1], round & 4);
  };
  const Activation f{static_cast<ActivationKind>(round % 9), 1, 20};
  const std::string size = sizes(
      "n %ld, groups %ld, channels %ld to %ld, in %ld x %ld, kernel %ld x %ld, stride %ld %ld, padding %ld "
      "%ld, "
      "dilation %ld %ld, round %ld",
      s.n, s.groups, s.in_channels, s.out_channels, s.in[0], s.in[1], s.kernel[0], s.kernel[1], s.stride[0],
      s.stride[1], s.padding[0], s.padding[1], s.dilation[0], s.dilation[1], round);
  const T *xp = x.data(), *wp = w.data(), *dyp = dy.data();
  check<T>(
      "conv_forward", size, {{y_size}}, RUN {
        k.conv_forward(view_y(o[0]), view_x(xp), view_w(wp), s, {round % 3 ? b.data() : nullptr, f}, ctx);
      });
  check<T>(
      "conv_backward_input", size, {{x_size}}, RUN {
        k.conv_backward_input(view_x(o[0]), view_y(dyp), view_w(wp), s, {round % 3 ? nullptr : bx.data(), f},
                              ctx);
      });
  check<T>(
      "conv_backward_weight", size, {{w_size}},
      RUN { k.conv_backward_weight(view_w(o[0]), view_y(dyp), view_x(xp), s, ctx); });
}

template <class T>
void check_conv() {
  int round = 0;
  const auto run = [&](int64_t n, int64_t groups, int64_t in, int64_t out, int64_t side, int64_t kernel,
                       int64_t stride, int64_t padding, int64_t dilation) {
    ConvShape s{n,
                groups,
                in,
                out,
                {side, side + 3},
                {},
                {kernel, kernel + 1 - round % 2},
                {stride, 1 + round % 3},
                {padding, round % 3},
                {dilation, 1 + round % 2}};
    for (int d = 0; d < 2; ++d) {
      const int64_t room = s.in[d] + 2 * s.padding[d] - s.dilation[d] * (s.kernel[d] - 1) - 1;
      s.out[d] = room < 0 ? 0 : room / s.stride[d] + 1;
    }
    check_convolution<T>(s, round++);
  };
  for (const int64_t in : {1, 3, 17}) {
    for (const int64_t out : {1, 5, 16, 67}) {
      for (const int64_t stride : {1, 2, 3}) {
        for (const int64_t n : {0, 1, 3}) run(n, 1 + round % 2, in, out, 6, 3, stride, 1, 1 + round % 2);
      }
    }
  }
  for (const int64_t groups : {2, 5, 70})
    run(2, groups, 1, 1, 7, 3, 1 + groups % 2, 1, 1);  // a group a channel
  run(1, 1, 70, 9, 12, 4, 1, 2, 1);                    // several blocks of k
  run(7, 1, 3, 4, 1, 2, 1, 1, 1);                      // pictures taken together
  run(1, 1, 2, 3, 61, 5, 2, 0, 3);                     // several units
  run(1, 1, 2, 3, 4, 1, 4, 0, 1);                      // pixels that no tap reaches
  for (const int64_t planes : {0, 1, 7}) {
    for (const int64_t inner : {0, 1, 5, 16, 67, 3001}) {
      const ClassShape s{3, planes, inner};
      const int64_t n = 3 * planes * inner;
      const auto dy = random<T>(n), y = random<T>(n);
      check<T>(
          "planes_epilogue_backward", sizes("relu, planes %ld, inner %ld", planes, inner), {{n}, {planes}},
          RUN {
            k.planes_epilogue_backward(o[0], o[1], dy.data(), y.data(), s, {ActivationKind::relu}, ctx);
          });
      check<T>(
          "planes_epilogue_backward", sizes("none, planes %ld, inner %ld", planes, inner), {{planes}},
          RUN { k.planes_epilogue_backward(nullptr, o[0], dy.data(), nullptr, s, {}, ctx); });
    }
  }
}

}  // namespace
