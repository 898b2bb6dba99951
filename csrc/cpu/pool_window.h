// What pooling does with a window: forward, what becomes of its elements; backward, what its output gives to
// one. pool.cpp walks over the windows.
#pragma once
#include "pool.h"
#include "reduce.h"

namespace minidl::MINIDL_ISA {
namespace {

constexpr int64_t long_row = 8;   // columns from which the row of one window is worth registers of its own
constexpr int64_t run = 1 << 20;  // of such a row at a time: a float counts its places exactly

template <class T>
constexpr T infinity = static_cast<T>(__builtin_inf());

// ---- maximum ------------------------------------------------------------------------------------

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

// The place of the maximum of 0 < n <= run neighbours: the last NaN, else the first of equals.
template <class T>
int64_t place_of_largest(const T* x, int64_t n) {
  const Vec<T> lanes = Vec<T>::load(lane_numbers<T>);
  Largest<T> largest{-infinity<T>, lanes};
  for_lanes<T>(0, n, [&](int64_t i, int64_t count, auto tag) {
    const Vec<T> v = keep_lanes(load_lanes(x + i, count, tag), count, -infinity<T>, tag);
    largest.add(v, lanes + static_cast<T>(i));
  });
  const Vec<T> value = largest.value, place = largest.place;
  const T last_nan = reduce_max(select(value == value, T(-1), place));
  if (last_nan >= 0) return static_cast<int64_t>(last_nan);
  const Vec<T> best = reduce_max(value);
  return -static_cast<int64_t>(reduce_max(select(value == best, neg(place), -infinity<T>)));
}

template <class T>
struct MaxForward {
  T* y;
  PoolPosition position;
  const Geometry& g;
  // What a row and a column further into the window add to the number of an element.
  int64_t row_step = position.place ? g.w.kernel : g.h.dilation * g.w.in;
  int64_t column_step = position.place ? 1 : g.w.dilation;

  // Whether T counts the elements of a window.
  bool exact() const {
    const int64_t most = sizeof(T) == 4 ? int64_t{1} << 24 : int64_t{1} << 53;
    return g.h.kernel * row_step + g.w.kernel * column_step < most;
  }
  MINIDL_INLINE T number(int64_t row, int64_t column) const {
    return static_cast<T>(row * row_step + column * column_step);
  }
  MINIDL_INLINE Largest<T> start(int64_t row, int64_t column) const {
    return {-infinity<T>, number(row, column)};
  }
  // Lanes are outputs from `at` on, ow_step columns apart.
  template <class Tag>
  MINIDL_INLINE void finish(Largest<T> window, int64_t at, int64_t oh, int64_t ow, int64_t ow_step, int64_t n,
                            Tag tag) const {
    store_lanes(window.value, y + at, n, tag);
    if (position.place) return store_lanes(window.place, position.place + at, n, tag);
    T place[Vec<T>::width];
    window.place.store(place);
    for (int64_t i = 0; i < n; ++i) {
      position.index[at + i] = corner(oh, ow + i * ow_step) + static_cast<int64_t>(place[i]);
    }
  }
  // One window from its first element on; its rows and columns lie that far apart.
  void whole(const T* x, int64_t row_stride, int64_t column_stride, int64_t at, int64_t oh,
             int64_t ow) const {
    const Window &rows = g.h.windows[oh], &columns = g.w.windows[ow];
    int64_t start = rows.first * row_step + columns.first * column_step, place = start;
    T best = -infinity<T>;
    const auto see = [&](T v, int64_t number) {
      if (v > best || v != v) best = v, place = number;
    };
    for (int64_t r = 0; r < rows.count; ++r, x += row_stride, start += row_step) {
      if (column_stride == 1 && columns.count >= long_row) {
        for (int64_t c = 0; c < columns.count; c += run) {
          const int64_t largest = c + place_of_largest(x + c, min_of(run, columns.count - c));
          see(x[largest], start + largest * column_step);
        }
      } else {
        for (int64_t c = 0; c < columns.count; ++c) see(x[c * column_stride], start + c * column_step);
      }
    }
    y[at] = best;
    if (position.place) {
      position.place[at] = static_cast<uint8_t>(place);
    } else {
      position.index[at] = corner(oh, ow) + place;
    }
  }
  MINIDL_INLINE int64_t corner(int64_t oh, int64_t ow) const {
    return g.h.windows[oh].start * g.w.in + g.w.windows[ow].start;
  }
};

// An element, in an image and in a window.
struct Element {
  int64_t ih, iw, row, column;
};

template <class T>
struct MaxBackward {
  const T* dy;
  const uint8_t* place;
  const Geometry& g;

