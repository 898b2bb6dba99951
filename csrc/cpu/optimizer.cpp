// Updates of parameters. Formulas, their order and what is fused into one rounding: as torch.optim's
// single-tensor code runs on the CPU. Scalars are computed in double and then cast: 1 - float(0.999) is off
// by 1e-5.
#include "kernels.h"
#include "parallel.h"
#include "vec.h"

namespace minidl::MINIDL_ISA {
namespace {

// Elements are split over threads in whole chunks, whatever tensor they belong to.
constexpr int64_t chunk = 2048;
// Below this many elements a second thread costs more than it saves.
constexpr int64_t grain = 32768;

// Calls update(t, begin, end) on ranges that together cover each element of each tensor once.
template <class T, class F>
void for_each_range(const OptimizerTensor<T>* tensors, int64_t count, F update) {
  int64_t total = 0;
  for (int64_t k = 0; k < count; ++k) total += tensors[k].n;
  parallel_for(ceil_div(total, chunk), grain / chunk, [&](int64_t first, int64_t last) {
    const F f = update;  // a local copy, so that stores to tensors cannot alias the constants it holds
    const int64_t begin = first * chunk, end = min_of(last * chunk, total);
    int64_t start = 0;  // of tensor t, in the row of all elements
    for (const OptimizerTensor<T>* t = tensors; start < end; start += t->n, ++t) {
      const int64_t b = max_of(begin - start, 0), e = min_of(end - start, t->n);
      if (b < e) f(*t, b, e);
    }
  });
}

// a + weight * (b - a), from the nearer end: exact at weight 0 and 1, as torch.lerp.
template <class T>
struct Lerp {
  Vec<T> weight;
  bool near_a;
  explicit Lerp(double w) : weight(static_cast<T>(w < 0.5 ? w : w - 1)), near_a(w < 0.5) {}
  MINIDL_INLINE Vec<T> operator()(Vec<T> a, Vec<T> b) const { return fmadd(weight, b - a, near_a ? a : b); }
};

// torch.maximum: NaN if either is. (max alone returns only a NaN of its second argument.)
template <class T>
MINIDL_INLINE Vec<T> maximum(Vec<T> a, Vec<T> b) {
  return select(a == a, max(a, b), a);
}

// What every update begins with: the gradient with the sign of the objective, plus L2 weight decay. Decay of
// 0 is no operation, not a product with 0: a parameter may be infinite.
template <class T>
struct Gradient {
  Vec<T> sign, decay;
  bool decays;
  Gradient(bool maximize, double weight_decay)
      : sign(T(maximize ? -1 : 1)), decay(static_cast<T>(weight_decay)), decays(weight_decay != 0) {}
  MINIDL_INLINE Vec<T> operator()(Vec<T> g, Vec<T> p) const {
    g = sign * g;
    return decays ? fmadd(decay, p, g) : g;
  }
};

// v * decay + (1 - decay) * g^2
template <class T>
struct SquareAverage {
  Vec<T> decay, weight;
  explicit SquareAverage(double d) : decay(static_cast<T>(d)), weight(static_cast<T>(1 - d)) {}
  MINIDL_INLINE Vec<T> operator()(Vec<T> v, Vec<T> g) const { return fmadd(weight * g, g, decay * v); }
};

}  // namespace

template <class T>
void sgd_step(const OptimizerTensor<T>* tensors, int64_t count, SgdParams s, Context) {
  const Gradient<T> gradient(s.maximize, s.weight_decay);
  const Vec<T> lr(static_cast<T>(-s.lr)), momentum(static_cast<T>(s.momentum));
  const Vec<T> weight(static_cast<T>(1 - s.dampening));
  const bool nesterov = s.nesterov;
  for_each_range(tensors, count, [=](OptimizerTensor<T> t, int64_t begin, int64_t end) {
    T* buffer = t.state[0];
    for_lanes<T>(begin, end, [&](int64_t i, int64_t lanes, auto tag) {
      const Vec<T> p = load_lanes<T>(t.p + i, lanes, tag);
      Vec<T> g = gradient(load_lanes(t.g + i, lanes, tag), p);
      if (buffer) {
        const Vec<T> b = t.first ? g : fmadd(weight, g, momentum * load_lanes<T>(buffer + i, lanes, tag));
        store_lanes(b, buffer + i, lanes, tag);
        g = nesterov ? fmadd(momentum, b, g) : b;
      }
      store_lanes(fmadd(lr, g, p), t.p + i, lanes, tag);
    });
  });
}

template <class T>
void rmsprop_step(const OptimizerTensor<T>* tensors, int64_t count, RmspropParams s, Context) {
  const Gradient<T> gradient(s.maximize, s.weight_decay);
  const SquareAverage<T> average(s.alpha);
  const Lerp<T> lerp(1 - s.alpha);
  const Vec<T> lr(static_cast<T>(-s.lr)), momentum(static_cast<T>(s.momentum)), eps(static_cast<T>(s.eps));
  for_each_range(tensors, count, [=](OptimizerTensor<T> t, int64_t begin, int64_t end) {
    T *square_avg = t.state[0], *buffer = t.state[1], *grad_avg = t.state[2];
    for_lanes<T>(begin, end, [&](int64_t i, int64_t lanes, auto tag) {
      const Vec<T> p = load_lanes<T>(t.p + i, lanes, tag);
      const Vec<T> g = gradient(load_lanes(t.g + i, lanes, tag), p);
      Vec<T> v = average(load_lanes<T>(square_avg + i, lanes, tag), g);
      store_lanes(v, square_avg + i, lanes, tag);
      if (grad_avg) {
        const Vec<T> a = lerp(load_lanes<T>(grad_avg + i, lanes, tag), g);
        store_lanes(a, grad_avg + i, lanes, tag);
        v = fmadd(neg(a), a, v);
      }
      const Vec<T> denominator = sqrt(v) + eps;
      if (buffer) {
        const Vec<T> b = momentum * load_lanes<T>(buffer + i, lanes, tag) + g / denominator;
        store_lanes(b, buffer + i, lanes, tag);
        store_lanes(fmadd(lr, b, p), t.p + i, lanes, tag);
      } else {
        store_lanes(p + lr * g / denominator, t.p + i, lanes, tag);
      }
    });
  });
}

template <class T>
void adam_step(const OptimizerTensor<T>* tensors, int64_t count, AdamParams s, Context) {
  const Gradient<T> gradient(s.maximize, s.decoupled ? 0 : s.weight_decay);
  const Vec<T> keep(static_cast<T>(s.decoupled ? 1 - s.lr * s.weight_decay : 1));
  const Lerp<T> lerp(1 - s.beta1);
  const SquareAverage<T> average(s.beta2);
  const Vec<T> eps(static_cast<T>(s.eps));
  const double lr = s.lr;
  for_each_range(tensors, count, [=](OptimizerTensor<T> t, int64_t begin, int64_t end) {
    T *exp_avg = t.state[0], *exp_avg_sq = t.state[1], *max_exp_avg_sq = t.state[2];
    const Vec<T> step_size(static_cast<T>(-lr / t.correction1)), scale(static_cast<T>(1 / t.correction2));
    for_lanes<T>(begin, end, [&](int64_t i, int64_t lanes, auto tag) {
      Vec<T> p = load_lanes<T>(t.p + i, lanes, tag);
      const Vec<T> g = gradient(load_lanes(t.g + i, lanes, tag), p);
      p = p * keep;
      const Vec<T> m = lerp(load_lanes<T>(exp_avg + i, lanes, tag), g);
      store_lanes(m, exp_avg + i, lanes, tag);
      Vec<T> v = average(load_lanes<T>(exp_avg_sq + i, lanes, tag), g);
      store_lanes(v, exp_avg_sq + i, lanes, tag);
      if (max_exp_avg_sq) {
        v = maximum(load_lanes<T>(max_exp_avg_sq + i, lanes, tag), v);
        store_lanes(v, max_exp_avg_sq + i, lanes, tag);
      }
      store_lanes(p + step_size * m / fmadd(sqrt(v), scale, eps), t.p + i, lanes, tag);
    });
  });
}

template void sgd_step(const OptimizerTensor<float>*, int64_t, SgdParams, Context);
template void sgd_step(const OptimizerTensor<double>*, int64_t, SgdParams, Context);
template void rmsprop_step(const OptimizerTensor<float>*, int64_t, RmspropParams, Context);
template void rmsprop_step(const OptimizerTensor<double>*, int64_t, RmspropParams, Context);
template void adam_step(const OptimizerTensor<float>*, int64_t, AdamParams, Context);
template void adam_step(const OptimizerTensor<double>*, int64_t, AdamParams, Context);

}  // namespace minidl::MINIDL_ISA
