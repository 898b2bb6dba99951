// The reference: one lane, no intrinsics. Always built; runs anywhere.
#pragma once

namespace minidl::MINIDL_ISA {
namespace {

template <class T>
struct Vec {
  static constexpr int width = 1;
  using Mask = bool;
  T v;

  MINIDL_INLINE Vec() : v(0) {}
  MINIDL_INLINE Vec(T s) : v(s) {}
  static MINIDL_INLINE Vec load(const T* p) { return *p; }
  static MINIDL_INLINE Vec load(const T* p, int n) { return n > 0 ? *p : T(0); }
  MINIDL_INLINE void store(T* p) const { *p = v; }
  MINIDL_INLINE void store(T* p, int n) const {
    if (n > 0) *p = v;
  }
  static MINIDL_INLINE Vec load(const uint8_t* p) { return static_cast<T>(*p); }
  static MINIDL_INLINE Vec load(const uint8_t* p, int n) { return n > 0 ? static_cast<T>(*p) : T(0); }
  MINIDL_INLINE void store(uint8_t* p) const { *p = static_cast<uint8_t>(v); }
  MINIDL_INLINE void store(uint8_t* p, int n) const {
    if (n > 0) store(p);
  }

  friend MINIDL_INLINE Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend MINIDL_INLINE Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend MINIDL_INLINE Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend MINIDL_INLINE Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  friend MINIDL_INLINE Mask operator<(Vec a, Vec b) { return a.v < b.v; }
  friend MINIDL_INLINE Mask operator<=(Vec a, Vec b) { return a.v <= b.v; }
  friend MINIDL_INLINE Mask operator==(Vec a, Vec b) { return a.v == b.v; }
  friend MINIDL_INLINE Vec neg(Vec a) { return -a.v; }
  friend MINIDL_INLINE Vec fmadd(Vec a, Vec b, Vec c) { return a.v * b.v + c.v; }
  friend MINIDL_INLINE Vec max(Vec a, Vec b) { return a.v > b.v ? a.v : b.v; }
  friend MINIDL_INLINE Vec min(Vec a, Vec b) { return a.v < b.v ? a.v : b.v; }
  friend MINIDL_INLINE Vec select(Mask m, Vec a, Vec b) { return m ? a : b; }
  friend MINIDL_INLINE Vec interleave_low(Vec a, Vec) { return a; }
  friend MINIDL_INLINE Vec interleave_high(Vec, Vec b) { return b; }
  friend MINIDL_INLINE Vec even_odd(Vec a, Vec) { return a; }
  friend MINIDL_INLINE T reduce_add(Vec a) { return a.v; }
  friend MINIDL_INLINE T reduce_max(Vec a) { return a.v; }
};

MINIDL_INLINE Vec<float> abs(Vec<float> a) { return __builtin_fabsf(a.v); }
MINIDL_INLINE Vec<double> abs(Vec<double> a) { return __builtin_fabs(a.v); }
MINIDL_INLINE Vec<float> sqrt(Vec<float> a) { return __builtin_sqrtf(a.v); }
MINIDL_INLINE Vec<double> sqrt(Vec<double> a) { return __builtin_sqrt(a.v); }
MINIDL_INLINE Vec<float> copysign(Vec<float> a, Vec<float> s) { return __builtin_copysignf(a.v, s.v); }
MINIDL_INLINE Vec<double> copysign(Vec<double> a, Vec<double> s) { return __builtin_copysign(a.v, s.v); }

template <class T>
MINIDL_INLINE Vec<T> ldexp(Vec<T> x, Vec<T> n) {
  if (n.v != n.v) return n;
  return static_cast<T>(__builtin_ldexp(static_cast<double>(x.v), static_cast<int>(n.v)));
}
template <class T>
MINIDL_INLINE Vec<T> split_exponent(Vec<T> x, Vec<T>& e) {
  int k = 0;
  const double m = __builtin_frexp(static_cast<double>(x.v), &k);  // in [0.5, 1)
  e = static_cast<T>(k - 1);
  return static_cast<T>(2 * m);
}

struct Words {
  static constexpr int width = 1;
  uint32_t v;

  MINIDL_INLINE Words() : v(0) {}
  MINIDL_INLINE Words(uint32_t s) : v(s) {}
  static MINIDL_INLINE Words count_from(uint32_t s) { return s; }
  friend MINIDL_INLINE Words operator^(Words a, Words b) { return a.v ^ b.v; }
  friend MINIDL_INLINE Words multiply(Words a, uint32_t m, Words& high) {
    const uint64_t product = static_cast<uint64_t>(a.v) * m;
    high = static_cast<uint32_t>(product >> 32);
    return static_cast<uint32_t>(product);
  }
  friend MINIDL_INLINE bool at_least(Words a, Words b) { return a.v >= b.v; }
};

}  // namespace
}  // namespace minidl::MINIDL_ISA
