// AVX2 and FMA: 8 floats or 4 doubles, tails by maskload and maskstore.
#pragma once
#include <immintrin.h>

namespace minidl::MINIDL_ISA {
namespace {

// A window of n set words ends where this table's ones end.
alignas(64) constexpr int32_t lane_window[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

template <class T>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int width = 8;
  using Mask = __m256;
  __m256 v;

  MINIDL_INLINE Vec() : v(_mm256_setzero_ps()) {}
  MINIDL_INLINE Vec(__m256 x) : v(x) {}
  MINIDL_INLINE Vec(float s) : v(_mm256_set1_ps(s)) {}
  static MINIDL_INLINE __m256i lanes(int n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lane_window + 8 - n));
  }
  static MINIDL_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static MINIDL_INLINE Vec load(const float* p, int n) { return _mm256_maskload_ps(p, lanes(n)); }
  MINIDL_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  MINIDL_INLINE void store(float* p, int n) const { _mm256_maskstore_ps(p, lanes(n), v); }
  static MINIDL_INLINE Vec load(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static MINIDL_INLINE Vec load(const uint8_t* p, int n) {
    uint8_t lanes[width] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
  }
  MINIDL_INLINE void store(uint8_t* p) const {
    const __m256i words = _mm256_cvtps_epi32(v);
    const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(half, half));
  }
  MINIDL_INLINE void store(uint8_t* p, int n) const {
    uint8_t lanes[width];
    store(lanes);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }

