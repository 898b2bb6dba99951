// Pooling. A register holds channels where these lie innermost, else neighbouring outputs of a row, else
// elements of one window.
#include "pool.h"

#include "parallel.h"
#include "pool_window.h"

namespace minidl::MINIDL_ISA {
namespace {

constexpr int64_t grain = 32768;  // elements of windows below which one thread is quicker

// f(plane, row) for the `rows` rows of each plane.
template <class F>
void each_row(const Geometry& g, int64_t rows, F f) {
  const int64_t work = max_of(1, g.work() / max_of(1, rows));
  parallel_for(g.planes * rows, max_of(1, grain / work), [&](int64_t begin, int64_t end) {
    int64_t plane = begin / rows, row = begin % rows;
    for (int64_t i = begin; i < end; ++i) {
      f(plane, row);
      if (++row == rows) row = 0, ++plane;
    }
  });
}

// ---- forward ------------------------------------------------------------------------------------

// Elements `stride` apart.
template <int stride, class T, class Tag>
MINIDL_INLINE Vec<T> load_columns(const T* x, int64_t any_stride, int64_t n, Tag tag) {
  if constexpr (stride == 1) return load_lanes(x, n, tag);
  if constexpr (stride == 2) return load_every_second(x, n, tag);
  T lanes[Vec<T>::width] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = x[i * any_stride];
  return Vec<T>::load(lanes);
}

// A row of outputs of one channel; those of `lanes`, whose windows are whole, by registers.
template <int stride, class T, class Pool>
MINIDL_INLINE void pool_row(const Pool& pool, const T* x, const Geometry& g, Cover lanes, int64_t plane,
                            int64_t oh) {
  const Window& rows = g.h.windows[oh];
  const T* top = x + (plane * g.h.in + rows.begin) * g.w.in;
  const int64_t row_stride = g.h.dilation * g.w.in, at = (plane * g.h.out + oh) * g.w.out;
  const auto singly = [&](int64_t begin, int64_t end) {
    for (int64_t ow = begin; ow < end; ++ow) {
      pool.whole(top + g.w.windows[ow].begin, row_stride, g.w.dilation, at + ow, oh, ow);
    }
  };
  singly(0, lanes.begin);
  for_lanes<T>(lanes.begin, lanes.end, [&](int64_t ow, int64_t n, auto tag) {
    auto window = pool.start(rows.first, 0);
    const T* left = top + (ow * g.w.stride - g.w.padding);
    for (int64_t r = 0; r < rows.count; ++r) {
      for (int64_t c = 0; c < g.w.kernel; ++c) {
        const T* from = left + r * row_stride + c * g.w.dilation;
        window.add(load_columns<stride>(from, g.w.stride, n, tag), pool.number(rows.first + r, c));
      }
      window.end_row();
    }
    pool.finish(window, at + ow, oh, ow, 1, n, tag);
  });
  singly(lanes.end, g.w.out);
}

// A row of outputs of all channels.
template <class T, class Pool>
MINIDL_INLINE void pool_deep_row(const Pool& pool, const T* x, const Geometry& g, int64_t plane, int64_t oh) {
  const Window& rows = g.h.windows[oh];
  const int64_t row_stride = g.h.dilation * g.w.in * g.depth, column_stride = g.w.dilation * g.depth;
  for (int64_t ow = 0; ow < g.w.out; ++ow) {
    const Window& columns = g.w.windows[ow];
    const T* corner = x + ((plane * g.h.in + rows.begin) * g.w.in + columns.begin) * g.depth;
    const int64_t at = ((plane * g.h.out + oh) * g.w.out + ow) * g.depth;
    if (!pool.exact()) {
      for (int64_t d = 0; d < g.depth; ++d) pool.whole(corner + d, row_stride, column_stride, at + d, oh, ow);
      continue;
    }
    for_lanes<T>(0, g.depth, [&](int64_t d, int64_t n, auto tag) {
      auto window = pool.start(rows.first, columns.first);
      for (int64_t r = 0; r < rows.count; ++r) {
        for (int64_t c = 0; c < columns.count; ++c) {
          window.add(load_lanes(corner + r * row_stride + c * column_stride + d, n, tag),
                     pool.number(rows.first + r, columns.first + c));
        }
        window.end_row();
      }
      pool.finish(window, at + d, oh, ow, 0, n, tag);
    });
  }
}

template <class T, class Pool>
void pool_forward(const Pool& pool, const T* x, const Geometry& g, bool channels_last) {
  if (channels_last) {
    return each_row(g, g.h.out, [&](int64_t plane, int64_t oh) { pool_deep_row(pool, x, g, plane, oh); });
  }
  Cover lanes = whole_windows(g.w);
  const bool long_windows =
      lanes.end - lanes.begin < g.w.kernel || (g.w.stride > 2 && g.w.kernel >= long_row);
  if (!pool.exact() || long_windows) lanes = {0, 0};
  each_row(g, g.h.out, [&](int64_t plane, int64_t oh) {
    if (g.w.stride == 1) return pool_row<1>(pool, x, g, lanes, plane, oh);
    if (g.w.stride == 2) return pool_row<2>(pool, x, g, lanes, plane, oh);
    pool_row<0>(pool, x, g, lanes, plane, oh);
  });
}

// ---- backward -----------------------------------------------------------------------------------

// f(output, place in its window) for the windows that hold input i, in their order.
template <class F>
MINIDL_INLINE void each_window(const Axis& a, int64_t i, F f) {
  for (int64_t o = a.covers[i].begin; o < a.covers[i].end; ++o) {
    if (const int64_t place = a.place(o, i); place >= 0) f(o, place);
  }
}

template <class T, class Pool>
MINIDL_INLINE void gather_deep_row(const Pool& pool, T* dx, const Geometry& g, int64_t plane, int64_t ih) {
  for (int64_t iw = 0; iw < g.w.in; ++iw) {
    T* to = dx + ((plane * g.h.in + ih) * g.w.in + iw) * g.depth;
    bool written = false;
    each_window(g.h, ih, [&](int64_t oh, int64_t row) {
      each_window(g.w, iw, [&](int64_t ow, int64_t column) {
        const auto share = pool.share(oh, ow, {ih, iw, row, column});
        const int64_t at = ((plane * g.h.out + oh) * g.w.out + ow) * g.depth;
        for_lanes<T>(0, g.depth, [&](int64_t d, int64_t n, auto tag) {
          const Vec<T> v = share.lanes(at + d, n, tag);
          store_lanes(written ? load_lanes(to + d, n, tag) + v : v, to + d, n, tag);
        });
        written = true;
      });
    });
    if (!written) __builtin_memset(to, 0, static_cast<size_t>(g.depth) * sizeof(T));
  }
}

// The columns j * stride - padding + [0, stride) of a row, for j in `lanes`, each a register, get from the
// windows j - m. The others go one by one.
template <int stride, class T, class Pool>
MINIDL_INLINE void gather_row(const Pool& pool, T* dx, const Geometry& g, Cover lanes, int64_t plane,
                              int64_t ih) {
  T* to = dx + (plane * g.h.in + ih) * g.w.in;
  const int64_t padding = g.w.padding, reach = (g.w.kernel - 1) / stride;
  const auto singly = [&](int64_t begin, int64_t end) {
    for (int64_t iw = begin; iw < end; ++iw) {
      T sum = 0;
      each_window(g.h, ih, [&](int64_t oh, int64_t row) {
        each_window(g.w, iw, [&](int64_t ow, int64_t column) {
          sum += pool.share(oh, ow, {ih, iw, row, column}).one((plane * g.h.out + oh) * g.w.out + ow);
        });
      });
      to[iw] = sum;
    }
  };
  singly(0, lanes.begin * stride - padding);
  for_lanes<T>(lanes.begin, lanes.end, [&](int64_t j, int64_t n, auto tag) {
    Vec<T> sum[stride];
    each_window(g.h, ih, [&](int64_t oh, int64_t row) {
      for (int64_t m = reach; m >= 0; --m) {
        const int64_t at = (plane * g.h.out + oh) * g.w.out + j - m;
        unroll<stride>([&](auto k) {
          const int64_t column = m * stride + k;
          if (column >= g.w.kernel) return;
          sum[k] = sum[k] + pool.share(oh, j - m, {ih, 0, row, column}).lanes(at, n, tag);
        });
      }
    });
    T* first = to + j * stride - padding;
    if constexpr (stride == 1) {
      store_lanes(sum[0], first, n, tag);
    } else {
      constexpr int64_t w = Vec<T>::width;
      store_lanes(interleave_low(sum[0], sum[1]), first, min_of(2 * n, w), tag);
      if (2 * n > w) store_lanes(interleave_high(sum[0], sum[1]), first + w, 2 * n - w, tag);
    }
  });
  singly(lanes.end * stride - padding, g.w.in);
}

template <class T, class Pool>
void scatter_planes(const Pool& pool, T* dx, const Geometry& g) {
  parallel_for(g.planes, max_of(1, grain / max_of(1, g.work())), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      T* to = dx + plane * g.in();
      __builtin_memset(to, 0, static_cast<size_t>(g.in()) * sizeof(T));
      for (int64_t oh = 0; oh < g.h.out; ++oh) {
        if (g.h.windows[oh].count == 0) continue;
        for (int64_t ow = 0; ow < g.w.out; ++ow) {
          if (g.w.windows[ow].count != 0) pool.scatter(to, plane * g.out() + oh * g.w.out + ow, oh, ow);
        }
      }
    }
  });
}

