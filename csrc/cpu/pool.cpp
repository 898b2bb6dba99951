// Pooling. A register holds channels where these lie innermost, else neighbours of a row where windows are
// one or two columns apart, else elements of one window.
#include "pool.h"

#include "parallel.h"
#include "reduce.h"

namespace minidl::MINIDL_ISA {
namespace {

constexpr int64_t grain = 32768;  // elements of windows below which one thread is quicker
constexpr int64_t long_row = 8;   // columns from which the row of one window is worth a register
constexpr int64_t run = 1 << 20;  // of a longer row at a time: a float counts its places exactly

template <class T>
constexpr T infinity = static_cast<T>(__builtin_inf());

int64_t images_of(const PoolShape& s) { return s.channels_last ? s.images : s.images * s.channels; }
int64_t depth_of(const PoolShape& s) { return s.channels_last ? s.channels : 1; }

// f(image, row) for the `rows` rows of each image. Every range of them has a copy of f, which meets them in
// order.
template <class F>
void each_row(const PoolShape& s, int64_t rows, F shared) {
  const int64_t elements = s.h.kernel * s.w.kernel * s.h.out * s.w.out * depth_of(s) / max_of(1, rows);
  const int64_t rows_a_grain = max_of(1, grain / max_of(1, elements));
  parallel_for(images_of(s) * rows, rows_a_grain, [&](int64_t begin, int64_t end) {
    F f = shared;
    int64_t image = begin / rows, row = begin % rows;
    for (int64_t i = begin; i < end; ++i) {
      f(image, row);
      if (++row == rows) row = 0, ++image;
    }
  });
}

// ---- forward: what becomes of the elements of a window ------------------------------------------

template <class T>
struct Found {
  T value;
  int64_t place;
  // Of elements that come in order.
  MINIDL_INLINE void see(T v, int64_t at) {
    if (v > value || v != v) value = v, place = at;
  }
};

template <class T>
struct Largest {
  Vec<T> value, place;
  MINIDL_INLINE void add(Vec<T> v, Vec<T> at) {
    const auto larger = value < v;
    const auto number = v == v;
    place = select(number, select(larger, at, place), at);
    value = select(number, select(larger, v, value), v);
  }
  MINIDL_INLINE void end_row() {}
};

// The maximum of n <= run neighbours; its place among them.
template <class T>
Found<T> largest_of_row(const T* x, int64_t n) {
  const Vec<T> lanes = Vec<T>::load(lane_numbers<T>);
  Largest<T> largest{-infinity<T>, lanes};
  for_lanes<T>(0, n, [&](int64_t i, int64_t count, auto tag) {
    const Vec<T> v = keep_lanes(load_lanes(x + i, count, tag), count, -infinity<T>, tag);
    largest.add(v, lanes + static_cast<T>(i));
  });
  T value[Vec<T>::width], place[Vec<T>::width];
  largest.value.store(value), largest.place.store(place);
  T best = value[0], at = place[0];
  for (int i = 1; i < Vec<T>::width; ++i) {
    const bool later = place[i] > at;
    const bool wins =
        value[i] != value[i] ? best == best || later : value[i] > best || (value[i] == best && !later);
    if (wins) best = value[i], at = place[i];
  }
  return {best, static_cast<int64_t>(at)};
}

template <class T>
struct MaxForward {
  T* y;
  PoolPosition position;
  PoolShape s;
  // What a row and a column further into the window add to the number of an element.
  int64_t row_step = position.place ? s.w.kernel : s.h.dilation * s.w.in;
  int64_t column_step = position.place ? 1 : s.w.dilation;