  friend MINIDL_INLINE Vec operator+(Vec a, Vec b) { return _mm256_add_ps(a.v, b.v); }
  friend MINIDL_INLINE Vec operator-(Vec a, Vec b) { return _mm256_sub_ps(a.v, b.v); }
  friend MINIDL_INLINE Vec operator*(Vec a, Vec b) { return _mm256_mul_ps(a.v, b.v); }
  friend MINIDL_INLINE Vec operator/(Vec a, Vec b) { return _mm256_div_ps(a.v, b.v); }
  friend MINIDL_INLINE Mask operator<(Vec a, Vec b) { return _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ); }
  friend MINIDL_INLINE Mask operator<=(Vec a, Vec b) { return _mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ); }
  friend MINIDL_INLINE Mask operator==(Vec a, Vec b) { return _mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ); }
};
MINIDL_INLINE Vec<float> neg(Vec<float> a) { return _mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f)); }
MINIDL_INLINE Vec<float> fmadd(Vec<float> a, Vec<float> b, Vec<float> c) {
  return _mm256_fmadd_ps(a.v, b.v, c.v);
}
MINIDL_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a.v, b.v); }
MINIDL_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return _mm256_min_ps(a.v, b.v); }
MINIDL_INLINE Vec<float> abs(Vec<float> a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v); }
MINIDL_INLINE Vec<float> sqrt(Vec<float> a) { return _mm256_sqrt_ps(a.v); }
MINIDL_INLINE Vec<float> round(Vec<float> a) {
  return _mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
MINIDL_INLINE Vec<float> select(__m256 m, Vec<float> a, Vec<float> b) {
  return _mm256_blendv_ps(b.v, a.v, m);
}
MINIDL_INLINE Vec<float> copysign(Vec<float> a, Vec<float> s) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_andnot_ps(sign, a.v), _mm256_and_ps(sign, s.v));
}
// Two factors, each a normal power of two, so that the product under- and overflows gradually and rounds
// once.
MINIDL_INLINE Vec<float> ldexp(Vec<float> x, Vec<float> n) {
  const auto power = [](Vec<float> k) {
    return Vec<float>(_mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(k.v), _mm256_set1_epi32(127)), 23)));
  };
  const Vec<float> half = round(n * 0.5f);
  return x * power(half) * power(n - half);
}
MINIDL_INLINE Vec<float> split_exponent(Vec<float> x, Vec<float>& e) {
  const __m256i bits = _mm256_castps_si256(x.v);
  e = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(bits, 23), _mm256_set1_epi32(127)));
  return _mm256_castsi256_ps(
      _mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi32(0x007fffff)), _mm256_set1_epi32(0x3f800000)));
}
MINIDL_INLINE Vec<float> interleave_low(Vec<float> a, Vec<float> b) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x20);
}
MINIDL_INLINE Vec<float> interleave_high(Vec<float> a, Vec<float> b) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x31);
}
MINIDL_INLINE Vec<float> even_odd(Vec<float> a, Vec<float> b) {
  const __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(a.v, b.v, 0xd8));  // a0 a2 b1 b3, a4 a6 b5 b7
  return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
}
MINIDL_INLINE float reduce_add(Vec<float> a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
MINIDL_INLINE float reduce_max(Vec<float> a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

template <>
struct Vec<double> {
  static constexpr int width = 4;
  using Mask = __m256d;
  __m256d v;

  MINIDL_INLINE Vec() : v(_mm256_setzero_pd()) {}
  MINIDL_INLINE Vec(__m256d x) : v(x) {}
  MINIDL_INLINE Vec(double s) : v(_mm256_set1_pd(s)) {}
  static MINIDL_INLINE __m256i lanes(int n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lane_window + 8 - 2 * n));
  }
  static MINIDL_INLINE Vec load(const double* p) { return _mm256_loadu_pd(p); }
  static MINIDL_INLINE Vec load(const double* p, int n) { return _mm256_maskload_pd(p, lanes(n)); }
  MINIDL_INLINE void store(double* p) const { _mm256_storeu_pd(p, v); }
  MINIDL_INLINE void store(double* p, int n) const { _mm256_maskstore_pd(p, lanes(n), v); }
  static MINIDL_INLINE Vec load(const uint8_t* p) {
    int32_t bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    return _mm256_cvtepi32_pd(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(bits)));
  }
  static MINIDL_INLINE Vec load(const uint8_t* p, int n) {
    uint8_t lanes[width] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
  }
  MINIDL_INLINE void store(uint8_t* p) const {
    const __m128i half = _mm_packs_epi32(_mm256_cvtpd_epi32(v), _mm_setzero_si128());
    const int32_t bits = _mm_cvtsi128_si32(_mm_packus_epi16(half, half));
    __builtin_memcpy(p, &bits, sizeof bits);
  }
  MINIDL_INLINE void store(uint8_t* p, int n) const {
    uint8_t lanes[width];
    store(lanes);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }

  friend MINIDL_INLINE Vec operator+(Vec a, Vec b) { return _mm256_add_pd(a.v, b.v); }
  friend MINIDL_INLINE Vec operator-(Vec a, Vec b) { return _mm256_sub_pd(a.v, b.v); }
  friend MINIDL_INLINE Vec operator*(Vec a, Vec b) { return _mm256_mul_pd(a.v, b.v); }
  friend MINIDL_INLINE Vec operator/(Vec a, Vec b) { return _mm256_div_pd(a.v, b.v); }
  friend MINIDL_INLINE Mask operator<(Vec a, Vec b) { return _mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ); }
  friend MINIDL_INLINE Mask operator<=(Vec a, Vec b) { return _mm256_cmp_pd(a.v, b.v, _CMP_LE_OQ); }
  friend MINIDL_INLINE Mask operator==(Vec a, Vec b) { return _mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ); }
};
MINIDL_INLINE Vec<double> neg(Vec<double> a) { return _mm256_xor_pd(a.v, _mm256_set1_pd(-0.0)); }
MINIDL_INLINE Vec<double> fmadd(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm256_fmadd_pd(a.v, b.v, c.v);
}
MINIDL_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return _mm256_max_pd(a.v, b.v); }
MINIDL_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return _mm256_min_pd(a.v, b.v); }
MINIDL_INLINE Vec<double> abs(Vec<double> a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v); }
MINIDL_INLINE Vec<double> sqrt(Vec<double> a) { return _mm256_sqrt_pd(a.v); }
MINIDL_INLINE Vec<double> round(Vec<double> a) {
  return _mm256_round_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
MINIDL_INLINE Vec<double> select(__m256d m, Vec<double> a, Vec<double> b) {
  return _mm256_blendv_pd(b.v, a.v, m);
}
MINIDL_INLINE Vec<double> copysign(Vec<double> a, Vec<double> s) {
  const __m256d sign = _mm256_set1_pd(-0.0);
  return _mm256_or_pd(_mm256_andnot_pd(sign, a.v), _mm256_and_pd(sign, s.v));
}
// 2^52 as a double: added to a small integer k, the low bits of the sum are k in binary (there is no
// conversion between 64-bit integers and doubles before AVX-512).
constexpr double two52 = 4503599627370496.0;
MINIDL_INLINE Vec<double> ldexp(Vec<double> x, Vec<double> n) {
  const auto power = [](Vec<double> k) {
    return Vec<double>(
        _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256((k + (two52 + 1023)).v), 52)));
  };
  const Vec<double> half = round(n * 0.5);
  return x * power(half) * power(n - half);
}
MINIDL_INLINE Vec<double> split_exponent(Vec<double> x, Vec<double>& e) {
  const __m256i bits = _mm256_castpd_si256(x.v);
  const __m256i exponent =
      _mm256_or_si256(_mm256_srli_epi64(bits, 52), _mm256_castpd_si256(_mm256_set1_pd(two52)));
  e = Vec<double>(_mm256_castsi256_pd(exponent)) - (two52 + 1023);
  return _mm256_castsi256_pd(_mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi64x(0x000fffffffffffff)),
                                             _mm256_set1_epi64x(0x3ff0000000000000)));
}
MINIDL_INLINE Vec<double> interleave_low(Vec<double> a, Vec<double> b) {
  return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a.v, b.v), _mm256_unpackhi_pd(a.v, b.v), 0x20);
}
MINIDL_INLINE Vec<double> interleave_high(Vec<double> a, Vec<double> b) {
  return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a.v, b.v), _mm256_unpackhi_pd(a.v, b.v), 0x31);
}
MINIDL_INLINE Vec<double> even_odd(Vec<double> a, Vec<double> b) {
  return _mm256_permute4x64_pd(_mm256_shuffle_pd(a.v, b.v, 0xa), 0xd8);  // of a0 b1 a2 b3
}
MINIDL_INLINE double reduce_add(Vec<double> a) {
  const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}
MINIDL_INLINE double reduce_max(Vec<double> a) {
  const __m128d s = _mm_max_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_max_sd(s, _mm_unpackhi_pd(s, s)));
}

struct Words {
  static constexpr int width = 8;
  __m256i v;

  MINIDL_INLINE Words() : v(_mm256_setzero_si256()) {}
  MINIDL_INLINE Words(__m256i x) : v(x) {}
  MINIDL_INLINE Words(uint32_t s) : v(_mm256_set1_epi32(static_cast<int>(s))) {}
  static MINIDL_INLINE Words count_from(uint32_t s) {
    return _mm256_add_epi32(Words(s).v, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  friend MINIDL_INLINE Words operator^(Words a, Words b) { return _mm256_xor_si256(a.v, b.v); }
};
MINIDL_INLINE Words multiply(Words a, uint32_t m, Words& high) {
  const __m256i even = _mm256_mul_epu32(a.v, Words(m).v);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a.v, 32), Words(m).v);
  high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}
MINIDL_INLINE __m256 at_least(Words a, Words b) {
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_max_epu32(a.v, b.v), a.v));
}

}  // namespace
}  // namespace minidl::MINIDL_ISA
