// The activations, forward beside backward, on one register: shared by the elementwise kernels
// (activation.cpp) and the epilogue of the GEMM (matmul.cpp). backward(dy, s) gets s = y for relu, sigmoid
// and tanh, s = x for the others, as kernels.def says. Formulas, and what they do to NaN and infinity, are
// torch's.
#pragma once
#include "kernels.h"
#include "vmath.h"

namespace minidl::MINIDL_ISA {
namespace {

template <class T>
struct Identity {
  MINIDL_INLINE Vec<T> forward(Vec<T> x) const { return x; }
  MINIDL_INLINE Vec<T> backward(Vec<T> dy, Vec<T>) const { return dy; }
};

template <class T>
struct Relu {
  MINIDL_INLINE Vec<T> forward(Vec<T> x) const { return max(T(0), x); }  // in this order NaN stays NaN
  MINIDL_INLINE Vec<T> backward(Vec<T> dy, Vec<T> y) const { return select(y <= Vec<T>(T(0)), T(0), dy); }
};

template <class T>
struct LeakyRelu {
  T slope;
  MINIDL_INLINE Vec<T> forward(Vec<T> x) const { return select(Vec<T>(T(0)) < x, x, x * slope); }
  MINIDL_INLINE Vec<T> backward(Vec<T> dy, Vec<T> x) const {
    return select(Vec<T>(T(0)) < x, dy, dy * slope);
  }
};

template <class T>
struct Sigmoid {
  MINIDL_INLINE Vec<T> forward(Vec<T> x) const { return sigmoid(x); }
  MINIDL_INLINE Vec<T> backward(Vec<T> dy, Vec<T> y) const { return dy * ((Vec<T>(T(1)) - y) * y); }
};

template <class T>
struct Tanh {
  MINIDL_INLINE Vec<T> forward(Vec<T> x) const { return tanh(x); }
  MINIDL_INLINE Vec<T> backward(Vec<T> dy, Vec<T> y) const { return dy * (Vec<T>(T(1)) - y * y); }
};

// x Phi(x); derivative Phi(x) + x phi(x). (Hendrycks and Gimpel, arXiv:1606.08415.)
template <class T>
struct Gelu {
  MINIDL_INLINE Vec<T> forward(Vec<T> x) const { return x * normal_cdf(x); }
  MINIDL_INLINE Vec<T> backward(Vec<T> dy, Vec<T> x) const {
    return dy * fmadd(x, normal_pdf(x), normal_cdf(x));
  }
};

// x (1 + tanh u) / 2 = x sigmoid(2u) with u = sqrt(2 / pi) (x + 0.044715 x^3), same source. From e =
// exp(-|2u|) both sigmoid and its derivative come without cancellation: 1 / (1 + e) or e / (1 + e), and e /
// (1 + e)^2.
template <class T>
struct GeluTanh {
  static constexpr T k = static_cast<T>(2 * 0.79788456080286535588), c = static_cast<T>(0.044715);
  static MINIDL_INLINE Vec<T> gate(Vec<T> x, Vec<T>& gate_slope) {
    const Vec<T> u2 = fmadd(x * x * c, x, x) * k;
    const Vec<T> e = exp(neg(abs(u2)));
    const Vec<T> r = ratio(Vec<T>(T(1)), e + T(1));
    gate_slope = e * r * r;
    return select(u2 < Vec<T>(T(0)), e * r, r);
  }
  MINIDL_INLINE Vec<T> forward(Vec<T> x) const {
    Vec<T> unused;
    return x * gate(x, unused);
  }
  MINIDL_INLINE Vec<T> backward(Vec<T> dy, Vec<T> x) const {
    Vec<T> slope;
    const Vec<T> g = gate(x, slope);
    return dy * fmadd(x * slope, fmadd(x * x, 3 * c, T(1)) * k, g);
  }
};

template <class T>
struct Silu {
  MINIDL_INLINE Vec<T> forward(Vec<T> x) const { return x * sigmoid(x); }
  MINIDL_INLINE Vec<T> backward(Vec<T> dy, Vec<T> x) const {
    const Vec<T> s = sigmoid(x);
    return dy * s * fmadd(x, Vec<T>(T(1)) - s, T(1));
  }
};

// log(1 + e^(beta x)) / beta, and x itself where beta x > threshold.
template <class T>
struct Softplus {
  T beta, threshold;
  MINIDL_INLINE Vec<T> forward(Vec<T> x) const {
    const Vec<T> z = x * beta;
    return select(Vec<T>(threshold) < z, x, log1p(exp(z)) / Vec<T>(beta));
  }
  MINIDL_INLINE Vec<T> backward(Vec<T> dy, Vec<T> x) const {
    const Vec<T> z = x * beta;
    const Vec<T> e = exp(z);
    return select(Vec<T>(threshold) < z, dy, dy * e / (e + T(1)));
  }
};

// Calls visit with the activation as a type, so that the loop over elements has no branch on the kind.
template <class T, class F>
void visit_activation(Activation f, F visit) {
  const T a = static_cast<T>(f.alpha), b = static_cast<T>(f.beta);
  switch (f.kind) {
    case ActivationKind::none:
      return visit(Identity<T>{});
    case ActivationKind::relu:
      return visit(Relu<T>{});
    case ActivationKind::leaky_relu:
      return visit(LeakyRelu<T>{a});
    case ActivationKind::sigmoid:
      return visit(Sigmoid<T>{});
    case ActivationKind::tanh:
      return visit(Tanh<T>{});
    case ActivationKind::gelu:
      return visit(Gelu<T>{});
    case ActivationKind::gelu_tanh:
      return visit(GeluTanh<T>{});
    case ActivationKind::silu:
      return visit(Silu<T>{});
    case ActivationKind::softplus:
      return visit(Softplus<T>{a, b});
  }
}

// The epilogue's activation, on rows of C that have just been written and are still in L1.
template <class T>
void activate(T* c, int64_t ldc, int64_t rows, int64_t cols, Activation activation) {
  if (activation.kind == ActivationKind::none) return;
  if (ldc == cols) {
    cols *= rows;
    rows = 1;
  }
  visit_activation<T>(activation, [&](auto f) {
    for (int64_t i = 0; i < rows; ++i) {
      for_lanes<T>(0, cols, [&](int64_t j, int64_t lanes, auto tag) {
        store_lanes(f.forward(load_lanes(c + i * ldc + j, lanes, tag)), c + i * ldc + j, lanes, tag);
      });
    }
  });
}

}  // namespace
}  // namespace minidl::MINIDL_ISA
