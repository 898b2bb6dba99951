// AVX-512 F, DQ, BW, VL: 16 floats or 8 doubles, tails by mask registers.
#pragma once
#include <immintrin.h>

namespace minidl::MINIDL_ISA {
namespace {

template <class T>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int width = 16;
  using Mask = __mmask16;
  __m512 v;

  MINIDL_INLINE Vec() : v(_mm512_setzero_ps()) {}
  MINIDL_INLINE Vec(__m512 x) : v(x) {}
  MINIDL_INLINE Vec(float s) : v(_mm512_set1_ps(s)) {}
  static MINIDL_INLINE Mask lanes(int n) { return static_cast<Mask>((1u << n) - 1); }
  static MINIDL_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static MINIDL_INLINE Vec load(const float* p, int n) { return _mm512_maskz_loadu_ps(lanes(n), p); }
  MINIDL_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  MINIDL_INLINE void store(float* p, int n) const { _mm512_mask_storeu_ps(p, lanes(n), v); }
  static MINIDL_INLINE Vec load(const uint8_t* p) { return load(p, width); }
  static MINIDL_INLINE Vec load(const uint8_t* p, int n) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(lanes(n), p)));
  }
  MINIDL_INLINE void store(uint8_t* p) const { store(p, width); }
  MINIDL_INLINE void store(uint8_t* p, int n) const {
    _mm512_mask_cvtepi32_storeu_epi8(p, lanes(n), _mm512_cvtps_epi32(v));
  }

  friend MINIDL_INLINE Vec operator+(Vec a, Vec b) { return _mm512_add_ps(a.v, b.v); }
  friend MINIDL_INLINE Vec operator-(Vec a, Vec b) { return _mm512_sub_ps(a.v, b.v); }
  friend MINIDL_INLINE Vec operator*(Vec a, Vec b) { return _mm512_mul_ps(a.v, b.v); }
  friend MINIDL_INLINE Vec operator/(Vec a, Vec b) { return _mm512_div_ps(a.v, b.v); }
  friend MINIDL_INLINE Mask operator<(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
  friend MINIDL_INLINE Mask operator<=(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ); }
  friend MINIDL_INLINE Mask operator==(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
};
MINIDL_INLINE Vec<float> neg(Vec<float> a) { return _mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f)); }
MINIDL_INLINE Vec<float> fmadd(Vec<float> a, Vec<float> b, Vec<float> c) {
  return _mm512_fmadd_ps(a.v, b.v, c.v);
}
// One Newton step from an estimate of 14 bits: a division would take 16 cycles.
MINIDL_INLINE Vec<float> ratio(Vec<float> a, Vec<float> b) {
  const __m512 estimate = _mm512_rcp14_ps(b.v);
  const __m512 error = _mm512_fnmadd_ps(b.v, estimate, _mm512_set1_ps(1.0f));
  return _mm512_mul_ps(a.v, _mm512_fmadd_ps(estimate, error, estimate));
}
MINIDL_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return _mm512_max_ps(a.v, b.v); }
MINIDL_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return _mm512_min_ps(a.v, b.v); }
MINIDL_INLINE Vec<float> abs(Vec<float> a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v); }
MINIDL_INLINE Vec<float> sqrt(Vec<float> a) { return _mm512_sqrt_ps(a.v); }
MINIDL_INLINE Vec<float> select(__mmask16 m, Vec<float> a, Vec<float> b) {
  return _mm512_mask_blend_ps(m, b.v, a.v);
}
MINIDL_INLINE Vec<float> copysign(Vec<float> a, Vec<float> s) {
  const __m512 sign = _mm512_set1_ps(-0.0f);
  return _mm512_or_ps(_mm512_andnot_ps(sign, a.v), _mm512_and_ps(sign, s.v));
}
MINIDL_INLINE Vec<float> ldexp(Vec<float> x, Vec<float> n) { return _mm512_scalef_ps(x.v, n.v); }
MINIDL_INLINE Vec<float> split_exponent(Vec<float> x, Vec<float>& e) {
  e = _mm512_getexp_ps(x.v);
  return _mm512_getmant_ps(x.v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
}
MINIDL_INLINE Vec<float> interleave_low(Vec<float> a, Vec<float> b) {
  const __m512i i = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  return _mm512_permutex2var_ps(a.v, i, b.v);
}
MINIDL_INLINE Vec<float> interleave_high(Vec<float> a, Vec<float> b) {
  const __m512i i = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return _mm512_permutex2var_ps(a.v, i, b.v);
}
MINIDL_INLINE Vec<float> even_odd(Vec<float> a, Vec<float> b) {
  const __m512i i = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31);
  return _mm512_permutex2var_ps(a.v, i, b.v);
}
MINIDL_INLINE float reduce_add(Vec<float> a) { return _mm512_reduce_add_ps(a.v); }
MINIDL_INLINE float reduce_max(Vec<float> a) { return _mm512_reduce_max_ps(a.v); }

template <>
struct Vec<double> {
  static constexpr int width = 8;
  using Mask = __mmask8;
  __m512d v;