  Cover by_lanes() const { return {0, g.w.out}; }
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
    return {dy, place, static_cast<uint8_t>(e.row * g.w.kernel + e.column)};
  }
  // Adds to an image what one output gives. place / kernel by a product: exact below 256.
  const uint32_t inverse = static_cast<uint32_t>(((int64_t{1} << 16) + g.w.kernel - 1) / g.w.kernel);
  MINIDL_INLINE void scatter(T* dx, int64_t at, int64_t oh, int64_t ow) const {
    const int64_t row = place[at] * inverse >> 16, column = place[at] - row * g.w.kernel;
    const int64_t ih = g.h.windows[oh].start + row * g.h.dilation;
    const int64_t iw = g.w.windows[ow].start + column * g.w.dilation;
    if (ih >= 0 && ih < g.h.in && iw >= 0 && iw < g.w.in) dx[ih * g.w.in + iw] += dy[at];
  }
};

template <class T>
struct IndexedMaxBackward {
  const T* dy;
  const int64_t* index;
  const Geometry& g;

  Cover by_lanes() const { return {0, 0}; }
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
  MINIDL_INLINE Share share(int64_t, int64_t, Element e) const { return {dy, index, e.ih * g.w.in + e.iw}; }
  MINIDL_INLINE void scatter(T* dx, int64_t at, int64_t, int64_t) const {
    if (index[at] >= 0 && index[at] < g.in()) dx[index[at]] += dy[at];
  }
};

// ---- average ------------------------------------------------------------------------------------

// Rows are summed each for itself: sums of sums err less.
template <class T>
struct Sum {
  Vec<T> rows, row;
  MINIDL_INLINE void add(Vec<T> v, Vec<T>) { row = row + v; }
  MINIDL_INLINE void end_row() { rows = rows + row, row = T(0); }
};

struct Divisor {
  const Geometry& g;
  double fixed;
  MINIDL_INLINE double of(int64_t oh, int64_t ow) const {
    return fixed != 0 ? fixed : g.h.windows[oh].length * g.w.windows[ow].length;
  }
};

template <class T>
struct AverageForward {
  T* y;
  Divisor divisor;

  bool exact() const { return true; }
  MINIDL_INLINE T number(int64_t, int64_t) const { return 0; }
  MINIDL_INLINE Sum<T> start(int64_t, int64_t) const { return {}; }
  template <class Tag>
  MINIDL_INLINE void finish(Sum<T> window, int64_t at, int64_t oh, int64_t ow, int64_t, int64_t n,
                            Tag tag) const {
    store_lanes(window.rows / Vec<T>(static_cast<T>(divisor.of(oh, ow))), y + at, n, tag);
  }
  void whole(const T* x, int64_t row_stride, int64_t column_stride, int64_t at, int64_t oh,
             int64_t ow) const {
    const int64_t rows = divisor.g.h.windows[oh].count, columns = divisor.g.w.windows[ow].count;
    double sum = 0;
    for (int64_t r = 0; r < rows; ++r, x += row_stride) {
      if (column_stride == 1 && columns >= long_row) {
        sum += sum_lanes<T>(0, columns,
                            [&](int64_t i, int64_t n, auto tag) { return load_lanes(x + i, n, tag); });
      } else {
        for (int64_t c = 0; c < columns; ++c) sum += static_cast<double>(x[c * column_stride]);
      }
    }
    y[at] = static_cast<T>(sum / divisor.of(oh, ow));
  }
};

template <class T>
struct AverageBackward {
  const T* dy;
  Divisor divisor;

  Cover by_lanes() const {
    return divisor.fixed != 0 ? Cover{0, divisor.g.w.out} : whole_windows(divisor.g.w);
  }
  struct Share {
    const T* dy;
    T scale;
    MINIDL_INLINE T one(int64_t at) const { return dy[at] * scale; }
    template <class Tag>
    MINIDL_INLINE Vec<T> lanes(int64_t at, int64_t n, Tag tag) const {
      return load_lanes(dy + at, n, tag) * scale;
    }
  };
  MINIDL_INLINE Share share(int64_t oh, int64_t ow, Element) const {
    return {dy, static_cast<T>(1 / divisor.of(oh, ow))};
  }
  MINIDL_INLINE void scatter(T* dx, int64_t at, int64_t oh, int64_t ow) const {
    const Geometry& g = divisor.g;
    const Window &rows = g.h.windows[oh], &columns = g.w.windows[ow];
    const T share = static_cast<T>(dy[at] / divisor.of(oh, ow));
    for (int64_t r = 0; r < rows.count; ++r) {
      T* to = dx + (rows.begin + r) * g.w.in + columns.begin;
      if (columns.count < long_row) {
        for (int64_t i = 0; i < columns.count; ++i) to[i] += share;
      } else {
        for_lanes<T>(0, columns.count, [&](int64_t i, int64_t n, auto tag) {
          store_lanes(load_lanes(to + i, n, tag) + share, to + i, n, tag);
        });
      }
    }
  }
};

}  // namespace
}  // namespace minidl::MINIDL_ISA
