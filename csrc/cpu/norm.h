// What the normalisations share: moments and sums of runs that are contiguous, and the planes that they are
// made of where channels do not lie last. Statistics are in double from run to run, so that a large mean
// costs no digits: within a run values are taken relative to one of their size.
#pragma once
#include "activation.h"
#include "kernels.h"
#include "reduce.h"

namespace minidl::MINIDL_ISA {
namespace {

constexpr int64_t grain = 16384;  // elements below which one thread is quicker
constexpr int64_t piece = 4096;   // of a run: its sums are T's, those over pieces double's

// ---- runs -------------------------------------------------------------------------------------------------

struct Moments {
  double n = 0, mean = 0, m2 = 0;  // m2: the sum of (x - mean)^2

  // Chan, Golub and LeVeque, The American Statistician 37 (1983). The mean is a weighted one and not a step
  // from the old one, so that infinities stay infinite.
  MINIDL_INLINE void add(const Moments& other) {
    const double total = n + other.n, share = n / total, others_share = other.n / total;
    const double step = other.mean - mean;
    m2 += other.m2 + step * step * (n * others_share);
    mean = mean * share + other.mean * others_share;
    n = total;
  }
  // Rounding may take m2 below 0. Of no values the variance is 0: gradients of 0 times rstd are then 0.
  double variance() const { return n == 0 || m2 < 0 ? 0 : m2 / n; }
  double unbiased_variance() const { return variance() * (n / (n - 1)); }
};

inline double reciprocal_root(double variance, double eps) { return 1 / __builtin_sqrt(variance + eps); }

// The totals over [0, n) of what f(i, lanes, tag, sums) adds to its `count` sums; f keeps lanes without data
// out. Four independent chains hide the latency of the addition; they are emptied every 16 steps.
template <class T, int count, class F>
MINIDL_INLINE void sum_run(int64_t n, F f, double (&totals)[count]) {
  constexpr int64_t w = Vec<T>::width, chains = 4, step = chains * w;
  Vec<T> sums[count];
  int64_t i = 0;
  for (const int64_t whole = n / step * step; i < whole;) {
    Vec<T> chain[chains][count];
    for (const int64_t end = min_of(i + 16 * step, whole); i < end; i += step) {
      unroll<chains>([&](auto k) { f(i + k * w, w, Full{}, chain[k]); });
    }
    unroll<count>(
        [&](auto s) { sums[s] = sums[s] + ((chain[0][s] + chain[1][s]) + (chain[2][s] + chain[3][s])); });
  }
  for_lanes<T>(i, n, [&](int64_t j, int64_t lanes, auto tag) { f(j, lanes, tag, sums); });
  unroll<count>([&](auto s) { totals[s] = static_cast<double>(reduce_add(sums[s])); });
}

// In double from the start, for squares that T cannot hold, and for NaN and infinity.
template <class T>
Moments wide_moments(const T* x, int64_t n, int64_t stride) {
  Moments m{static_cast<double>(n)};
  for (int64_t i = 0; i < n; ++i) m.mean += static_cast<double>(x[i * stride]) / m.n;
  for (int64_t i = 0; i < n; ++i) {
    const double d = static_cast<double>(x[i * stride]) - m.mean;
    m.m2 += d * d;
  }
  return m;
}

// From the sums of x - shift and its square over n values that lie `stride` apart.
template <class T>
MINIDL_INLINE Moments shifted_moments(double sum, double square, T shift, const T* x, int64_t n,
                                      int64_t stride) {
  if (!(square - square == 0)) return wide_moments(x, n, stride);
  const double count = static_cast<double>(n), mean = sum * (1 / count);
  return {count, static_cast<double>(shift) + mean, square - sum * mean};
}

// One pass over a piece of a run, relative to the mean of its first elements: whatever these are, that is
// near enough to the mean of all to cost at most the digits of n / 64.
template <class T>
MINIDL_INLINE Moments piece_moments(const T* x, int64_t n) {
  const int64_t head = min_of(n, 64);
  Vec<T> first;
  for_lanes<T>(0, head,
               [&](int64_t i, int64_t lanes, auto tag) { first = first + load_lanes(x + i, lanes, tag); });
  const T mean = reduce_add(first) / static_cast<T>(head), shift = mean - mean == 0 ? mean : T(0);
  double sums[2];
  sum_run<T>(
      n,
      [&](int64_t i, int64_t lanes, auto tag, Vec<T>(&s)[2]) {
        const Vec<T> d = keep_lanes(load_lanes(x + i, lanes, tag) - shift, lanes, T(0), tag);
        s[0] = s[0] + d;
        s[1] = fmadd(d, d, s[1]);
      },
      sums);
  return shifted_moments(sums[0], sums[1], shift, x, n, 1);
}

// ---- one channel ------------------------------------------------------------------------------------------

// z = (x - mean) * scale + shift, where shift makes up for the rounding of the mean to T.
template <class T>
struct Channel {
  T mean, scale, shift;

  Channel(double mean_, double rstd, NormAffine<T> a, int64_t c) : mean(static_cast<T>(mean_)) {
    const double s = a.w ? rstd * static_cast<double>(a.w[c]) : rstd;
    scale = static_cast<T>(s);
    shift = static_cast<T>((a.b ? static_cast<double>(a.b[c]) : 0) + (static_cast<double>(mean) - mean_) * s);
  }
  MINIDL_INLINE Vec<T> z(Vec<T> x) const { return fmadd(x - mean, scale, shift); }
};

// The sums over a piece, a column or a set of them that gradients are made of: of dz, and of dz * (x - mean).
struct GradientSums {
  double dz = 0, dz_x = 0;
  void add(GradientSums o, double factor = 1) {
    dz += factor * o.dz;
    dz_x += factor * o.dz_x;
  }
  // Of sums relative to a mean that was rounded.
  GradientSums relative_to(double mean, double rounded_mean) const {
    return {dz, dz_x + (rounded_mean - mean) * dz};
  }
};

// dx = rstd * (g + offset + (x - mean) * slope) for g = w * dz, where mean and variance are those of x: from
// the sums of g over all n values that share them (Ioffe and Szegedy, arXiv:1502.03167). In this order what
// all g have in common is gone before anything is rounded.
template <class T>
struct ChannelGradient {
  T slope, offset;

  ChannelGradient(double mean, double rounded_mean, double rstd, GradientSums g, double n) {
    const double s = -rstd * rstd * g.dz_x / n;
    slope = static_cast<T>(s);
    offset = static_cast<T>((rounded_mean - mean) * s - g.dz / n);
  }
};

template <class T, class F>
void visit_relu(bool relu, F visit) {
  relu ? visit(Relu<T>{}) : visit(Identity<T>{});
}

}  // namespace
}  // namespace minidl::MINIDL_ISA
