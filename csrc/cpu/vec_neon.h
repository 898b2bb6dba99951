// NEON on arm64: 4 floats or 2 doubles. There are no masked accesses, so tails go lane by lane.
#pragma once
#include <arm_neon.h>

namespace minidl::MINIDL_ISA {
namespace {

template <class T>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int width = 4;
  using Mask = uint32x4_t;
  float32x4_t v;

  MINIDL_INLINE Vec() : v(vdupq_n_f32(0)) {}
  MINIDL_INLINE Vec(float32x4_t x) : v(x) {}
  MINIDL_INLINE Vec(float s) : v(vdupq_n_f32(s)) {}
  static MINIDL_INLINE Vec load(const float* p) { return vld1q_f32(p); }
  static MINIDL_INLINE Vec load(const float* p, int n) {
    if (n == 4) return vld1q_f32(p);
    float lanes[4] = {0, 0, 0, 0};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return vld1q_f32(lanes);
  }
  MINIDL_INLINE void store(float* p) const { vst1q_f32(p, v); }
  MINIDL_INLINE void store(float* p, int n) const {
    if (n == 4) return vst1q_f32(p, v);
    float lanes[4];
    vst1q_f32(lanes, v);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static MINIDL_INLINE Vec load(const uint8_t* p) { return load(p, width); }
  static MINIDL_INLINE Vec load(const uint8_t* p, int n) {
    uint32_t lanes[width] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return vcvtq_f32_u32(vld1q_u32(lanes));
  }
  MINIDL_INLINE void store(uint8_t* p) const { store(p, width); }
  MINIDL_INLINE void store(uint8_t* p, int n) const {
    uint32_t lanes[width];
    vst1q_u32(lanes, vcvtq_u32_f32(v));
    for (int i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(lanes[i]);
  }

  friend MINIDL_INLINE Vec operator+(Vec a, Vec b) { return vaddq_f32(a.v, b.v); }
  friend MINIDL_INLINE Vec operator-(Vec a, Vec b) { return vsubq_f32(a.v, b.v); }
  friend MINIDL_INLINE Vec operator*(Vec a, Vec b) { return vmulq_f32(a.v, b.v); }
  friend MINIDL_INLINE Vec operator/(Vec a, Vec b) { return vdivq_f32(a.v, b.v); }
  friend MINIDL_INLINE Mask operator<(Vec a, Vec b) { return vcltq_f32(a.v, b.v); }
  friend MINIDL_INLINE Mask operator<=(Vec a, Vec b) { return vcleq_f32(a.v, b.v); }
  friend MINIDL_INLINE Mask operator==(Vec a, Vec b) { return vceqq_f32(a.v, b.v); }
};
MINIDL_INLINE Vec<float> neg(Vec<float> a) { return vnegq_f32(a.v); }
MINIDL_INLINE Vec<float> fmadd(Vec<float> a, Vec<float> b, Vec<float> c) { return vfmaq_f32(c.v, a.v, b.v); }
MINIDL_INLINE Vec<float> select(uint32x4_t m, Vec<float> a, Vec<float> b) { return vbslq_f32(m, a.v, b.v); }
MINIDL_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v); }
MINIDL_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v); }
MINIDL_INLINE Vec<float> abs(Vec<float> a) { return vabsq_f32(a.v); }
MINIDL_INLINE Vec<float> sqrt(Vec<float> a) { return vsqrtq_f32(a.v); }
MINIDL_INLINE Vec<float> round(Vec<float> a) { return vrndnq_f32(a.v); }
MINIDL_INLINE Vec<float> copysign(Vec<float> a, Vec<float> s) {
  return vbslq_f32(vdupq_n_u32(0x80000000u), s.v, a.v);
}
// Two factors, each a normal power of two, so that the product under- and overflows gradually and rounds
// once.
MINIDL_INLINE Vec<float> ldexp(Vec<float> x, Vec<float> n) {
  const auto power = [](Vec<float> k) {
    return Vec<float>(
        vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(k.v), vdupq_n_s32(127)), 23)));
  };
  const Vec<float> half = round(n * 0.5f);
  return x * power(half) * power(n - half);
}
MINIDL_INLINE Vec<float> split_exponent(Vec<float> x, Vec<float>& e) {
  const int32x4_t bits = vreinterpretq_s32_f32(x.v);
  e = vcvtq_f32_s32(vsubq_s32(vshrq_n_s32(bits, 23), vdupq_n_s32(127)));
  return vreinterpretq_f32_s32(vorrq_s32(vandq_s32(bits, vdupq_n_s32(0x007fffff)), vdupq_n_s32(0x3f800000)));
}
MINIDL_INLINE Vec<float> interleave_low(Vec<float> a, Vec<float> b) { return vzip1q_f32(a.v, b.v); }
MINIDL_INLINE Vec<float> interleave_high(Vec<float> a, Vec<float> b) { return vzip2q_f32(a.v, b.v); }
MINIDL_INLINE Vec<float> even_odd(Vec<float> a, Vec<float> b) {
  return vcombine_f32(vget_low_f32(vuzp1q_f32(a.v, a.v)), vget_low_f32(vuzp2q_f32(b.v, b.v)));
}
MINIDL_INLINE float reduce_add(Vec<float> a) { return vaddvq_f32(a.v); }
MINIDL_INLINE float reduce_max(Vec<float> a) { return vmaxnmvq_f32(a.v); }