  // Whether T counts the elements of a window.
  bool exact() const {
    return s.h.kernel * row_step + s.w.kernel * column_step <
           (sizeof(T) == 4 ? int64_t{1} << 24 : int64_t{1} << 53);
  }
  MINIDL_INLINE T number(int64_t row, int64_t column) const {
    return static_cast<T>(row * row_step + column * column_step);
  }
  MINIDL_INLINE Largest<T> start(int64_t row, int64_t column) const {
    return {-infinity<T>, number(row, column)};
  }
  // Lanes are outputs from `at` on, ow_step columns apart.
  template <class Tag>
  MINIDL_INLINE void finish(Largest<T> w, int64_t at, int64_t oh, int64_t ow, int64_t ow_step, int64_t n,
                            Tag tag) const {
    store_lanes(w.value, y + at, n, tag);
    if (position.place) return store_lanes(w.place, position.place + at, n, tag);
    T place[Vec<T>::width];
    w.place.store(place);
    for (int64_t i = 0; i < n; ++i) {
      position.index[at + i] = corner(oh, ow + i * ow_step) + static_cast<int64_t>(place[i]);
    }
  }
  // One window, its rows and columns that far apart.
  void whole(const T* x, Window rows, int64_t row_stride, Window columns, int64_t column_stride, int64_t at,
             int64_t oh, int64_t ow) const {
    int64_t start = rows.first * row_step + columns.first * column_step;
    Found<T> best{-infinity<T>, start};
    for (int64_t r = 0; r < rows.count; ++r, x += row_stride, start += row_step) {
      if (column_stride == 1 && columns.count >= long_row) {
        for (int64_t c = 0; c < columns.count; c += run) {
          const Found<T> part = largest_of_row(x + c, min_of(run, columns.count - c));
          best.see(part.value, start + (c + part.place) * column_step);
        }
      } else {
        for (int64_t c = 0; c < columns.count; ++c) best.see(x[c * column_stride], start + c * column_step);
      }
    }
    y[at] = best.value;
    if (position.place) {
      position.place[at] = static_cast<uint8_t>(best.place);
    } else {
      position.index[at] = corner(oh, ow) + best.place;
    }
  }
  MINIDL_INLINE int64_t corner(int64_t oh, int64_t ow) const {
    return window_start(s.h, oh) * s.w.in + window_start(s.w, ow);
  }
};

// Rows are summed each for itself: sums of sums err less.
template <class T>
struct Sum {
  Vec<T> rows, row;
  MINIDL_INLINE void add(Vec<T> v, Vec<T>) { row = row + v; }
  MINIDL_INLINE void end_row() { rows = rows + row, row = T(0); }
};

template <class T>
struct AverageForward {
  T* y;
  Divisor divisor;

