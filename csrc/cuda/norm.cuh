// What the normalisations share. Sums of a thread or block are Wide<T>'s, those of their sums double's, always in
// the same order.
#pragma once
#include "activation.cuh"
#include "reduce.cuh"

namespace minidl::cuda {
namespace {

constexpr int norm_block = 256;
// Threads of the block that takes n values: a warp where these are few.
inline int norm_threads(int64_t n) { return n <= 1024 ? 32 : norm_block; }

// ---- moments

struct Moments {
  double n, mean, m2;  // m2: the sum of (x - mean)^2

  // Chan, Golub and LeVeque, The American Statistician 37 (1983). The mean is a weighted one and not a step
  // from the old one, so that infinities stay infinite.
  MINIDL_DEVICE void add(const Moments& other) {
    const double total = n + other.n;
    if (total == 0) return;
    const double share = n / total, others_share = other.n / total, step = other.mean - mean;
    m2 += other.m2 + step * step * (n * others_share);
    mean = mean * share + other.mean * others_share;
    n = total;
  }
  // Lane 0 gets the moments of the warp.
  MINIDL_DEVICE void merge_warp() {
    MINIDL_UNROLL for (int bits = 16; bits > 0; bits /= 2) {
      add({__shfl_xor_sync(full_mask, n, bits), __shfl_xor_sync(full_mask, mean, bits),
           __shfl_xor_sync(full_mask, m2, bits)});
    }
  }
  // Rounding may take m2 below 0. Of no values the variance is 0: gradients of 0 times rstd are then 0.
  MINIDL_DEVICE double variance() const { return n == 0 || m2 < 0 ? 0 : m2 / n; }
  MINIDL_DEVICE double unbiased_variance() const { return variance() * (n / (n - 1)); }
};

MINIDL_DEVICE double reciprocal_root(double variance, double eps) { return 1 / sqrt(variance + eps); }

// Who has values together.
struct OneThread {
  template <class A>
  MINIDL_DEVICE A sum(A v) const {
    return v;
  }
};
struct WholeBlock {
  template <class A>
  MINIDL_DEVICE A sum(A v) const {
    return block_sum(v);
  }
};

// The moments of n > 0 values; each(visit) calls visit with those of this thread. The second look at them, relative
// to a mean that is rough only by rounding, leaves nothing to cancel.
template <class A, class Team, class Each>
MINIDL_DEVICE Moments moments_in(Team team, int64_t n, Each each) {
  A total = 0, sum = 0, square = 0;
  each([&](auto v) { total += static_cast<A>(v); });
  const A rough = team.sum(total) / static_cast<A>(n), shift = rough - rough == A(0) ? rough : A(0);
  each([&](auto v) {
    const A d = static_cast<A>(v) - shift;
    sum += d, square += d * d;
  });
  const double count = static_cast<double>(n), rest = static_cast<double>(team.sum(sum)), mean = rest / count;
  return {count, static_cast<double>(shift) + mean, static_cast<double>(team.sum(square)) - rest * mean};
}
// Values whose squares are beyond float, and NaN and infinity, are looked at again in double.
template <class W, class Team, class Each>
MINIDL_DEVICE Moments moments_of(Team team, int64_t n, Each each) {
  if (n == 0) return {};
  const Moments m = moments_in<W>(team, n, each);
  return sizeof(W) == 8 || m.m2 - m.m2 == 0 ? m : moments_in<double>(team, n, each);
}

// ---- what is done with them

// (x - mean) * rstd + shift is the normalised x: shift makes up for the rounding of the mean.
template <class W>
struct Normal {
  W mean, rstd, shift;
  MINIDL_DEVICE Normal(W mean_, W rstd_, W shift_) : mean(mean_), rstd(rstd_), shift(shift_) {}
  MINIDL_DEVICE Normal(double mean_, double rstd_)
      : mean(static_cast<W>(mean_)),
        rstd(static_cast<W>(rstd_)),
        shift(static_cast<W>((static_cast<double>(mean) - mean_) * rstd_)) {}
  MINIDL_DEVICE W of(W x) const { return (x - mean) * rstd + shift; }
};

template <class T>
MINIDL_DEVICE Wide<T> weight(const NormAffine<T>& a, int64_t c) {
  return a.w ? widen(a.w[c]) : Wide<T>(1);
}
template <class T>
MINIDL_DEVICE Wide<T> bias(const NormAffine<T>& a, int64_t c) {
  return a.b ? widen(a.b[c]) : Wide<T>(0);
}
// dz, where z = w * normalised + b was what relu saw.
template <class T>
MINIDL_DEVICE Wide<T> through_relu(const NormAffine<T>& a, Wide<T> dy, Wide<T> normalised, Wide<T> w,
                                   Wide<T> b) {
  return a.relu ? Relu<Wide<T>>{}.backward(dy, normalised * w + b) : dy;
}

// The sums that gradients are made of: of dz, and of dz times the normalised x.
struct GradientSums {
  double dz, dz_x;
  MINIDL_DEVICE void add(const GradientSums& o, double factor = 1) {
    dz += factor * o.dz, dz_x += factor * o.dz_x;
  }
  MINIDL_DEVICE void merge_warp() { dz = warp_reduce<Sum>(dz), dz_x = warp_reduce<Sum>(dz_x); }
};

// dx = rstd * (g + offset + (x - mean) * slope) for g = w * dz, where mean and variance are those of x: from the
// sums of g over all n values that share them (Ioffe and Szegedy, arXiv:1502.03167). In this order what all g have
// in common is gone before anything is rounded.
template <class W>
struct Slope {
  W slope, offset;
  MINIDL_DEVICE Slope(W slope_, W offset_) : slope(slope_), offset(offset_) {}
  MINIDL_DEVICE Slope(double mean, double rstd, GradientSums g, double n) {
    const double s = -rstd * g.dz_x / n, rounded = static_cast<double>(static_cast<W>(mean));
    slope = static_cast<W>(s);
    offset = static_cast<W>((rounded - mean) * s - g.dz / n);
  }
  MINIDL_DEVICE W dx(W g, W x, const Normal<W>& normal) const {
    return ((g + offset) + (x - normal.mean) * slope) * normal.rstd;
  }
};

// Normal and Slope of every mean, each number in an array of its own.
template <class W>
struct NormTable {
  W *mean, *rstd, *shift, *slope, *offset;
  static size_t bytes(int64_t sets) { return 5 * static_cast<size_t>(sets) * sizeof(W); }
  NormTable(void* memory, int64_t sets)
      : mean(static_cast<W*>(memory)),
        rstd(mean + sets),
        shift(rstd + sets),
        slope(shift + sets),
        offset(slope + sets) {}
  MINIDL_DEVICE void set(int64_t i, const Normal<W>& n) const {
    mean[i] = n.mean, rstd[i] = n.rstd, shift[i] = n.shift;
  }
  MINIDL_DEVICE void set(int64_t i, const Slope<W>& s) const { slope[i] = s.slope, offset[i] = s.offset; }
  MINIDL_DEVICE Normal<W> normal(int64_t i) const { return {mean[i], rstd[i], shift[i]}; }
};

template <class W>
__global__ void __launch_bounds__(map_block)
    norm_table_kernel(NormTable<W> table, const double* mean, const double* rstd, int64_t sets) {
  ThreadShare{}.each<1>(sets, false, [&](int64_t i, auto) { table.set(i, Normal<W>(mean[i], rstd[i])); });
}
template <class W>
void fill_table(NormTable<W> table, const double* stats, int64_t sets, const Context& ctx) {
  launch(norm_table_kernel<W>, grid_stride_blocks(sets, map_block, ctx), map_block, 0, ctx, table, stats,
         stats + sets, sets);
}

}  // namespace
}  // namespace minidl::cuda
