// Vec<T>: one register of lanes, with the same names on every instruction set. Kernels are written once over it.
//
//   Vec<T>::width                      lanes
//   Vec<T>(s)                          all lanes s
//   load(p), load(p, n), store(...)    unaligned; with n: only lanes < n touch memory, the others read as 0
//   + - * / neg abs sqrt fmadd         fmadd(a, b, c) = a * b + c
//   ratio(a, b)                        a / b within 1.5 ulp, for |b| in [2^-100, 2^100]: where division is slow
//   max(a, b), min(a, b)               a NaN in b is returned
//   a < b, a <= b, a == b, select      comparisons with NaN are false; select(m, a, b) = m ? a : b
//   copysign(a, s)                     |a| with the sign of s
//   ldexp(x, n)                        x * 2^n for integral |n| <= 250 (float), 2000 (double); over- and underflow
//                                      as IEEE
//   split_exponent(x, e)               m in [1, 2) and e with x = m * 2^e, for normal x > 0
//   interleave_low(a, b), _high        a0 b0 a1 b1 ... of the lower, the upper half of the lanes
//   even_odd(a, b)                     the even lanes of a, then the odd lanes of b
//   load(bytes), load(bytes, n)        of uint8_t: a whole number a lane; store(bytes), store(bytes, n) likewise
//   reduce_add(a), reduce_max(a)       over the lanes, in a fixed order
//
// Words: a register of Vec<float>::width unsigned 32-bit lanes.
//
//   Words(s), Words::count_from(s)     all lanes s; s, s + 1, s + 2, ...
//   a ^ b, multiply(a, m, high)        the low 32 bits of a * m, and the high ones
//   at_least(a, b)                     a >= b, as a mask of Vec<float>
//
// Everything here sits in an anonymous namespace inside the ISA's namespace, and nothing inline from the
// standard library is used: the linker merges equal inline functions, and a merged AVX-512 copy would crash
// lesser machines.
#pragma once
#include <cstdint>

#define MINIDL_INLINE inline __attribute__((always_inline))
#define MINIDL_UNROLL _Pragma("GCC unroll 32")

#if defined(MINIDL_ISA_avx512)
#include "vec_avx512.h"
#elif defined(MINIDL_ISA_avx2)
#include "vec_avx2.h"
#elif defined(MINIDL_ISA_neon)
#include "vec_neon.h"
#else
#include "vec_scalar.h"
#endif

namespace minidl::MINIDL_ISA {
namespace {

// An instruction set with a quicker way overloads it.
template <class T>
MINIDL_INLINE Vec<T> ratio(Vec<T> a, Vec<T> b) {
  return a / b;
}

// f(0), f(1), ... f(n - 1) with the index as a constant type: unrolled by the front end, so that an array of
// registers that f indexes becomes registers (a loop pragma comes too late for that).
template <int i>
struct Index {
  static constexpr int value = i;
  MINIDL_INLINE constexpr operator int() const { return i; }
};
template <int n, int i = 0, class F>
MINIDL_INLINE void unroll(F&& f) {
  if constexpr (i < n) {
    f(Index<i>{});
    unroll<n, i + 1>(f);
  }
}

MINIDL_INLINE constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
MINIDL_INLINE constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
MINIDL_INLINE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
MINIDL_INLINE constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// f(i, count) for i = begin, begin + width, ... with count = width but for the last, ragged step. `full` lets
// f choose the whole-register load: f(i, count, std-free bool constant).
struct Full {
  static constexpr bool value = true;
};
struct Ragged {
  static constexpr bool value = false;
};
template <class T, class F>
MINIDL_INLINE void for_lanes(int64_t begin, int64_t end, F f) {
  constexpr int64_t w = Vec<T>::width;
  int64_t i = begin;
  for (; i + w <= end; i += w) f(i, w, Full{});
  if (i < end) f(i, end - i, Ragged{});
}

template <class T, class Tag>
MINIDL_INLINE Vec<T> load_lanes(const T* p, int64_t n, Tag) {
  if constexpr (Tag::value) {
    return Vec<T>::load(p);
  } else {
    return Vec<T>::load(p, static_cast<int>(n));
  }
}
template <class T, class Tag>
MINIDL_INLINE Vec<T> load_byte_lanes(const uint8_t* p, int64_t n, Tag) {
  if constexpr (Tag::value) {
    return Vec<T>::load(p);
  } else {
    return Vec<T>::load(p, static_cast<int>(n));
  }
}
template <class T, class Pointer, class Tag>
MINIDL_INLINE void store_lanes(Vec<T> v, Pointer* p, int64_t n, Tag) {
  if constexpr (Tag::value) {
    v.store(p);
  } else {
    v.store(p, static_cast<int>(n));
  }
}

// p[0], p[2], ... p[2 (n - 1)]; nothing behind the last is touched.
template <class T, class Tag>
MINIDL_INLINE Vec<T> load_every_second(const T* p, int64_t n, Tag) {
  constexpr int w = Vec<T>::width;
  if constexpr (Tag::value) {
    return even_odd(Vec<T>::load(p), Vec<T>::load(p + w - 1));
  } else {
    const int count = static_cast<int>(2 * n);
    return even_odd(Vec<T>::load(p, count - 1 < w ? count - 1 : w),
                    Vec<T>::load(p + w - 1, count > w ? count - w : 0));
  }
}

// Transposes the width x width matrix whose rows are r: log2(width) rounds of perfect shuffles.
template <class T>
MINIDL_INLINE void transpose(Vec<T> (&r)[Vec<T>::width]) {
  constexpr int w = Vec<T>::width;
  MINIDL_UNROLL for (int span = 1; span < w; span *= 2) {
    Vec<T> shuffled[w];
    MINIDL_UNROLL for (int i = 0; i < w / 2; ++i) {
      shuffled[2 * i] = interleave_low(r[i], r[i + w / 2]);
      shuffled[2 * i + 1] = interleave_high(r[i], r[i + w / 2]);
    }
    MINIDL_UNROLL for (int i = 0; i < w; ++i) r[i] = shuffled[i];
  }
}

}  // namespace
}  // namespace minidl::MINIDL_ISA
