// Updates of parameters, of one element and of a tensor. Formulas and their order as in csrc/cpu/optimizer.cpp; scalars
// come in double and are cast once.
#pragma once
#include "tensor_list.cuh"

namespace minidl::cuda {
namespace {

template <class T>
struct UpdateRow {
  T* p;
  const T* g;
  T* state[3];
  int64_t n;
  Wide<T> scalars[3];            // of this tensor's step, as Scalars makes them
  const Wide<T>* scalars_there;  // or nullptr: they were computed on the device
  bool vectors;
  bool first;  // sgd: the momentum buffer is not read
};

// a + weight * (b - a), from the nearer end: exact at weight 0 and 1, as torch.lerp.
template <class W>
struct Lerp {
  W weight;
  bool near_a;
  explicit __host__ __device__ Lerp(double w)
      : weight(static_cast<W>(w < 0.5 ? w : w - 1)), near_a(w < 0.5) {}
  MINIDL_DEVICE W operator()(W a, W b) const { return weight * (b - a) + (near_a ? a : b); }
};

// NaN if either is, as torch.maximum.
template <class W>
MINIDL_DEVICE W maximum(W a, W b) {
  return a > b || a != a ? a : b;
}
template <class W>
MINIDL_DEVICE W minimum(W a, W b) {
  return a < b || a != a ? a : b;
}

// The gradient with the sign of the objective, plus L2 weight decay. Decay of 0 is no operation, not a
// product with 0: a parameter may be infinite.
template <class W>
struct Gradient {
  W sign, decay;
  __host__ __device__ Gradient(bool maximize, double weight_decay)
      : sign(maximize ? -1 : 1), decay(static_cast<W>(weight_decay)) {}
  MINIDL_DEVICE W operator()(W g, W p) const { return decay != W(0) ? decay * p + sign * g : sign * g; }
};

// v * decay + (1 - decay) * g^2
template <class W>
struct SquareAverage {
  W decay, weight;
  explicit __host__ __device__ SquareAverage(double d)
      : decay(static_cast<W>(d)), weight(static_cast<W>(1 - d)) {}
  MINIDL_DEVICE W operator()(W v, W g) const { return weight * g * g + decay * v; }
};

// What an update takes from the learning rate and from the tensor's step: lr for sgd and rmsprop; for adam -lr / (1 -
// beta1^t), 1 / sqrt(1 - beta2^t), and what a parameter is multiplied by.
template <class W>
struct Scalars {
  bool adam;
  double beta1, beta2, decay;
  __host__ __device__ void operator()(W (&s)[3], double lr, double correction1, double correction2) const {
    s[0] = static_cast<W>(adam ? -lr / correction1 : lr);
    s[1] = static_cast<W>(adam ? 1 / correction2 : 0);
    s[2] = static_cast<W>(1 - lr * decay);
  }
};

// An update of one element: p and state are changed; row.state says which state there is.
template <class W>
struct Sgd {
  Gradient<W> gradient;
  W momentum, weight;
  bool nesterov;
  template <class Row>
  MINIDL_DEVICE void operator()(W& p, W g, W (&state)[3], const W (&scalars)[3], const Row& row) const {
    g = gradient(g, p);
    if (row.state[0]) {
      state[0] = row.first ? g : weight * g + momentum * state[0];
      g = nesterov ? momentum * state[0] + g : state[0];
    }
    p -= scalars[0] * g;
  }
};

template <class W>
struct Rmsprop {
  Gradient<W> gradient;
  SquareAverage<W> average;
  Lerp<W> lerp;
  W momentum, eps;
  template <class Row>
  MINIDL_DEVICE void operator()(W& p, W g, W (&state)[3], const W (&scalars)[3], const Row& row) const {
    g = gradient(g, p);
    W v = state[0] = average(state[0], g);
    if (row.state[2]) {
      state[2] = lerp(state[2], g);
      v -= state[2] * state[2];
    }
    const W denominator = sqrt(v) + eps;
    if (row.state[1]) {
      state[1] = momentum * state[1] + g / denominator;
      p -= scalars[0] * state[1];
    } else {
      p -= scalars[0] * g / denominator;
    }
  }
};

template <class W>
struct Adam {
  Gradient<W> gradient;
  Lerp<W> lerp;
  SquareAverage<W> average;
  W eps;
  template <class Row>
  MINIDL_DEVICE void operator()(W& p, W g, W (&state)[3], const W (&scalars)[3], const Row& row) const {
    g = gradient(g, p);
    p *= scalars[2];
    state[0] = lerp(state[0], g);
    W v = state[1] = average(state[1], g);
    if (row.state[2]) v = state[2] = maximum(state[2], v);
    p += scalars[0] * state[0] / (sqrt(v) * scalars[1] + eps);
  }
};

template <class T, class Step>
struct UpdateElements {
  Step step;
  MINIDL_DEVICE void operator()(const UpdateRow<T>& row, Range range, int64_t) const {
    Wide<T> scalars[3];
    MINIDL_UNROLL for (int i = 0; i < 3; ++i) {
      scalars[i] = row.scalars_there ? row.scalars_there[i] : row.scalars[i];
    }
    each_in<T>(range, row.vectors, [&](int64_t i, auto width) {
      Wide<T> p[width], g[width], state[3][width];
      load<width>(p, row.p + i);
      load<width>(g, row.g + i);
      MINIDL_UNROLL for (int s = 0; s < 3; ++s) {
        if (row.state[s] && !row.first) load<width>(state[s], row.state[s] + i);
      }
      MINIDL_UNROLL for (int j = 0; j < width; ++j) {
        Wide<T> of_element[3] = {state[0][j], state[1][j], state[2][j]};
        step(p[j], g[j], of_element, scalars, row);
        MINIDL_UNROLL for (int s = 0; s < 3; ++s) state[s][j] = of_element[s];
      }
      MINIDL_UNROLL for (int s = 0; s < 3; ++s) {
        if (row.state[s]) store<width>(row.state[s] + i, state[s]);
      }
      store<width>(row.p + i, p);
    });
  }
};

// The same on the device, a block a tensor: counts its step, and leaves its scalars to the update.
template <class W>
struct ScalarsRow {
  float* step;
  double correction1, correction2;  // where there is no step
  W* to;
  int64_t n;
};
template <class W>
struct CountStep {
  Scalars<W> scalars;
  LearningRate lr;
  MINIDL_DEVICE void operator()(const ScalarsRow<W>& row, Range, int64_t) const {
    if (threadIdx.x != 0) return;
    double correction1 = row.correction1, correction2 = row.correction2;
    if (row.step) {
      const double t = *row.step += 1;
      correction1 = 1 - pow(scalars.beta1, t);
      correction2 = sqrt(1 - pow(scalars.beta2, t));
    }
    W s[3];
    scalars(s, lr.device ? *lr.device : lr.value, correction1, correction2);
    MINIDL_UNROLL for (int i = 0; i < 3; ++i) row.to[i] = s[i];
  }
};

}  // namespace
}  // namespace minidl::cuda
