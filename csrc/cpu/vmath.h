// Elementary functions over Vec: exp, log, log1p, tanh, sigmoid, with errors of 1 to 3 ulp, and normal_cdf,
// whose float form errs by an ulp of 1, so relatively more where it is small, as torch's does.
// tests/test_activation.py holds the activations built on them against float64.
//
// Polynomials, but for those of normal_cdf and tanh, are the plain Taylor series, on intervals small enough
// that a term or two more than a minimax fit needs is all they cost; so their constants can be checked by
// eye.
#pragma once
#include "vec.h"

namespace minidl::MINIDL_ISA {
namespace {

template <class T>
struct Constants;

template <>
struct Constants<float> {
  static constexpr float log2e = 1.44269504f;
  static constexpr float ln2_hi = 0.693359375f;  // 9 bits: n * ln2_hi is exact for every exponent n
  static constexpr float ln2_lo = -2.12194440e-4f;
  static constexpr float exp_max = 89.0f, exp_min = -104.0f;  // beyond: inf and 0
  static constexpr float to_integer = 12582912.0f;            // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float min_normal = 1.17549435e-38f, denormal_scale = 16777216.0f, denormal_bits = 24.0f;
  static constexpr int exp_terms = 7;    // r^7 / 7!, |r| <= ln2 / 2: relative error 5e-9
  static constexpr int atanh_terms = 5;  // s^11 / 11, |s| <= 0.172: relative error 5e-10
};

template <>
struct Constants<double> {
  static constexpr double log2e = 1.4426950408889634;
  static constexpr double ln2_hi = 6.93147180369123816490e-01;  // 33 bits
  static constexpr double ln2_lo = 1.90821492927058770002e-10;
  static constexpr double exp_max = 710.0, exp_min = -746.0;
  static constexpr double tanh_max = 20.0;  // beyond: 1 after rounding
  static constexpr double to_integer = 6755399441055744.0;
  static constexpr double min_normal = 2.2250738585072014e-308, denormal_scale = 18014398509481984.0,
                          denormal_bits = 54.0;
  static constexpr int exp_terms = 13;    // relative error 4e-18
  static constexpr int atanh_terms = 10;  // relative error 2e-18
};

// e^r - 1 for |r| <= ln2 / 2: r + r^2 / 2! + ... + r^exp_terms / exp_terms!
template <class T>
MINIDL_INLINE Vec<T> expm1_series(Vec<T> r) {
  constexpr int terms = Constants<T>::exp_terms;
  T factorial = 1;
  for (int i = 2; i <= terms; ++i) factorial *= static_cast<T>(i);
  T coefficient = T(1) / factorial;
  Vec<T> p = coefficient;
  MINIDL_UNROLL for (int i = terms; i > 2; --i) {
    factorial /= static_cast<T>(i);
    p = fmadd(p, r, T(1) / factorial);
  }
  return fmadd(p * r, r, r);
}

// x = n ln2 + r: returns n, |r| <= ln2 / 2.
template <class T>
MINIDL_INLINE Vec<T> reduce_exponent(Vec<T> x, Vec<T>& r) {
  using K = Constants<T>;
  const Vec<T> n = fmadd(x, K::log2e, K::to_integer) - Vec<T>(K::to_integer);
  r = fmadd(n, -K::ln2_lo, fmadd(n, -K::ln2_hi, x));
  return n;
}

template <class T>
MINIDL_INLINE Vec<T> exp(Vec<T> x) {
  using K = Constants<T>;
  Vec<T> r;
  const Vec<T> n = reduce_exponent(max(K::exp_min, min(K::exp_max, x)), r);
  return ldexp(expm1_series(r) + T(1), n);
}

// log(m 2^e) = e ln2 + 2 atanh(s), s = (m - 1) / (m + 1), m in [sqrt(1/2), sqrt(2)).
template <class T>
MINIDL_INLINE Vec<T> log(Vec<T> x) {
  using K = Constants<T>;
  const auto tiny = x < K::min_normal;
  Vec<T> e;
  Vec<T> m = split_exponent(select(tiny, x * K::denormal_scale, x), e);
  e = select(tiny, e - K::denormal_bits, e);
  const auto upper = Vec<T>(T(1.41421356237309505)) < m;
  m = select(upper, m * T(0.5), m);
  e = select(upper, e + T(1), e);

  const Vec<T> f = m - T(1);
  const Vec<T> s = ratio(f, f + T(2));
  const Vec<T> s2 = s * s;
  constexpr int terms = K::atanh_terms;
  Vec<T> p = T(2) / static_cast<T>(2 * terms + 1);
  MINIDL_UNROLL for (int i = terms - 1; i >= 1; --i) p = fmadd(p, s2, T(2) / static_cast<T>(2 * i + 1));
  // 2 s = f - s f: so the leading term is f itself, exact.
  const Vec<T> log_m = f - s * (f - s2 * p);
  Vec<T> y = fmadd(e, K::ln2_hi, log_m + e * K::ln2_lo);

  const T inf = static_cast<T>(__builtin_inf()), nan = static_cast<T>(__builtin_nan(""));
  y = select(x == Vec<T>(inf), x, y);
  y = select(x == Vec<T>(T(0)), -inf, y);
  y = select(x < Vec<T>(T(0)), nan, y);
  return select(x == x, y, x);
}

// log(1 + x) for x >= 0: the rounding error of 1 + x, to first order, is put back.
template <class T>
MINIDL_INLINE Vec<T> log1p(Vec<T> x) {
  const Vec<T> u = x + T(1);
  const Vec<T> lost = select(u < Vec<T>(static_cast<T>(1e30)), x - (u - T(1)), T(0));
  return log(u) + ratio(lost, min(static_cast<T>(1e30), u));
}

template <class T>
MINIDL_INLINE Vec<T> sigmoid(Vec<T> x) {
  const Vec<T> e = exp(neg(abs(x)));  // at most 1, so that the ratio is in its range
  return ratio(select(x < Vec<T>(T(0)), e, T(1)), e + T(1));
}

// Horner's rule, coefficients from the constant term up.
template <int N>
MINIDL_INLINE Vec<float> polynomial(const float (&c)[N], Vec<float> x) {
  Vec<float> p = c[N - 1];
  MINIDL_UNROLL for (int i = N - 2; i >= 0; --i) p = fmadd(p, x, c[i]);
  return p;
}

// tanh(x) as x P(x^2) / Q(x^2), degrees 4 and 4, fitted as normal_cdf below for |x| <= 9 (largest relative
// error 2e-8; evaluated in float 3.5e-7). Beyond, it is 1 after rounding.
MINIDL_INLINE Vec<float> tanh(Vec<float> x) {
  constexpr float limit = 9.0f;
  constexpr float p[] = {9.999999794e-01f, 1.338102569e-01f, 3.495588219e-03f, 2.060908459e-05f,
                         1.335466561e-08f};
  constexpr float q[] = {1.0f, 4.671434128e-01f, 2.587698248e-02f, 3.285635005e-04f, 7.776559804e-07f};
  const Vec<float> size = abs(x), a = min(limit, size), a2 = a * a;
  const Vec<float> y = min(1.0f, ratio(a * polynomial(p, a2), polynomial(q, a2)));
  return copysign(select(Vec<float>(limit) <= size, 1.0f, y), x);
}
// t / (t + 2) with t = e^|2x| - 1 = 2^n (e^r - 1) + (2^n - 1), which does not cancel near 0.
MINIDL_INLINE Vec<double> tanh(Vec<double> x) {
  const Vec<double> a = min(Constants<double>::tanh_max, abs(x));
  Vec<double> r;
  const Vec<double> n = reduce_exponent(a + a, r);
  const Vec<double> power = ldexp(Vec<double>(1.0), n);
  const Vec<double> t = fmadd(expm1_series(r), power, power - 1.0);
  return copysign(t / (t + 2.0), x);
}

// Phi(x), the standard normal distribution function, as 1/2 + x R(x^2) / 2 with R = P / Q of degrees 5 and 5,
// fitted to erf(x / sqrt 2) / x for |x| <= 5.6 by least squares with Lawson's weights (largest error 2e-8;
// evaluated in float 1.6e-7, one ulp of 1). Phi(-5.6) is 1e-8; beyond it the result is 0, so that -inf times
// it is NaN, as torch has it.
MINIDL_INLINE Vec<float> normal_cdf(Vec<float> x) {
  constexpr float limit = 5.6f;
  constexpr float p[] = {7.978844431e-01f, 6.875219487e-02f, 9.414518037e-03f,
                         3.477013643e-04f, 1.271307099e-05f, 4.429068959e-08f};
  constexpr float q[] = {
      1.0f, 2.528338108e-01f, 2.894008277e-02f, 1.912977809e-03f, 7.510193053e-05f, 1.180213199e-06f};
  const Vec<float> a = max(-limit, min(limit, x));
  const Vec<float> a2 = a * a;
  const Vec<float> cdf = fmadd(a * 0.5f, ratio(polynomial(p, a2), polynomial(q, a2)), 0.5f);
  return select(x < Vec<float>(-limit), 0.0f, max(0.0f, min(1.0f, cdf)));
}
// double is for checking gradients, not for speed: libm, lane by lane.
MINIDL_INLINE Vec<double> normal_cdf(Vec<double> x) {
  double lanes[Vec<double>::width];
  x.store(lanes);
  for (double& lane : lanes) lane = 0.5 * __builtin_erfc(-lane * 0.70710678118654752440);
  return Vec<double>::load(lanes);
}
template <class T>
MINIDL_INLINE Vec<T> normal_pdf(Vec<T> x) {
  return exp(x * x * T(-0.5)) * T(0.39894228040143267794);
}

}  // namespace
}  // namespace minidl::MINIDL_ISA