  MINIDL_INLINE Vec() : v(_mm512_setzero_pd()) {}
  MINIDL_INLINE Vec(__m512d x) : v(x) {}
  MINIDL_INLINE Vec(double s) : v(_mm512_set1_pd(s)) {}
  static MINIDL_INLINE Mask lanes(int n) { return static_cast<Mask>((1u << n) - 1); }
  static MINIDL_INLINE Vec load(const double* p) { return _mm512_loadu_pd(p); }
  static MINIDL_INLINE Vec load(const double* p, int n) { return _mm512_maskz_loadu_pd(lanes(n), p); }
  MINIDL_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
  MINIDL_INLINE void store(double* p, int n) const { _mm512_mask_storeu_pd(p, lanes(n), v); }
  static MINIDL_INLINE Vec load(const uint8_t* p) { return load(p, width); }
  static MINIDL_INLINE Vec load(const uint8_t* p, int n) {
    return _mm512_cvtepi32_pd(_mm256_cvtepu8_epi32(_mm_maskz_loadu_epi8(lanes(n), p)));
  }
  MINIDL_INLINE void store(uint8_t* p) const { store(p, width); }
  MINIDL_INLINE void store(uint8_t* p, int n) const {
    _mm256_mask_cvtepi32_storeu_epi8(p, lanes(n), _mm512_cvtpd_epi32(v));
  }

  friend MINIDL_INLINE Vec operator+(Vec a, Vec b) { return _mm512_add_pd(a.v, b.v); }
  friend MINIDL_INLINE Vec operator-(Vec a, Vec b) { return _mm512_sub_pd(a.v, b.v); }
  friend MINIDL_INLINE Vec operator*(Vec a, Vec b) { return _mm512_mul_pd(a.v, b.v); }
  friend MINIDL_INLINE Vec operator/(Vec a, Vec b) { return _mm512_div_pd(a.v, b.v); }
  friend MINIDL_INLINE Mask operator<(Vec a, Vec b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ); }
  friend MINIDL_INLINE Mask operator<=(Vec a, Vec b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LE_OQ); }
  friend MINIDL_INLINE Mask operator==(Vec a, Vec b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ); }
};
MINIDL_INLINE Vec<double> neg(Vec<double> a) { return _mm512_xor_pd(a.v, _mm512_set1_pd(-0.0)); }
MINIDL_INLINE Vec<double> fmadd(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm512_fmadd_pd(a.v, b.v, c.v);
}
MINIDL_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return _mm512_max_pd(a.v, b.v); }
MINIDL_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return _mm512_min_pd(a.v, b.v); }
MINIDL_INLINE Vec<double> abs(Vec<double> a) { return _mm512_andnot_pd(_mm512_set1_pd(-0.0), a.v); }
MINIDL_INLINE Vec<double> sqrt(Vec<double> a) { return _mm512_sqrt_pd(a.v); }
MINIDL_INLINE Vec<double> select(__mmask8 m, Vec<double> a, Vec<double> b) {
  return _mm512_mask_blend_pd(m, b.v, a.v);
}
MINIDL_INLINE Vec<double> copysign(Vec<double> a, Vec<double> s) {
  const __m512d sign = _mm512_set1_pd(-0.0);
  return _mm512_or_pd(_mm512_andnot_pd(sign, a.v), _mm512_and_pd(sign, s.v));
}
MINIDL_INLINE Vec<double> ldexp(Vec<double> x, Vec<double> n) { return _mm512_scalef_pd(x.v, n.v); }
MINIDL_INLINE Vec<double> split_exponent(Vec<double> x, Vec<double>& e) {
  e = _mm512_getexp_pd(x.v);
  return _mm512_getmant_pd(x.v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
}
MINIDL_INLINE Vec<double> interleave_low(Vec<double> a, Vec<double> b) {
  return _mm512_permutex2var_pd(a.v, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), b.v);
}
MINIDL_INLINE Vec<double> interleave_high(Vec<double> a, Vec<double> b) {
  return _mm512_permutex2var_pd(a.v, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), b.v);
}
MINIDL_INLINE Vec<double> even_odd(Vec<double> a, Vec<double> b) {
  return _mm512_permutex2var_pd(a.v, _mm512_setr_epi64(0, 2, 4, 6, 9, 11, 13, 15), b.v);
}
MINIDL_INLINE double reduce_add(Vec<double> a) { return _mm512_reduce_add_pd(a.v); }
MINIDL_INLINE double reduce_max(Vec<double> a) { return _mm512_reduce_max_pd(a.v); }

struct Words {
  static constexpr int width = 16;
  __m512i v;

  MINIDL_INLINE Words() : v(_mm512_setzero_si512()) {}
  MINIDL_INLINE Words(__m512i x) : v(x) {}
  MINIDL_INLINE Words(uint32_t s) : v(_mm512_set1_epi32(static_cast<int>(s))) {}
  static MINIDL_INLINE Words count_from(uint32_t s) {
    return _mm512_add_epi32(Words(s).v,
                            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  }
  friend MINIDL_INLINE Words operator^(Words a, Words b) { return _mm512_xor_si512(a.v, b.v); }
};
MINIDL_INLINE Words multiply(Words a, uint32_t m, Words& high) {
  const __m512i even = _mm512_mul_epu32(a.v, Words(m).v);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), Words(m).v);
  high = _mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB);
  return _mm512_mask_shuffle_epi32(even, 0xaaaa, odd, _MM_PERM_CCAA);
}
MINIDL_INLINE __mmask16 at_least(Words a, Words b) { return _mm512_cmpge_epu32_mask(a.v, b.v); }

}  // namespace
}  // namespace minidl::MINIDL_ISA
