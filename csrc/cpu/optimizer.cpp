// Updates of parameters, and clipping of their gradients. Formulas, their order and what is fused into one
// rounding: as torch.optim's single-tensor code runs on the CPU. Scalars are computed in double and then
// cast: 1 - float(0.999) is off by 1e-5.
#include "kernels.h"
#include "parallel.h"
#include "reduce.h"

namespace minidl::MINIDL_ISA {
namespace {

// Elements are split over threads in whole chunks, whatever tensor they belong to.
constexpr int64_t chunk = 2048;
// Below this many elements a second thread costs more than it saves.
constexpr int64_t grain = 32768;

// Calls update(t, begin, end) on ranges that together cover each element of each tensor once.
template <class Tensor, class F>
void for_each_range(const Tensor* tensors, int64_t count, F update) {
  int64_t total = 0;
  for (int64_t k = 0; k < count; ++k) total += tensors[k].n;
  parallel_for(ceil_div(total, chunk), grain / chunk, [&](int64_t first, int64_t last) {
    const F f = update;  // a local copy, so that stores to tensors cannot alias the constants it holds
    const int64_t begin = first * chunk, end = min_of(last * chunk, total);
    int64_t start = 0;  // of tensor t, in the row of all elements
    for (const Tensor* t = tensors; start < end; start += t->n, ++t) {
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

// torch.maximum, torch.minimum: NaN if either is. (max alone returns only a NaN of its second argument.)
template <class T>
MINIDL_INLINE Vec<T> maximum(Vec<T> a, Vec<T> b) {
  return select(a == a, max(a, b), a);
}
template <class T>
MINIDL_INLINE Vec<T> minimum(Vec<T> a, Vec<T> b) {
  return select(a == a, min(a, b), a);
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

// How absolute values make up a norm of order p: the largest or the smallest of them, or a root of the sum of
// their powers. The norms of parts combine to that of the whole in the same way.
struct Norm {
  double p, start;
  bool extreme;
  explicit Norm(double order)
      : p(order), start(order == -__builtin_inf() ? -order : 0), extreme(__builtin_isinf(order)) {}

  double combine(double a, double b) const {
    if (!extreme) return a + b;
    return a != a || (p > 0 ? a > b : a < b) ? a : b;
  }
  double root(double v) const {
    if (extreme || p == 0 || p == 1) return v;
    return p == 2 ? __builtin_sqrt(v) : __builtin_pow(v, 1 / p);
  }

  template <class T>
  double largest_or_smallest(const T* x, int64_t n) const {
    const T neutral = static_cast<T>(start);
    Vec<T> found = neutral;
    for_lanes<T>(0, n, [&](int64_t i, int64_t lanes, auto tag) {
      const Vec<T> v = keep_lanes(abs(load_lanes(x + i, lanes, tag)), lanes, neutral, tag);
      found = p > 0 ? maximum(found, v) : minimum(found, v);
    });
    T lanes[Vec<T>::width];
    found.store(lanes);
    double v = start;
    for (const T lane : lanes) v = combine(v, static_cast<double>(lane));
    return v;
  }
  template <class T>
  double of_chunk(const T* x, int64_t n) const {
    if (extreme) return largest_or_smallest(x, n);
    if (p == 1 || p == 2) {
      return sum_lanes<T>(0, n, [=, square = p == 2](int64_t i, int64_t lanes, auto tag) {
        const Vec<T> v = load_lanes(x + i, lanes, tag);
        return square ? v * v : abs(v);
      });
    }
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double v = __builtin_fabs(static_cast<double>(x[i]));
      sum += p == 0 ? v != 0 : __builtin_pow(v, p);
    }
    return sum;
  }
};

}  // namespace

template <class T>
void sgd_step(const OptimizerTensor<T>* tensors, int64_t count, SgdParams s, Context) {
  const Gradient<T> gradient(s.maximize, s.weight_decay);
  const Vec<T> lr(static_cast<T>(-s.lr.value)), momentum(static_cast<T>(s.momentum));
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
  const Vec<T> lr(static_cast<T>(-s.lr.value)), momentum(static_cast<T>(s.momentum)),
      eps(static_cast<T>(s.eps));
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
  const Vec<T> keep(static_cast<T>(s.decoupled ? 1 - s.lr.value * s.weight_decay : 1));
  const Lerp<T> lerp(1 - s.beta1);
  const SquareAverage<T> average(s.beta2);
  const Vec<T> eps(static_cast<T>(s.eps));
  const double lr = s.lr.value;
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

template <class T>
void total_norm(T* norm, const Span<const T>* tensors, int64_t count, double p, Context ctx) {
  const Norm s(p);
  int64_t chunks = 0;  // none reaches over the end of its tensor
  for (int64_t k = 0; k < count; ++k) chunks += ceil_div(tensors[k].n, chunk);
  double* const partial = static_cast<double*>(ctx.workspace(static_cast<size_t>(chunks) * sizeof(double)));
  parallel_for(chunks, grain / chunk, [=](int64_t begin, int64_t end) {
    int64_t start = 0;  // of tensor t, in the row of all chunks
    for (const Span<const T>* t = tensors; start < end; start += ceil_div(t->n, chunk), ++t) {
      const int64_t b = max_of(begin - start, 0), e = min_of(end - start, ceil_div(t->n, chunk));
      for (int64_t c = b; c < e; ++c) {
        partial[start + c] = s.of_chunk(t->x + c * chunk, min_of(chunk, t->n - c * chunk));
      }
    }
  });
  double total = s.start;
  const double* next = partial;
  for (int64_t k = 0; k < count; ++k) {
    double of_tensor = s.start;
    for (int64_t c = ceil_div(tensors[k].n, chunk); c > 0; --c) of_tensor = s.combine(of_tensor, *next++);
    total = s.combine(total, p == 0 ? of_tensor != 0 : of_tensor);
  }
  *norm = static_cast<T>(s.root(total));
}

template <class T>
void clip_norm(const Span<T>* tensors, int64_t count, const double* norm, double max_norm, Context) {
  const double coefficient = max_norm / (*norm + 1e-6);
  if (coefficient >= 1) return;  // x * 1 is x
  const Vec<T> factor(static_cast<T>(coefficient));
  for_each_range(tensors, count, [=](Span<T> t, int64_t begin, int64_t end) {
    for_lanes<T>(begin, end, [&](int64_t i, int64_t lanes, auto tag) {
      store_lanes(factor * load_lanes<T>(t.x + i, lanes, tag), t.x + i, lanes, tag);
    });
  });
}

template <class T>
void clip_value(const Span<T>* tensors, int64_t count, double bound, Context) {
  const Vec<T> low(static_cast<T>(-bound)), high(static_cast<T>(bound));
  for_each_range(tensors, count, [=](Span<T> t, int64_t begin, int64_t end) {
    for_lanes<T>(begin, end, [&](int64_t i, int64_t lanes, auto tag) {
      const Vec<T> x = load_lanes<T>(t.x + i, lanes, tag);
      store_lanes(minimum(maximum(x, low), high), t.x + i, lanes, tag);
    });
  });
}

template void sgd_step(const OptimizerTensor<float>*, int64_t, SgdParams, Context);
template void sgd_step(const OptimizerTensor<double>*, int64_t, SgdParams, Context);
template void rmsprop_step(const OptimizerTensor<float>*, int64_t, RmspropParams, Context);
template void rmsprop_step(const OptimizerTensor<double>*, int64_t, RmspropParams, Context);
template void adam_step(const OptimizerTensor<float>*, int64_t, AdamParams, Context);
template void adam_step(const OptimizerTensor<double>*, int64_t, AdamParams, Context);
template void total_norm(float*, const Span<const float>*, int64_t, double, Context);
template void total_norm(double*, const Span<const double>*, int64_t, double, Context);
template void clip_norm(const Span<float>*, int64_t, const double*, double, Context);
template void clip_norm(const Span<double>*, int64_t, const double*, double, Context);
template void clip_value(const Span<float>*, int64_t, double, Context);
template void clip_value(const Span<double>*, int64_t, double, Context);

}  // namespace minidl::MINIDL_ISA