template <>
struct Vec<double> {
  static constexpr int width = 2;
  using Mask = uint64x2_t;
  float64x2_t v;

  MINIDL_INLINE Vec() : v(vdupq_n_f64(0)) {}
  MINIDL_INLINE Vec(float64x2_t x) : v(x) {}
  MINIDL_INLINE Vec(double s) : v(vdupq_n_f64(s)) {}
  static MINIDL_INLINE Vec load(const double* p) { return vld1q_f64(p); }
  static MINIDL_INLINE Vec load(const double* p, int n) {
    return n <= 0 ? vdupq_n_f64(0) : n == 1 ? vsetq_lane_f64(p[0], vdupq_n_f64(0), 0) : vld1q_f64(p);
  }
  MINIDL_INLINE void store(double* p) const { vst1q_f64(p, v); }
  MINIDL_INLINE void store(double* p, int n) const {
    if (n > 0) p[0] = vgetq_lane_f64(v, 0);
    if (n > 1) p[1] = vgetq_lane_f64(v, 1);
  }
  static MINIDL_INLINE Vec load(const uint8_t* p) { return load(p, width); }
  static MINIDL_INLINE Vec load(const uint8_t* p, int n) {
    double lanes[width] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return vld1q_f64(lanes);
  }
  MINIDL_INLINE void store(uint8_t* p) const { store(p, width); }
  MINIDL_INLINE void store(uint8_t* p, int n) const {
    if (n > 0) p[0] = static_cast<uint8_t>(vgetq_lane_f64(v, 0));
    if (n > 1) p[1] = static_cast<uint8_t>(vgetq_lane_f64(v, 1));
  }

