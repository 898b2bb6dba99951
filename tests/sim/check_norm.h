// Normalisation of 16-bit types, and of numbers that float has no squares of.
#pragma once
#include "native/check_norm.h"
#include "sim/narrow.h"

namespace {

template <class T>
void check_narrow_norms(ChannelShape s, int64_t groups) {
  const int64_t n = s.outer * s.channels * s.inner, sets = s.outer * groups;
  const Both<T> x(n, -1, 3), dy(n), w(s.channels), b(s.channels), mean(s.channels), var(s.channels, 0.5f, 2);
  for (int v = 0; v < 3; ++v) {
    const bool relu = v > 0, given = v == 2;
    const std::string size = sizes("outer %ld, channels %ld, inner %ld, groups %ld, variant %ld", s.outer,
                                   s.channels, s.inner, groups, v);
    const auto affine = [&]<class U>(U) {
      return NormAffine<U>{w.template as<U>(), b.template as<U>(), relu};
    };
    // The scalar table's, for the gradients of both.
    const Buffer<double> stats(3 * s.channels), group_stats(2 * sets);
    const auto forward = [&](auto& k, auto* y, double* to, Context ctx) {
      using U = std::remove_reference_t<decltype(*y)>;
      k.batch_norm_forward(y, to, x.template as<U>(), given ? mean.template as<U>() : nullptr,
                           given ? var.template as<U>() : nullptr, affine(U{}), s, 0.1, ctx);
    };
    const auto& scalar = of<float>(*tables[0]);
    const Context one{.workspace = thread_workspace};
    workspaces_now = 0;
    forward(scalar, Buffer<float>(n).data(), stats.data(), one);
    workspaces_now = 0;
    scalar.group_norm_forward(Buffer<float>(n).data(), group_stats.data(), x.wide.data(), affine(0.0f), s,
                              groups, 0.1, one);
    check_narrow<T>(
        "batch_norm_forward", size, {n}, {stats.n}, RUN_NARROW {
          const Buffer<double> own(stats.n);
          forward(k, o[0], own.data(), ctx);
          std::copy_n(own.data(), own.n, w[0]);
        });
    check_narrow<T>(
        "group_norm_forward", size, {n}, {group_stats.n}, RUN_NARROW {
          const Buffer<double> own(group_stats.n);
          k.group_norm_forward(o[0], own.data(), x.template as<U>(), affine(U{}), s, groups, 0.1, ctx);
          std::copy_n(own.data(), own.n, w[0]);
        });
    check_narrow<T>(
        "batch_norm_backward", size, {n, s.channels, s.channels}, {}, RUN_NARROW {
          k.batch_norm_backward(o[0], o[1], o[2], dy.template as<U>(), x.template as<U>(), stats.data(),
                                affine(U{}), s, !given, ctx);
        });
    check_narrow<T>(
        "group_norm_backward", size, {n, s.channels, s.channels}, {}, RUN_NARROW {
          k.group_norm_backward(o[0], o[1], o[2], dy.template as<U>(), x.template as<U>(), group_stats.data(),
                                affine(U{}), s, groups, ctx);
        });
    check_narrow<T>(
        "batch_norm_update", size, {s.channels, s.channels}, {}, RUN_NARROW {
          std::copy_n(mean.template as<U>(), s.channels, o[0]);
          std::copy_n(var.template as<U>(), s.channels, o[1]);
          k.batch_norm_update(o[0], o[1], stats.data(), s.channels, 0.1, ctx);
        });
  }
}

template <class T>
void check_narrow_norm() {
  for (const ChannelShape s :
       {ChannelShape{3, 6, 1}, {5, 16, 1}, {2, 4, 7}, {3, 4, 16}, {2, 2080, 1}, {40, 2, 136}}) {
    for (const int64_t groups : {1, 2}) check_narrow_norms<T>(s, groups);
  }
}

// A sum of squares beyond float, or a mean far from 0, costs no digits; NaN and infinity stay in their set.
void check_norm_extremes() {
  for (const ChannelShape s : {ChannelShape{9, 3, 1}, {4, 3, 5}, {3, 3, 8}, {3, 40, 1}}) {
    check_norms<float>(s, 1, 3000);
    const int64_t n = s.outer * s.channels * s.inner;
    const Buffer<float> x = random<float>(n, -1e25, 1e25);
    x.data()[0] = NAN;
    x.data()[n - 1] = INFINITY;
    const NormAffine<float> a{nullptr, nullptr, false};
    const std::string size =
        sizes("extremes, outer %ld, channels %ld, inner %ld", s.outer, s.channels, s.inner);
    check<float>(
        "batch_norm_forward", size, {{n}, {3 * s.channels}}, RUN {
          const Buffer<double> own(3 * s.channels);
          k.batch_norm_forward(o[0], own.data(), x.data(), nullptr, nullptr, a, s, 0.1, ctx);
          std::copy_n(own.data(), own.n, o[1]);
        });
    check<float>(
        "group_norm_forward", size, {{n}, {2 * s.outer}}, RUN {
          const Buffer<double> own(2 * s.outer);
          k.group_norm_forward(o[0], own.data(), x.data(), a, s, 1, 0.1, ctx);
          std::copy_n(own.data(), own.n, o[1]);
        });
  }
}

}  // namespace