template <class T, class Pool>
void pool_backward(const Pool& pool, T* dx, const Geometry& g, bool channels_last) {
  if (channels_last) {
    return each_row(g, g.h.in, [&](int64_t plane, int64_t ih) { gather_deep_row(pool, dx, g, plane, ih); });
  }
  const int64_t stride = g.w.stride;
  Cover lanes = pool.by_lanes();
  lanes.begin = max_of(lanes.begin + (g.w.kernel - 1) / stride, ceil_div(g.w.padding, stride));
  lanes.end = min_of(lanes.end, (g.w.in + g.w.padding) / stride);
  if (g.w.adaptive || g.w.dilation > 1 || stride > 2 || lanes.begin >= lanes.end)
    return scatter_planes(pool, dx, g);
  each_row(g, g.h.in, [&](int64_t plane, int64_t ih) {
    if (stride == 1) return gather_row<1>(pool, dx, g, lanes, plane, ih);
    gather_row<2>(pool, dx, g, lanes, plane, ih);
  });
}

}  // namespace

// ---- kernels ------------------------------------------------------------------------------------

template <class T>
void max_pool_forward(T* y, PoolPosition position, const T* x, PoolShape s, Context ctx) {
  if (s.images * s.channels == 0) return;
  const Geometry g(s, false, ctx);
  pool_forward(MaxForward<T>{y, position, g}, x, g, s.channels_last);
}