  bool exact() const { return true; }
  MINIDL_INLINE T number(int64_t, int64_t) const { return 0; }
  MINIDL_INLINE Sum<T> start(int64_t, int64_t) const { return {}; }
  template <class Tag>
  MINIDL_INLINE void finish(Sum<T> w, int64_t at, int64_t oh, int64_t ow, int64_t, int64_t n, Tag tag) const {
    store_lanes(w.rows / Vec<T>(static_cast<T>(divisor.of(oh, ow))), y + at, n, tag);
  }
  void whole(const T* x, Window rows, int64_t row_stride, Window columns, int64_t column_stride, int64_t at,
             int64_t oh, int64_t ow) const {
    double sum = 0;
    for (int64_t r = 0; r < rows.count; ++r, x += row_stride) {
      if (column_stride == 1 && columns.count >= long_row) {
        sum += sum_lanes<T>(0, columns.count,
                            [&](int64_t i, int64_t n, auto tag) { return load_lanes(x + i, n, tag); });
      } else {
        for (int64_t c = 0; c < columns.count; ++c) sum += static_cast<double>(x[c * column_stride]);
      }
    }
    y[at] = static_cast<T>(sum / divisor.of(oh, ow));
  }
};

// ---- forward: which elements --------------------------------------------------------------------

// One row of the output of a plane; the windows of `lanes` by registers.
template <int column_stride, class T, class Pool>
MINIDL_INLINE void pool_plane_row(const Pool& pool, const T* x, const PoolShape& s, Outputs lanes,
                                  int64_t plane, int64_t oh) {
  const Window rows = window_of(s.h, oh);
  const T* top = x + (plane * s.h.in + rows.begin) * s.w.in;
  const int64_t row_stride = s.h.dilation * s.w.in, at = (plane * s.h.out + oh) * s.w.out;
  const auto singly = [&](int64_t begin, int64_t end) {
    for (int64_t ow = begin; ow < end; ++ow) {
      const Window columns = window_of(s.w, ow);
      pool.whole(top + columns.begin, rows, row_stride, columns, s.w.dilation, at + ow, oh, ow);
    }
  };
  singly(0, lanes.begin);
  for_lanes<T>(lanes.begin, lanes.end, [&](int64_t ow, int64_t n, auto tag) {
    auto window = pool.start(rows.first, 0);
    const T* left = top + (ow * column_stride - s.w.padding);
    for (int64_t r = 0; r < rows.count; ++r) {
      for (int64_t c = 0; c < s.w.kernel; ++c) {
        const T* from = left + r * row_stride + c * s.w.dilation;
        window.add(column_stride == 1 ? load_lanes(from, n, tag) : load_every_second(from, n, tag),
                   pool.number(rows.first + r, c));
      }
      window.end_row();
    }
    pool.finish(window, at + ow, oh, ow, 1, n, tag);
  });
  singly(lanes.end, s.w.out);
}

template <class T, class Pool>
MINIDL_INLINE void pool_channels_row(const Pool& pool, const T* x, const PoolShape& s, int64_t image,
                                     int64_t oh) {
  const Window rows = window_of(s.h, oh);
  const int64_t row_stride = s.h.dilation * s.w.in * s.channels, column_stride = s.w.dilation * s.channels;
  for (int64_t ow = 0; ow < s.w.out; ++ow) {
    const Window columns = window_of(s.w, ow);
    const T* corner = x + ((image * s.h.in + rows.begin) * s.w.in + columns.begin) * s.channels;
    const int64_t at = ((image * s.h.out + oh) * s.w.out + ow) * s.channels;
    if (!pool.exact()) {
      for (int64_t c = 0; c < s.channels; ++c) {
        pool.whole(corner + c, rows, row_stride, columns, column_stride, at + c, oh, ow);
      }
      continue;
    }
    for_lanes<T>(0, s.channels, [&](int64_t channel, int64_t n, auto tag) {
      auto window = pool.start(rows.first, columns.first);
      for (int64_t r = 0; r < rows.count; ++r) {
        for (int64_t c = 0; c < columns.count; ++c) {
          window.add(load_lanes(corner + r * row_stride + c * column_stride + channel, n, tag),
                     pool.number(rows.first + r, columns.first + c));
        }
        window.end_row();
      }
      pool.finish(window, at + channel, oh, ow, 0, n, tag);
    });
  }
}

template <class T, class Pool>
void pool_forward(const Pool& pool, const T* x, const PoolShape& s) {
  if (s.channels_last) {
    return each_row(s, s.h.out,
                    [&](int64_t image, int64_t oh) { pool_channels_row<T>(pool, x, s, image, oh); });
  }
  Outputs lanes = whole_windows(s.w);
  if (s.w.stride > 2 || !pool.exact() || lanes.end - lanes.begin < s.w.kernel) lanes = {0, 0};
  each_row(s, s.h.out, [&](int64_t plane, int64_t oh) {
    if (s.w.stride == 1) {
      pool_plane_row<1>(pool, x, s, lanes, plane, oh);
    } else {
      pool_plane_row<2>(pool, x, s, lanes, plane, oh);
    }
  });
}

// ---- backward: what an output gives to one element of its window ---------------------------------

// The element in an image and in a window.
struct Element {
  int64_t ih, iw, row, column;
};

template <class T>
struct MaxBackward {
  const T* dy;
  const uint8_t* place;
  PoolShape s;

  Outputs by_lanes() const { return {0, s.w.out}; }
  struct Share {
    const T* dy;
    const uint8_t* place;
    uint8_t number;
    MINIDL_INLINE T one(int64_t at) const { return place[at] == number ? dy[at] : T(0); }
    template <class Tag>
    MINIDL_INLINE Vec<T> lanes(int64_t at, int64_t n, Tag tag) const {
      const auto here = load_byte_lanes<T>(place + at, n, tag) == Vec<T>(static_cast<T>(number));
      return select(here, load_lanes(dy + at, n, tag), T(0));
    }
  };
  MINIDL_INLINE Share share(int64_t, int64_t, Element e) const {
    return {dy, place, static_cast<uint8_t>(e.row * s.w.kernel + e.column)};
  }
  // Adds to row e.ih of dx what a row of dy gives.
  void scatter(T* dx, int64_t at, int64_t, Element e) const {
    for (int64_t ow = 0; ow < s.w.out; ++ow) {
      const int64_t column = place[at + ow] - e.row * s.w.kernel;
      if (column < 0 || column >= s.w.kernel) continue;
      const int64_t iw = window_start(s.w, ow) + column * s.w.dilation;
      if (iw < s.w.in) dx[iw] += dy[at + ow];  // beyond: the window is empty
    }
  }
};

template <class T>
struct IndexedMaxBackward {
  const T* dy;
  const int64_t* index;
  PoolShape s;

