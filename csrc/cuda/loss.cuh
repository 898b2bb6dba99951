// The losses of two numbers, with their derivatives.
#pragma once
#include "activation.cuh"

namespace minidl::cuda {
namespace {

// Each loss on numbers: value(x, t, pos_weight), and its derivatives dx(...) and dt(...). Formulas are
// torch's.

// Losses of d = x - t alone.
template <class T, class F>
struct OfDifference {
  F f;
  MINIDL_DEVICE T value(T x, T t, T) const { return f.value(x - t); }
  MINIDL_DEVICE T dx(T x, T t, T) const { return f.slope(x - t); }
  MINIDL_DEVICE T dt(T x, T t, T) const { return -f.slope(x - t); }
};

template <class T>
struct Mse {
  MINIDL_DEVICE T value(T d) const { return d * d; }
  MINIDL_DEVICE T slope(T d) const { return d * T(2); }
};

// -1, 0 or 1; 0 for NaN, as torch.
template <class T>
MINIDL_DEVICE T sign(T d) {
  return T((d > T(0)) - (d < T(0)));
}

template <class T>
struct L1 {
  MINIDL_DEVICE T value(T d) const { return fabs(d); }
  MINIDL_DEVICE T slope(T d) const { return sign(d); }
};

// d^2 / (2 beta) below beta, |d| - beta / 2 above.
template <class T>
struct SmoothL1 {
  T beta;
  MINIDL_DEVICE T value(T d) const {
    const T a = fabs(d);
    return a < beta ? a * a * T(0.5) / beta : a - T(0.5) * beta;
  }
  MINIDL_DEVICE T slope(T d) const { return fabs(d) >= beta ? sign(d) : d / beta; }
};

// d^2 / 2 up to delta, delta (|d| - delta / 2) above.
template <class T>
struct Huber {
  T delta;
  MINIDL_DEVICE T value(T d) const {
    const T a = fabs(d);
    return a <= delta ? a * a * T(0.5) : (a - T(0.5) * delta) * delta;
  }
  MINIDL_DEVICE T slope(T d) const { return fabs(d) >= delta ? sign(d) * delta : d; }
};

// -t log(x) - (1 - t) log(1 - x), both logarithms at least -100; NaN stays NaN.
template <class T>
struct Bce {
  static MINIDL_DEVICE T clamped(T log_x) { return log_x < T(-100) ? T(-100) : log_x; }
  MINIDL_DEVICE T value(T x, T t, T) const { return (t - T(1)) * clamped(log1p(-x)) - t * clamped(log(x)); }
  MINIDL_DEVICE T dx(T x, T t, T) const {
    const T d = (T(1) - x) * x, least = static_cast<T>(1e-12);
    return (x - t) / (d < least ? least : d);
  }
  MINIDL_DEVICE T dt(T x, T, T) const { return log1p(-x) - log(x); }
};

// (1 - t) x - (1 + (pos_weight - 1) t) log sigmoid(x). Either side of 0 is written so that nothing cancels.
template <class T>
struct BceWithLogits {
  static MINIDL_DEVICE T scale(T t, T pos_weight) { return (pos_weight - T(1)) * t + T(1); }
  MINIDL_DEVICE T value(T x, T t, T pos_weight) const {
    const T slope = x > T(0) ? T(1) - t : -(pos_weight * t);
    return slope * x + scale(t, pos_weight) * log1p(exp(-fabs(x)));
  }
  MINIDL_DEVICE T dx(T x, T t, T pos_weight) const {
    return scale(t, pos_weight) * logistic(x) - pos_weight * t;
  }
  MINIDL_DEVICE T dt(T x, T, T pos_weight) const {
    const T log_sigmoid = (x > T(0) ? T(0) : x) - log1p(exp(-fabs(x)));
    return (T(1) - pos_weight) * log_sigmoid - x;
  }
};

// Calls visit with the loss as a type: on the host, so that a kernel has no branch on the kind, or in a kernel that must
// have it.
template <class T, class F>
__host__ __device__ void visit_loss(LossParams p, F visit) {
  const T beta = static_cast<T>(p.beta);
  switch (p.kind) {
    case LossKind::mse:
      return visit(OfDifference<T, Mse<T>>{});
    case LossKind::l1:
      return visit(OfDifference<T, L1<T>>{});
    case LossKind::smooth_l1:
      return visit(OfDifference<T, SmoothL1<T>>{{beta}});
    case LossKind::huber:
      return visit(OfDifference<T, Huber<T>>{{beta}});
    case LossKind::bce:
      return visit(Bce<T>{});
    case LossKind::bce_with_logits:
      return visit(BceWithLogits<T>{});
  }
}

}  // namespace
}  // namespace minidl::cuda
