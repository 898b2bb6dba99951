// The activations, forward beside backward, on one number: shared by the elementwise kernels (activation.cu)
// and the epilogue of the GEMM. backward(dy, s) gets s = y for relu, sigmoid and tanh, s = x for the others,
// as kernels.def says. Formulas, and what they do to NaN and infinity, are torch's.
#pragma once
#include "launch.cuh"

namespace minidl::cuda {
namespace {

template <class T>
MINIDL_DEVICE T logistic(T x) {
  return T(1) / (T(1) + exp(-x));
}

template <class T>
struct Identity {
  MINIDL_DEVICE T forward(T x) const { return x; }
  MINIDL_DEVICE T backward(T dy, T) const { return dy; }
};

template <class T>
struct Relu {
  MINIDL_DEVICE T forward(T x) const { return x <= T(0) ? T(0) : x; }  // in this form NaN stays NaN
  MINIDL_DEVICE T backward(T dy, T y) const { return y <= T(0) ? T(0) : dy; }
};

template <class T>
struct LeakyRelu {
  T slope;
  MINIDL_DEVICE T forward(T x) const { return x > T(0) ? x : x * slope; }
  MINIDL_DEVICE T backward(T dy, T x) const { return x > T(0) ? dy : dy * slope; }
};

template <class T>
struct Sigmoid {
  MINIDL_DEVICE T forward(T x) const { return logistic(x); }
  MINIDL_DEVICE T backward(T dy, T y) const { return dy * ((T(1) - y) * y); }
};

template <class T>
struct Tanh {
  MINIDL_DEVICE T forward(T x) const { return tanh(x); }
  MINIDL_DEVICE T backward(T dy, T y) const { return dy * (T(1) - y * y); }
};

// x Phi(x); derivative Phi(x) + x phi(x). (Hendrycks and Gimpel, arXiv:1606.08415.)
template <class T>
struct Gelu {
  static MINIDL_DEVICE T cdf(T x) { return T(0.5) * erfc(x * T(-0.70710678118654752440)); }
  static MINIDL_DEVICE T pdf(T x) { return T(0.39894228040143267794) * exp(T(-0.5) * x * x); }
  MINIDL_DEVICE T forward(T x) const { return x * cdf(x); }
  MINIDL_DEVICE T backward(T dy, T x) const { return dy * (x * pdf(x) + cdf(x)); }
};

// x sigmoid(2u) with u = sqrt(2 / pi) (x + 0.044715 x^3), same source. From e = exp(-|2u|) both sigmoid and
// its derivative come without cancellation.
template <class T>
struct GeluTanh {
  static constexpr T k = static_cast<T>(2 * 0.79788456080286535588), c = static_cast<T>(0.044715);
  static MINIDL_DEVICE T gate(T x, T& gate_slope) {
    const T u2 = (x * x * c * x + x) * k;
    const T e = exp(-fabs(u2)), r = T(1) / (e + T(1));
    gate_slope = e * r * r;
    return u2 < T(0) ? e * r : r;
  }
  MINIDL_DEVICE T forward(T x) const {
    T unused;
    return x * gate(x, unused);
  }
  MINIDL_DEVICE T backward(T dy, T x) const {
    T slope;
    const T g = gate(x, slope);
    return dy * (x * slope * (x * x * (3 * c) + T(1)) * k + g);
  }
};

template <class T>
struct Silu {
  MINIDL_DEVICE T forward(T x) const { return x * logistic(x); }
  MINIDL_DEVICE T backward(T dy, T x) const {
    const T s = logistic(x);
    return dy * s * (x * (T(1) - s) + T(1));
  }
};

// log(1 + e^(beta x)) / beta, and x itself where beta x > threshold.
template <class T>
struct Softplus {
  T beta, threshold;
  MINIDL_DEVICE T forward(T x) const {
    const T z = x * beta;
    return z > threshold ? x : log1p(exp(z)) / beta;
  }
  MINIDL_DEVICE T backward(T dy, T x) const {
    const T z = x * beta, e = exp(z);
    return z > threshold ? dy : dy * e / (e + T(1));
  }
};

// Calls visit with the activation as a type: on the host, so that a kernel has no branch on the kind, or in a
// kernel that must have it.
template <class T, class F>
__host__ __device__ void visit_activation(Activation f, F visit) {
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

// The activations whose derivative is computed from the output.
template <class T, class Visit>
void visit_invertible(ActivationKind kind, Visit visit) {
  if (kind == ActivationKind::relu) return visit(Relu<T>{});
  if (kind == ActivationKind::sigmoid) return visit(Sigmoid<T>{});
  if (kind == ActivationKind::tanh) return visit(Tanh<T>{});
  visit(Identity<T>{});
}

}  // namespace
}  // namespace minidl::cuda
