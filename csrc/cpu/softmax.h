// How a vector walks over the classes of its rows. The kernels of softmax.cpp are written once over either
// walk:
//
//   AlongClasses (inner == 1)   one row, whose classes lie side by side: a step is `width` classes
//   AcrossRows   (inner > 1)    `rows` neighbouring rows, one a lane: a step is one class
//
//   each(begin, end, f)         f(c, offset, lanes, tag) for the steps over classes [begin, end): the first class,
//                               where it lies, and how many lanes hold data
//   keep(v, lanes, fill, tag)   v with lanes that hold no class neutralised
//   merge_max, merge_sum        from lanes to rows: the result of a row, in every lane of the row
//   per_class(p, ...)           p[c] of a vector over the classes
//   load_rows, store_rows       one number a row; p points at that of the first row
#pragma once
#include "reduce.h"

namespace minidl::MINIDL_ISA {
namespace {

template <class T>
struct AlongClasses {
  static constexpr int64_t block = 64 * Vec<T>::width;  // classes that stay in L1 between two looks at them
  static constexpr int64_t class_stride = 1, rows = 1;
  int64_t classes;

  template <class F>
  MINIDL_INLINE void each(int64_t begin, int64_t end, F f) const {
    for_lanes<T>(begin, end, [&](int64_t c, int64_t lanes, auto tag) { f(c, c, lanes, tag); });
  }
  template <class Tag>
  MINIDL_INLINE Vec<T> keep(Vec<T> v, int64_t lanes, T fill, Tag tag) const {
    return keep_lanes(v, lanes, fill, tag);
  }
  MINIDL_INLINE Vec<T> merge_max(Vec<T> v) const { return reduce_max(v); }
  MINIDL_INLINE Vec<T> merge_sum(Vec<T> v) const { return reduce_add(v); }
  template <class Tag>
  MINIDL_INLINE Vec<T> per_class(const T* p, int64_t c, int64_t lanes, Tag tag) const {
    return load_lanes(p + c, lanes, tag);
  }
  MINIDL_INLINE Vec<T> load_rows(const T* p) const { return *p; }
  MINIDL_INLINE void store_rows(Vec<T> v, T* p) const { v.store(p, 1); }
};

template <class T>
struct AcrossRows {
  static constexpr int64_t block = 64;
  int64_t classes, class_stride, rows;

  template <class F>
  MINIDL_INLINE void each(int64_t begin, int64_t end, F f) const {
    if (rows == Vec<T>::width) {
      for (int64_t c = begin; c < end; ++c) f(c, c * class_stride, rows, Full{});
    } else {
      for (int64_t c = begin; c < end; ++c) f(c, c * class_stride, rows, Ragged{});
    }
  }
  template <class Tag>
  MINIDL_INLINE Vec<T> keep(Vec<T> v, int64_t, T, Tag) const {
    return v;
  }
  MINIDL_INLINE Vec<T> merge_max(Vec<T> v) const { return v; }
  MINIDL_INLINE Vec<T> merge_sum(Vec<T> v) const { return v; }
  template <class Tag>
  MINIDL_INLINE Vec<T> per_class(const T* p, int64_t c, int64_t, Tag) const {
    return p[c];
  }
  MINIDL_INLINE Vec<T> load_rows(const T* p) const { return Vec<T>::load(p, static_cast<int>(rows)); }
  MINIDL_INLINE void store_rows(Vec<T> v, T* p) const { v.store(p, static_cast<int>(rows)); }
};

// The rows of a ClassShape, cut into what one walk covers.
template <class T>
struct Walks {
  ClassShape s;
  int64_t groups = s.inner == 1 ? 1 : ceil_div(s.inner, Vec<T>::width);

  int64_t count() const { return s.outer * groups; }
  // Walks that make up about `elements` elements: what a thread should get at least, or one partial sum
  // covers.
  int64_t holding(int64_t elements) const {
    const int64_t rows = s.inner == 1 ? 1 : min_of(s.inner, Vec<T>::width);
    return max_of(1, elements / max_of(1, rows * s.classes));
  }
  // f(walk, offset, row) for walks [begin, end): where its first element and its first row lie.
  template <class F>
  void each(int64_t begin, int64_t end, F f) const {
    if (s.inner == 1) {
      for (int64_t row = begin; row < end; ++row) f(AlongClasses<T>{s.classes}, row * s.classes, row);
    } else {
      for (int64_t g = begin; g < end; ++g) {
        const int64_t o = g / groups, i = g % groups * Vec<T>::width;
        const AcrossRows<T> walk{s.classes, s.inner, min_of(Vec<T>::width, s.inner - i)};
        f(walk, o * s.classes * s.inner + i, o * s.inner + i);
      }
    }
  }
};

// A sum of block sums in three levels, so that rounding errors do not pile up over many classes.
template <class T>
struct Cascade {
  Vec<T> sum, recent;
  int blocks = 0;

  MINIDL_INLINE void add(Vec<T> block_sum) {
    recent = recent + block_sum;
    if (++blocks % 64 == 0) {
      sum = sum + recent;
      recent = T(0);
    }
  }
  MINIDL_INLINE void scale(Vec<T> factor) {
    sum = sum * factor;
    recent = recent * factor;
  }
  MINIDL_INLINE Vec<T> total() const { return sum + recent; }
};

// The sum of f(c, offset, lanes, tag) over the classes.
template <class T, class Walk, class F>
MINIDL_INLINE Vec<T> sum_classes(const Walk& walk, F f) {
  Cascade<T> sum;
  for (int64_t begin = 0; begin < walk.classes; begin += walk.block) {
    Vec<T> part;
    walk.each(begin, min_of(walk.classes, begin + walk.block),
              [&](int64_t c, int64_t offset, int64_t lanes, auto tag) {
                part = part + walk.keep(f(c, offset, lanes, tag), lanes, T(0), tag);
              });
    sum.add(part);
  }
  return walk.merge_sum(sum.total());
}

}  // namespace
}  // namespace minidl::MINIDL_ISA