  friend MINIDL_INLINE Vec operator+(Vec a, Vec b) { return vaddq_f64(a.v, b.v); }
  friend MINIDL_INLINE Vec operator-(Vec a, Vec b) { return vsubq_f64(a.v, b.v); }
  friend MINIDL_INLINE Vec operator*(Vec a, Vec b) { return vmulq_f64(a.v, b.v); }
  friend MINIDL_INLINE Vec operator/(Vec a, Vec b) { return vdivq_f64(a.v, b.v); }
  friend MINIDL_INLINE Mask operator<(Vec a, Vec b) { return vcltq_f64(a.v, b.v); }
  friend MINIDL_INLINE Mask operator<=(Vec a, Vec b) { return vcleq_f64(a.v, b.v); }
  friend MINIDL_INLINE Mask operator==(Vec a, Vec b) { return vceqq_f64(a.v, b.v); }
};
MINIDL_INLINE Vec<double> neg(Vec<double> a) { return vnegq_f64(a.v); }
MINIDL_INLINE Vec<double> fmadd(Vec<double> a, Vec<double> b, Vec<double> c) {
  return vfmaq_f64(c.v, a.v, b.v);
}
MINIDL_INLINE Vec<double> select(uint64x2_t m, Vec<double> a, Vec<double> b) {
  return vbslq_f64(m, a.v, b.v);
}
MINIDL_INLINE Vec<double> max(Vec<double> a, Vec<double> b) {
  return vbslq_f64(vcgtq_f64(a.v, b.v), a.v, b.v);
}
MINIDL_INLINE Vec<double> min(Vec<double> a, Vec<double> b) {
  return vbslq_f64(vcltq_f64(a.v, b.v), a.v, b.v);
}
MINIDL_INLINE Vec<double> abs(Vec<double> a) { return vabsq_f64(a.v); }
MINIDL_INLINE Vec<double> sqrt(Vec<double> a) { return vsqrtq_f64(a.v); }
MINIDL_INLINE Vec<double> round(Vec<double> a) { return vrndnq_f64(a.v); }
MINIDL_INLINE Vec<double> copysign(Vec<double> a, Vec<double> s) {
  return vbslq_f64(vdupq_n_u64(0x8000000000000000u), s.v, a.v);
}
MINIDL_INLINE Vec<double> ldexp(Vec<double> x, Vec<double> n) {
  const auto power = [](Vec<double> k) {
    return Vec<double>(
        vreinterpretq_f64_s64(vshlq_n_s64(vaddq_s64(vcvtq_s64_f64(k.v), vdupq_n_s64(1023)), 52)));
  };
  const Vec<double> half = round(n * 0.5);
  return x * power(half) * power(n - half);
}
MINIDL_INLINE Vec<double> split_exponent(Vec<double> x, Vec<double>& e) {
  const int64x2_t bits = vreinterpretq_s64_f64(x.v);
  e = vcvtq_f64_s64(vsubq_s64(vshrq_n_s64(bits, 52), vdupq_n_s64(1023)));
  return vreinterpretq_f64_s64(
      vorrq_s64(vandq_s64(bits, vdupq_n_s64(0x000fffffffffffff)), vdupq_n_s64(0x3ff0000000000000)));
}
MINIDL_INLINE Vec<double> interleave_low(Vec<double> a, Vec<double> b) { return vzip1q_f64(a.v, b.v); }
MINIDL_INLINE Vec<double> interleave_high(Vec<double> a, Vec<double> b) { return vzip2q_f64(a.v, b.v); }
MINIDL_INLINE Vec<double> even_odd(Vec<double> a, Vec<double> b) {
  return vcombine_f64(vget_low_f64(a.v), vget_high_f64(b.v));
}
MINIDL_INLINE double reduce_add(Vec<double> a) { return vaddvq_f64(a.v); }
MINIDL_INLINE double reduce_max(Vec<double> a) { return vmaxnmvq_f64(a.v); }

struct Words {
  static constexpr int width = 4;
  uint32x4_t v;

  MINIDL_INLINE Words() : v(vdupq_n_u32(0)) {}
  MINIDL_INLINE Words(uint32x4_t x) : v(x) {}
  MINIDL_INLINE Words(uint32_t s) : v(vdupq_n_u32(s)) {}
  static MINIDL_INLINE Words count_from(uint32_t s) {
    const uint32_t lanes[width] = {s, s + 1, s + 2, s + 3};
    return vld1q_u32(lanes);
  }
  friend MINIDL_INLINE Words operator^(Words a, Words b) { return veorq_u32(a.v, b.v); }
};
MINIDL_INLINE Words multiply(Words a, uint32_t m, Words& high) {
  const uint32x4_t first = vreinterpretq_u32_u64(vmull_n_u32(vget_low_u32(a.v), m));
  const uint32x4_t second = vreinterpretq_u32_u64(vmull_n_u32(vget_high_u32(a.v), m));
  high = vuzp2q_u32(first, second);
  return vuzp1q_u32(first, second);
}
MINIDL_INLINE uint32x4_t at_least(Words a, Words b) { return vcgeq_u32(a.v, b.v); }

}  // namespace
}  // namespace minidl::MINIDL_ISA
