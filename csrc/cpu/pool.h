// The geometry of pooling, in tables: which inputs the window of an output holds, and which windows hold an
// input. Adaptive windows and edges take divisions, each of which would take as long as a row of a small
// window.
#pragma once
#include "kernels.h"
#include "vec.h"

namespace minidl::MINIDL_ISA {
namespace {

// The window of an output on an axis: its places `first`, first + 1, ... are the inputs begin, begin +
// dilation, ..., `count` of them; place 0 would be the input `start`. `length` is what an average counts.
struct Window {
  int64_t start, begin, first, count;
  double length;
};
// The outputs [begin, end), whose windows reach over an input.
struct Cover {
  int64_t begin, end;
};

struct Axis : PoolAxis {
  const Window* windows;  // of each output
  const Cover* covers;    // of each input

  // The place of input i in the window of o, which reaches over it, or -1.
  MINIDL_INLINE int64_t place(int64_t o, int64_t i) const {
    const int64_t offset = i - windows[o].start;
    if (dilation == 1) return offset;
    return offset % dilation == 0 ? offset / dilation : -1;
  }
};

inline Window window_of(const PoolAxis& a, int64_t o, bool count_padding) {
  if (a.adaptive) {
    const int64_t begin = o * a.in / a.out, count = ceil_div((o + 1) * a.in, a.out) - begin;
    return {begin, begin, 0, count, static_cast<double>(count)};
  }
  const int64_t start = o * a.stride - a.padding, first = start < 0 ? ceil_div(-start, a.dilation) : 0;
  const int64_t begin = start + first * a.dilation;
  int64_t end = a.kernel;
  if (start + (end - 1) * a.dilation >= a.in) end = first + max_of(0, ceil_div(a.in - begin, a.dilation));
  const int64_t length = count_padding ? min_of(start + a.kernel, a.in + a.padding) - start : end - first;
  return {start, begin, first, end - first, static_cast<double>(length)};
}

// A PoolShape with its tables, which lie in the workspace.
struct Geometry {
  int64_t planes, depth;  // images of one channel, or of all, which then lie innermost: depth of them
  Axis h, w;

  Geometry(const PoolShape& shape, bool count_padding, Context ctx)
      : planes(shape.channels_last ? shape.images : shape.images * shape.channels),
        depth(shape.channels_last ? shape.channels : 1) {
    const PoolShape s = flattened(shape);
    const int64_t windows = s.h.out + s.w.out, covers = s.h.in + s.w.in;
    void* memory = ctx.workspace(static_cast<size_t>(windows) * sizeof(Window) +
                                 static_cast<size_t>(covers) * sizeof(Cover));
    Window* window = static_cast<Window*>(memory);
    Cover* cover = reinterpret_cast<Cover*>(window + windows);
    h = table(s.h, count_padding, window, cover);
    w = table(s.w, count_padding, window + s.h.out, cover + s.h.in);
  }

  int64_t in() const { return h.in * w.in * depth; }
  int64_t out() const { return h.out * w.out * depth; }
  // The elements of the windows of a plane.
  int64_t work() const { return out() * h.kernel * w.kernel; }

 private:
  // Windows of whole images that are rows of memory, as one dimension: they are then as long as can be.
  static PoolShape flattened(PoolShape s) {
    const auto whole = [](const PoolAxis& a) {
      return a.out == 1 && a.padding == 0 && a.dilation == 1 && (a.adaptive || a.kernel == a.in);
    };
    if (s.channels_last || !whole(s.h) || !whole(s.w)) return s;
    const int64_t n = s.h.in * s.w.in;
    return {s.images, s.channels, {1, 1, 1, 1, 0, 1, false}, {n, 1, n, 1, 0, 1, false}, false};
  }
  static Axis table(const PoolAxis& a, bool count_padding, Window* windows, Cover* covers) {
    for (int64_t o = 0; o < a.out; ++o) windows[o] = window_of(a, o, count_padding);
    const auto last = [&](int64_t o) {
      return a.adaptive ? windows[o].begin + windows[o].count - 1
                        : windows[o].start + (a.kernel - 1) * a.dilation;
    };
    Cover cover{0, 0};
    for (int64_t i = 0; i < a.in; ++i) {
      while (cover.end < a.out && windows[cover.end].start <= i) ++cover.end;
      while (cover.begin < cover.end && last(cover.begin) < i) ++cover.begin;
      covers[i] = cover;
    }
    return {a, windows, covers};
  }
};

// The outputs [begin, end) whose windows are cut by neither edge.
inline Cover whole_windows(const PoolAxis& a) {
  if (a.adaptive) return {0, 0};
  const int64_t begin = min_of(ceil_div(a.padding, a.stride), a.out);
  const int64_t room = a.in + a.padding - 1 - (a.kernel - 1) * a.dilation;
  return {begin, max_of(begin, room < 0 ? 0 : min_of(room / a.stride + 1, a.out))};
}

}  // namespace
}  // namespace minidl::MINIDL_ISA