  Outputs by_lanes() const { return {0, 0}; }
  struct Share {
    const T* dy;
    const int64_t* index;
    int64_t number;
    MINIDL_INLINE T one(int64_t at) const { return index[at] == number ? dy[at] : T(0); }
    template <class Tag>
    MINIDL_INLINE Vec<T> lanes(int64_t at, int64_t n, Tag) const {
      T shares[Vec<T>::width] = {};
      for (int64_t i = 0; i < n; ++i) shares[i] = one(at + i);
      return Vec<T>::load(shares);
    }
  };
  MINIDL_INLINE Share share(int64_t, int64_t, Element e) const { return {dy, index, e.ih * s.w.in + e.iw}; }
  void scatter(T* dx, int64_t at, int64_t, Element e) const {
    for (int64_t ow = 0; ow < s.w.out; ++ow) {
      const int64_t iw = index[at + ow] - e.ih * s.w.in;
      if (iw >= 0 && iw < s.w.in) dx[iw] += dy[at + ow];
    }
  }
};

template <class T>
struct AverageBackward {
  const T* dy;
  Divisor divisor;
  bool same = divisor.same_for_all();
  T same_scale = same ? static_cast<T>(1 / divisor.of(0, 0)) : T(0);

  Outputs by_lanes() const {
    const PoolAxis& w = divisor.s.w;
    return same ? Outputs{0, w.out} : whole_windows(w);
  }
  struct Share {
    const T* dy;
    T scale;
    MINIDL_INLINE T one(int64_t at) const { return dy[at] * scale; }
    template <class Tag>
    MINIDL_INLINE Vec<T> lanes(int64_t at, int64_t n, Tag tag) const {
      return load_lanes(dy + at, n, tag) * Vec<T>(scale);
    }
  };
  MINIDL_INLINE Share share(int64_t oh, int64_t ow, Element) const {
    return {dy, same ? same_scale : static_cast<T>(1 / divisor.of(oh, ow))};
  }
  void scatter(T* dx, int64_t at, int64_t oh, Element e) const {
    for (int64_t ow = 0; ow < divisor.s.w.out; ++ow) {
      const Window columns = window_of(divisor.s.w, ow);
      const T g = share(oh, ow, e).one(at + ow);
      T* to = dx + columns.begin;
      for_lanes<T>(0, columns.count, [&](int64_t i, int64_t n, auto tag) {
        store_lanes(load_lanes(to + i, n, tag) + g, to + i, n, tag);
      });
    }
  }
};

// ---- backward: which outputs ---------------------------------------------------------------------

// f(oh, row of the window) for the windows that hold row ih, in their order.
template <class F>
MINIDL_INLINE void each_window(const PoolAxis& a, Cover cover, int64_t i, F f) {
  for (int64_t o = cover.begin; o < cover.end; ++o) {
    if (const int64_t place = place_in(a, o, i); place >= 0) f(o, place);
  }
}

template <class T, class Pool>
MINIDL_INLINE void channels_row_gradient(const Pool& pool, T* dx, const PoolShape& s, Cover rows,
                                         int64_t image, int64_t ih) {
  Cover columns;
  for (int64_t iw = 0; iw < s.w.in; ++iw) {
    columns.advance(s.w, iw);
    T* to = dx + ((image * s.h.in + ih) * s.w.in + iw) * s.channels;
    bool written = false;
    each_window(s.h, rows, ih, [&](int64_t oh, int64_t row) {
      each_window(s.w, columns, iw, [&](int64_t ow, int64_t column) {
        const auto share = pool.share(oh, ow, {ih, iw, row, column});
        const int64_t at = ((image * s.h.out + oh) * s.w.out + ow) * s.channels;
        for_lanes<T>(0, s.channels, [&](int64_t c, int64_t n, auto tag) {
          const Vec<T> g = share.lanes(at + c, n, tag);
          store_lanes(written ? load_lanes(to + c, n, tag) + g : g, to + c, n, tag);
        });
        written = true;
      });
    });
    if (!written) __builtin_memset(to, 0, static_cast<size_t>(s.channels) * sizeof(T));
  }
}

// The columns j * stride - padding + [0, stride) of a row of dx, for j in `lanes`, are at hand in a register
// each: the windows j - m give to them. The others go one by one.
template <int stride, class T, class Pool>
MINIDL_INLINE void plane_row_gradient(const Pool& pool, T* dx, const PoolShape& s, Outputs lanes, Cover right,
                                      Cover rows, int64_t plane, int64_t ih) {
  T* to = dx + (plane * s.h.in + ih) * s.w.in;
  const int64_t padding = s.w.padding, reach = (s.w.kernel - 1) / stride;
  const auto singly = [&](int64_t begin, int64_t end, Cover columns) {
    for (int64_t iw = begin; iw < end; ++iw) {
      columns.advance(s.w, iw);
      T sum = 0;
      each_window(s.h, rows, ih, [&](int64_t oh, int64_t row) {
        each_window(s.w, columns, iw, [&](int64_t ow, int64_t column) {
          sum += pool.share(oh, ow, {ih, iw, row, column}).one((plane * s.h.out + oh) * s.w.out + ow);
        });
      });
      to[iw] = sum;
    }
  };
  singly(0, lanes.begin * stride - padding, {});
  for_lanes<T>(lanes.begin, lanes.end, [&](int64_t j, int64_t n, auto tag) {
    Vec<T> sum[2];
    each_window(s.h, rows, ih, [&](int64_t oh, int64_t row) {
      for (int64_t m = reach; m >= 0; --m) {
        const int64_t at = (plane * s.h.out + oh) * s.w.out + j - m;
        unroll<stride>([&](auto k) {
          const int64_t column = m * stride + k;
          if (column < s.w.kernel)
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
  singly(lanes.end * stride - padding, s.w.in, right);
}

template <class T, class Pool>
void pool_backward(const Pool& pool, T* dx, const PoolShape& s) {
  // Outputs j as plane_row_gradient wants them.
  const int64_t stride = s.w.stride;
  Outputs lanes = pool.by_lanes();
  lanes.begin = max_of(lanes.begin + (s.w.kernel - 1) / stride, ceil_div(s.w.padding, stride));
  lanes.end = min_of(lanes.end, (s.w.in + s.w.padding) / stride);
  const bool scatter = s.w.adaptive || s.w.dilation > 1 || stride > 2 || lanes.begin >= lanes.end;
  Cover right;
  if (!scatter) right.advance(s.w, lanes.end * stride - s.w.padding);

  each_row(s, s.h.in, [&, rows = Cover{}](int64_t image, int64_t ih) mutable {
    if (ih == 0) rows = {};
    rows.advance(s.h, ih);
    if (s.channels_last) return channels_row_gradient(pool, dx, s, rows, image, ih);
    if (!scatter && stride == 1) return plane_row_gradient<1>(pool, dx, s, lanes, right, rows, image, ih);
    if (!scatter) return plane_row_gradient<2>(pool, dx, s, lanes, right, rows, image, ih);
    T* to = dx + (image * s.h.in + ih) * s.w.in;
    __builtin_memset(to, 0, static_cast<size_t>(s.w.in) * sizeof(T));
    each_window(s.h, rows, ih, [&](int64_t oh, int64_t row) {
      pool.scatter(to, (image * s.h.out + oh) * s.w.out, oh, {ih, 0, row, 0});
    });
  });
}

}  // namespace

// ---- kernels -------------------------------------------------------------------------------------

template <class T>
void max_pool_forward(T* y, PoolPosition position, const T* x, PoolShape s, Context) {
  s = flattened(s);
  pool_forward(MaxForward<T>{y, position, s}, x, s);
}

template <class T>
void max_pool_backward(T* dx, const T* dy, PoolPosition position, PoolShape s, Context) {
  s = flattened(s);
  if (position.place) {
    pool_backward(MaxBackward<T>{dy, position.place, s}, dx, s);
  } else {
    pool_backward(IndexedMaxBackward<T>{dy, position.index, s}, dx, s);
  }
}

template <class T>
void avg_pool_forward(T* y, const T* x, PoolShape s, PoolDivisor divisor, Context) {
  s = flattened(s);
  pool_forward(AverageForward<T>{y, {s, divisor}}, x, s);
}

template <class T>
void avg_pool_backward(T* dx, const T* dy, PoolShape s, PoolDivisor divisor, Context) {
  s = flattened(s);
  pool_backward(AverageBackward<T>{dy, {s, divisor}}, dx, s);
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