template <class T>
void max_pool_backward(T* dx, const T* dy, PoolPosition position, PoolShape s, Context ctx) {
  if (s.images * s.channels == 0) return;
  const Geometry g(s, false, ctx);
  if (position.place) {
    pool_backward(MaxBackward<T>{dy, position.place, g}, dx, g, s.channels_last);
  } else {
    pool_backward(IndexedMaxBackward<T>{dy, position.index, g}, dx, g, s.channels_last);
  }
}

template <class T>
void avg_pool_forward(T* y, const T* x, PoolShape s, PoolDivisor divisor, Context ctx) {
  if (s.images * s.channels == 0) return;
  const Geometry g(s, divisor.count_padding, ctx);
  pool_forward(AverageForward<T>{y, {g, divisor.fixed}}, x, g, s.channels_last);
}

template <class T>
void avg_pool_backward(T* dx, const T* dy, PoolShape s, PoolDivisor divisor, Context ctx) {
  if (s.images * s.channels == 0) return;
  const Geometry g(s, divisor.count_padding, ctx);
  pool_backward(AverageBackward<T>{dy, {g, divisor.fixed}}, dx, g, s.channels_last);
}

template void max_pool_forward(float*, PoolPosition, const float*, PoolShape, Context);
template void max_pool_forward(double*, PoolPosition, const double*, PoolShape, Context);
template void max_pool_backward(float*, const float*, PoolPosition, PoolShape, Context);
template void max_pool_backward(double*, const double*, PoolPosition, PoolShape, Context);
template void avg_pool_forward(float*, const float*, PoolShape, PoolDivisor, Context);
template void avg_pool_forward(double*, const double*, PoolShape, PoolDivisor, Context);
template void avg_pool_backward(float*, const float*, PoolShape, PoolDivisor, Context);
template void avg_pool_backward(double*, const double*, PoolShape, PoolDivisor, Context);

}  // namespace minidl::MINIDL_ISA
