#include "activation.cuh"
#include "reduce.cuh"

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

// Calls visit with the loss as a type, so that no kernel has a branch on the kind.
template <class T, class F>
void visit_loss(LossParams p, F visit) {
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

template <class F>
struct Value {
  F f;
  template <class T>
  MINIDL_DEVICE T operator()(T x, T t, T weight, T pos_weight) const {
    return f.value(x, t, pos_weight) * weight;
  }
};
template <class F>
struct Dx {
  F f;
  template <class T>
  MINIDL_DEVICE T operator()(T dy, T x, T t, T weight, T pos_weight) const {
    return dy * weight * f.dx(x, t, pos_weight);
  }
};
template <class F>
struct Dt {
  F f;
  template <class T>
  MINIDL_DEVICE T operator()(T dy, T x, T t, T weight, T pos_weight) const {
    return dy * weight * f.dt(x, t, pos_weight);
  }
};

// ---- reduced losses: each block sums its share in double, and if there are several, one more block their
// sums ----

constexpr int sum_block = 512;

template <class T, class F, class... In>
__global__ void __launch_bounds__(sum_block)
    loss_sum_kernel(T* y, double* partial, int64_t n, double scale, bool vectors, F f, In... in) {
  double sum = 0;
  ThreadShare{}.each<vec_width<T>>(n, vectors, [&](int64_t i, auto width) {
    Wide<T> l[width];
    evaluate<width>(l, std::index_sequence_for<In...>{}, f, i, in...);
    Wide<T> of_pack = 0;
    MINIDL_UNROLL for (int j = 0; j < width; ++j) of_pack += l[j];
    sum += static_cast<double>(of_pack);
  });
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1) {
    *y = narrow<T>(static_cast<Wide<T>>(sum * scale));
  } else {
    partial[blockIdx.x] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(sum_block)
    loss_final_kernel(T* y, const double* partial, int count, double scale) {
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += sum_block) sum += partial[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *y = narrow<T>(static_cast<Wide<T>>(sum * scale));
}

// *y = scale * sum of f(in[i]...), in double.
template <class T, class F, class... In>
void sum_of(T* y, int64_t n, double scale, const Context& ctx, F f, In... in) {
  const bool vectors = (aligned(in) && ...);
  const int64_t per_block = int64_t(sum_block) * (vectors ? vec_width<T> : 1);
  const int64_t blocks = max_of<int64_t>(1, grid_stride_blocks(n, 4 * per_block, ctx, 4));
  double* partial = blocks > 1 ? static_cast<double*>(ctx.workspace(sizeof(double) * blocks)) : nullptr;
  launch(loss_sum_kernel<T, F, In...>, blocks, sum_block, 0, ctx, y, partial, n, scale, vectors, f, in...);
  if (blocks > 1) {
    launch(loss_final_kernel<T>, 1, sum_block, 0, ctx, y, partial, static_cast<int>(blocks), scale);
  }
}

}  // namespace

template <class T>
void loss_forward(T* y, const T* x, const T* t, const T* weight, const T* pos_weight, int64_t n, LossParams p,
                  Context ctx) {
  visit_loss<Wide<T>>(p, [&](auto f) {
    const Value<decltype(f)> value{f};
    const OrOne<T> w{weight}, pos_w{pos_weight};
    if (p.reduction == Reduction::none) return map(y, n, ctx, value, x, t, w, pos_w);
    // The mean of nothing is 0 / 0.
    const double scale = p.reduction == Reduction::mean ? 1 / static_cast<double>(n) : 1;
    sum_of(y, n, scale, ctx, value, x, t, w, pos_w);
  });
}

template <class T>
void loss_backward(T* d, const T* dy, const T* x, const T* t, const T* weight, const T* pos_weight, int64_t n,
                   LossParams p, bool wrt_target, Context ctx) {
  const Wide<T> scale = p.reduction == Reduction::mean ? Wide<T>(1) / static_cast<Wide<T>>(n) : Wide<T>(1);
  const EachOrOne<T> g{dy, p.reduction == Reduction::none, scale};
  visit_loss<Wide<T>>(p, [&](auto f) {
    const auto run = [&](auto slope) {
      map(d, n, ctx, slope, g, x, t, OrOne<T>{weight}, OrOne<T>{pos_weight});
    };
    wrt_target ? run(Dt<decltype(f)>{f}) : run(Dx<decltype(f)>{f});
  });
}

// The host does not wait for the device to know: bce of a number outside [0, 1] is NaN or clamped instead.
template <class T>
void all_in_unit_interval(bool* inside, const T*, int64_t, Context) {
  *inside = true;
}

#define INSTANTIATE(T)                                                                                   \
  template void loss_forward(T*, const T*, const T*, const T*, const T*, int64_t, LossParams, Context);  \
  template void loss_backward(T*, const T*, const T*, const T*, const T*, const T*, int64_t, LossParams, \
                              bool, Context);                                                            \
  template void all_in_unit_interval(bool*, const T*, int64_t, Context);
MINIDL_FOR_EACH_TYPE(INSTANTIATE)

}  // namespace minidl::cuda
