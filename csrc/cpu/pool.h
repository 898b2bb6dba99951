// The geometry of pooling: which inputs an output's window holds, which windows hold an input. Divisions,
// which take as long as a row of a small window, are kept to edges and adaptive windows.
#pragma once
#include "kernels.h"
#include "vec.h"

namespace minidl::MINIDL_ISA {
namespace {

// The inputs begin + k * dilation, k < count, of a window: its places first, first + 1, ...
struct Window {
  int64_t begin, count, first;
};

MINIDL_INLINE int64_t window_start(const PoolAxis& a, int64_t o) {
  return a.adaptive ? o * a.in / a.out : o * a.stride - a.padding;
}

MINIDL_INLINE Window window_of(const PoolAxis& a, int64_t o) {
  const int64_t start = window_start(a, o);
  if (a.adaptive) return {start, ceil_div((o + 1) * a.in, a.out) - start, 0};
  const int64_t first = start >= 0 ? 0 : a.dilation == 1 ? -start : ceil_div(-start, a.dilation);
  const int64_t begin = start + first * a.dilation;
  int64_t end = a.kernel;
  if (start + (end - 1) * a.dilation >= a.in) end = first + max_of(0, ceil_div(a.in - begin, a.dilation));
  return {begin, end - first, first};
}

// The outputs [begin, end) whose windows are cut by neither edge.
struct Outputs {
  int64_t begin, end;
};
MINIDL_INLINE Outputs whole_windows(const PoolAxis& a) {
  if (a.adaptive) return {0, 0};
  const int64_t last_start = a.in + a.padding - 1 - (a.kernel - 1) * a.dilation;  // + padding
  const int64_t begin = min_of(ceil_div(a.padding, a.stride), a.out);
  return {begin, max_of(begin, last_start < 0 ? 0 : min_of(last_start / a.stride + 1, a.out))};
}

// The place of input i in the window of o, or -1.
MINIDL_INLINE int64_t place_in(const PoolAxis& a, int64_t o, int64_t i) {
  const int64_t offset = i - window_start(a, o);
  if (a.dilation == 1) return offset;
  return offset % a.dilation == 0 ? offset / a.dilation : -1;
}

// The outputs [begin, end) whose windows reach over input i; for increasing i by steps that do not divide.
struct Cover {
  int64_t begin = 0, end = 0;
  MINIDL_INLINE void advance(const PoolAxis& a, int64_t i) {
    while (end < a.out && window_start(a, end) <= i) ++end;
    while (begin < end && last(a, begin) < i) ++begin;
  }
  static MINIDL_INLINE int64_t last(const PoolAxis& a, int64_t o) {
    if (a.adaptive) return ceil_div((o + 1) * a.in, a.out) - 1;
    return window_start(a, o) + (a.kernel - 1) * a.dilation;
  }
};

// Pooling of whole images, each a row of memory: one dimension, whose windows are as long as can be.
inline PoolShape flattened(PoolShape s) {
  const auto whole = [](const PoolAxis& a) {
    return a.out == 1 && a.padding == 0 && a.dilation == 1 && (a.adaptive || a.kernel == a.in);
  };
  if (s.channels_last || !whole(s.h) || !whole(s.w)) return s;
  const int64_t n = s.h.in * s.w.in;
  return {s.images, s.channels, {1, 1, 1, 1, 0, 1, false}, {n, 1, n, 1, 0, 1, false}, false};
}

struct Divisor {
  PoolShape s;
  PoolDivisor d;

  MINIDL_INLINE double of(int64_t oh, int64_t ow) const {
    return d.fixed != 0 ? d.fixed : static_cast<double>(length(s.h, oh) * length(s.w, ow));
  }
  bool same_for_all() const { return d.fixed != 0 || (same_length(s.h) && same_length(s.w)); }

 private:
  MINIDL_INLINE int64_t length(const PoolAxis& a, int64_t o) const {
    if (a.adaptive || !d.count_padding) return window_of(a, o).count;
    const int64_t start = window_start(a, o);
    return min_of(start + a.kernel, a.in + a.padding) - start;
  }
  bool same_length(const PoolAxis& a) const {
    return !a.adaptive && (a.padding == 0 || d.count_padding) && length(a, a.out - 1) == a.kernel;
  }
};

}  // namespace
}  // namespace minidl::MINIDL_ISA
