// Normalisation over planes, rows and columns, with sets that are walked twice in cache and sets that are
// not.
#pragma once
#include "check.h"

namespace {

// Not special: beside a NaN or an infinity everything is NaN, in every table.
template <class T>
void check_norms(ChannelShape s, int64_t groups, double mean) {
  const int64_t n = s.outer * s.channels * s.inner, sets = s.outer * groups;
  const auto x = random<T>(n, mean - 2, mean + 2), dy = random<T>(n), w = random<T>(s.channels),
             b = random<T>(s.channels);
  const auto running_mean = random<T>(s.channels), running_var = random<T>(s.channels, 0.5, 2);
  for (int v = 0; v < 4; ++v) {
    const NormAffine<T> a{v % 3 ? w.data() : nullptr, v % 2 ? b.data() : nullptr, v > 1};
    const bool training = v != 1;
    const T *given_mean = training ? nullptr : running_mean.data(),
            *given_var = training ? nullptr : running_var.data();
    const std::string size = sizes("outer %ld, channels %ld, inner %ld, groups %ld, mean %ld, variant %ld",
                                   s.outer, s.channels, s.inner, groups, mean, v);
    const Buffer<double> stats(3 * s.channels), group_stats(2 * sets);
    const Context one{.workspace = thread_workspace};
    workspaces_now = 0;
    of<T>(*tables[0])
        .batch_norm_forward(Buffer<T>(n).data(), stats.data(), x.data(), given_mean, given_var, a, s, 0.1,
                            one);
    workspaces_now = 0;
    of<T>(*tables[0])
        .group_norm_forward(Buffer<T>(n).data(), group_stats.data(), x.data(), a, s, groups, 0.1, one);
    check<T>(
        "batch_norm_forward", size, {{n}, {stats.n}}, RUN {
          const Buffer<double> own(stats.n);
          k.batch_norm_forward(o[0], own.data(), x.data(), given_mean, given_var, a, s, 0.1, ctx);
          std::copy_n(own.data(), own.n, o[1]);
        });
    check<T>(
        "batch_norm_forward", size + ", in place", {{n, x.data()}}, RUN {
          const Buffer<double> own(stats.n);
          k.batch_norm_forward(o[0], own.data(), o[0], given_mean, given_var, a, s, 0.1, ctx);
        });
    check<T>(
        "group_norm_forward", size, {{n}, {group_stats.n}}, RUN {
          const Buffer<double> own(group_stats.n);
          k.group_norm_forward(o[0], own.data(), x.data(), a, s, groups, 0.1, ctx);
          std::copy_n(own.data(), own.n, o[1]);
        });
    for (int wanted = 1; wanted < 8; ++wanted) {
      const auto pick = [&](int bit, T* p) { return wanted & bit ? p : nullptr; };
      const int64_t counts[] = {wanted & 1 ? n : 0, wanted & 2 ? s.channels : 0, wanted & 4 ? s.channels : 0};
      const std::vector<Output<T>> outputs = {{counts[0]}, {counts[1]}, {counts[2]}};
      const std::string name = size + sizes(", wanted %ld", wanted);
      check<T>(
          "batch_norm_backward", name, outputs, RUN {
            k.batch_norm_backward(pick(1, o[0]), pick(2, o[1]), pick(4, o[2]), dy.data(), x.data(),
                                  stats.data(), a, s, training, ctx);
          });
      check<T>(
          "group_norm_backward", name, outputs, RUN {
            k.group_norm_backward(pick(1, o[0]), pick(2, o[1]), pick(4, o[2]), dy.data(), x.data(),
                                  group_stats.data(), a, s, groups, ctx);
          });
    }
    check<T>(
        "batch_norm_update", size, {{s.channels, running_mean.data()}, {s.channels, running_var.data()}},
        RUN { k.batch_norm_update(o[0], o[1], stats.data(), n > 1 ? s.channels : 0, 0.1, ctx); });
  }
}

// Past the pieces of planes and rows, the blocks of rows and of columns, and the chunks of samples; past L2.
#ifdef MINIDL_SIM  // whose time is for what csrc/cuda cuts at: vectors, warps and blocks
const int64_t channel_counts[] = {0, 1, 2, 6, 36}, inner_counts[] = {0, 1, 5, 8, 34};
const ChannelShape large_shapes[] = {{1, 2, 4133}, {5, 2, 1000}, {2, 2133, 1}, {2, 1032, 1}, {300, 21, 1}};
#else
const int64_t channel_counts[] = {0, 1, 2, 6, 18, 68}, inner_counts[] = {0, 1, 2, 5, 17, 67};
const ChannelShape large_shapes[] = {{2, 3, 4133}, {3, 4133, 1}, {700, 21, 1}, {130, 300, 1}, {90, 2, 1500}};
#endif

template <class T>
void check_norm() {
  for (const int64_t outer : {0, 1, 3}) {
    for (const int64_t channels : channel_counts) {
      for (const int64_t inner : inner_counts) {
        if (outer * channels * inner == channels)
          continue;  // of one value each the variance is rounding alone
        for (const int64_t groups : {1, 2}) {
          if (channels % groups == 0 && channels * inner != groups)
            check_norms<T>({outer, channels, inner}, groups, outer);
        }
      }
    }
  }
  for (const ChannelShape s : large_shapes) check_norms<T>(s, 1, 1);
}

}  // namespace
