// Updates of lists of parameters and clipping of lists of gradients, many tensors in one launch.
#include "optimizer.cuh"

namespace minidl::cuda {
namespace {

// ---- updates

template <class T, class Step>
void update(const OptimizerTensor<T>* tensors, int64_t count, const Context& ctx, LearningRate lr,
            Scalars<Wide<T>> scalars, Step step) {
  using W = Wide<T>;
  bool there = lr.device != nullptr;
  for (int64_t k = 0; k < count; ++k) there |= tensors[k].step != nullptr;
  W* const computed =
      there ? static_cast<W*>(ctx.workspace(3 * sizeof(W) * static_cast<size_t>(count))) : nullptr;
  if (there) {
    const auto make = [&](int64_t k) {
      const OptimizerTensor<T>& t = tensors[k];
      return ScalarsRow<W>{t.step, t.correction1, t.correction2, computed + 3 * k, 1};
    };
    for_each_tensor(count, 1, ctx, make, CountStep<W>{scalars, lr});
  }
  const auto make = [&](int64_t k) {
    const OptimizerTensor<T>& t = tensors[k];
    UpdateRow<T> row = {t.p,     t.g,  {t.state[0], t.state[1], t.state[2]},   t.n, {},
                        nullptr, true, t.first && std::is_same_v<Step, Sgd<W>>};
    scalars(row.scalars, lr.value, t.correction1, t.correction2);
    if (there) row.scalars_there = computed + 3 * k;
    for (const T* p : {static_cast<const T*>(t.p), t.g, static_cast<const T*>(t.state[0]),
                       static_cast<const T*>(t.state[1]), static_cast<const T*>(t.state[2])}) {
      row.vectors &= aligned(p);
    }
    return row;
  };
  for_each_tensor(count, chunk_for(elements(tensors, count), ctx), ctx, make, UpdateElements<T, Step>{step});
}

// ---- norms and clipping

template <class T>
struct SpanRow {
  T* x;
  int64_t n;
  bool vectors;
};

// How absolute values make up a norm of order p: their extreme, or a root of the sum of their powers.
struct Norm {
  double p;
  bool extreme;
  explicit Norm(double order) : p(order), extreme(isinf(order)) {}

  MINIDL_DEVICE double start() const { return extreme && p < 0 ? static_cast<double>(INFINITY) : 0; }
  MINIDL_DEVICE double power(double a) const {
    if (extreme || p == 1) return a;
    return p == 2 ? a * a : p == 0 ? a != 0 : pow(a, p);
  }
  MINIDL_DEVICE double combine(double a, double b) const {
    if (!extreme) return a + b;
    return p > 0 ? maximum(a, b) : minimum(a, b);
  }
  MINIDL_DEVICE double root(double v) const {
    if (extreme || p == 0 || p == 1) return v;
    return p == 2 ? sqrt(v) : pow(v, 1 / p);
  }
  // Over a block, in the order of a tree.
  MINIDL_DEVICE double of_block(double v) const {
    MINIDL_SHARED(double, of_thread, [list_block]);
    of_thread[threadIdx.x] = v;
    for (int half = list_block / 2; half > 0; half /= 2) {
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < half) {
        of_thread[threadIdx.x] = combine(of_thread[threadIdx.x], of_thread[threadIdx.x + half]);
      }
    }
    return of_thread[0];  // to thread 0
  }
};

template <class T>
struct NormOfChunk {
  Norm norm;
  double* partial;
  MINIDL_DEVICE void operator()(const SpanRow<const T>& row, Range range, int64_t chunk) const {
    double v = norm.start();
    each_in<T>(range, row.vectors, [&](int64_t i, auto width) {
      Wide<T> x[width];
      load<width>(x, row.x + i);
      MINIDL_UNROLL for (int j = 0; j < width; ++j) {
        v = norm.combine(v, norm.power(static_cast<double>(fabs(x[j]))));
      }
    });
    v = norm.of_block(v);
    // Order 0 counts the tensors that are not all 0: each is one chunk then.
    if (threadIdx.x == 0) partial[chunk] = norm.p == 0 ? v != 0 : v;
  }
};

template <class T>
__global__ void __launch_bounds__(list_block)
    norm_kernel(T* result, const double* partial, int64_t chunks, Norm norm) {
  double v = norm.start();
  for (int64_t i = threadIdx.x; i < chunks; i += list_block) v = norm.combine(v, partial[i]);
  v = norm.of_block(v);
  if (threadIdx.x == 0) *result = narrow<T>(static_cast<Wide<T>>(norm.root(v)));
}

template <class T>
struct ScaleToNorm {
  const double* norm;
  double max_norm;
  MINIDL_DEVICE void operator()(const SpanRow<T>& row, Range range, int64_t) const {
    const double coefficient = max_norm / (*norm + 1e-6);
    if (coefficient >= 1) return;  // x * 1 is x
    const Wide<T> factor = static_cast<Wide<T>>(coefficient);
    each_in<T>(range, row.vectors, [&](int64_t i, auto width) {
      Wide<T> x[width];
      load<width>(x, row.x + i);
      MINIDL_UNROLL for (int j = 0; j < width; ++j) x[j] *= factor;
      store<width>(row.x + i, x);
    });
  }
};

template <class T>
struct Clamp {
  Wide<T> bound;
  MINIDL_DEVICE void operator()(const SpanRow<T>& row, Range range, int64_t) const {
    each_in<T>(range, row.vectors, [&](int64_t i, auto width) {
      Wide<T> x[width];
      load<width>(x, row.x + i);
      MINIDL_UNROLL for (int j = 0; j < width; ++j) x[j] = minimum(maximum(x[j], -bound), bound);
      store<width>(row.x + i, x);
    });
  }
};

template <class T, class F>
void for_each_span(const Span<T>* spans, int64_t count, int64_t chunk, const Context& ctx, F f) {
  const auto make = [&](int64_t k) { return SpanRow<T>{spans[k].x, spans[k].n, aligned(spans[k].x)}; };
  for_each_tensor(count, chunk, ctx, make, f);
}

}  // namespace

template <class T>
void sgd_step(const OptimizerTensor<T>* tensors, int64_t count, SgdParams s, Context ctx) {
  using W = Wide<T>;
  const Sgd<W> step{Gradient<W>(s.maximize, s.weight_decay), static_cast<W>(s.momentum),
                    static_cast<W>(1 - s.dampening), s.nesterov};
  update(tensors, count, ctx, s.lr, Scalars<W>{}, step);
}

template <class T>
void rmsprop_step(const OptimizerTensor<T>* tensors, int64_t count, RmspropParams s, Context ctx) {
  using W = Wide<T>;
  const Rmsprop<W> step{Gradient<W>(s.maximize, s.weight_decay), SquareAverage<W>(s.alpha),
                        Lerp<W>(1 - s.alpha), static_cast<W>(s.momentum), static_cast<W>(s.eps)};
  update(tensors, count, ctx, s.lr, Scalars<W>{}, step);
}

template <class T>
void adam_step(const OptimizerTensor<T>* tensors, int64_t count, AdamParams s, Context ctx) {
  using W = Wide<T>;
  const Adam<W> step{Gradient<W>(s.maximize, s.decoupled ? 0 : s.weight_decay), Lerp<W>(1 - s.beta1),
                     SquareAverage<W>(s.beta2), static_cast<W>(s.eps)};
  update(tensors, count, ctx, s.lr, Scalars<W>{true, s.beta1, s.beta2, s.decoupled ? s.weight_decay : 0},
         step);
}

template <class T>
void total_norm(T* result, const Span<const T>* tensors, int64_t count, double p, Context ctx) {
  const Norm norm(p);
  int64_t longest = 1, chunks = 0;
  for (int64_t k = 0; k < count; ++k) longest = max_of(longest, tensors[k].n);
  const int64_t chunk =
      p == 0 ? ceil_div(longest, least_chunk) * least_chunk : chunk_for(elements(tensors, count), ctx);
  for (int64_t k = 0; k < count; ++k) chunks += ceil_div(tensors[k].n, chunk);
  double* partial = static_cast<double*>(ctx.workspace(sizeof(double) * static_cast<size_t>(chunks)));
  for_each_span(tensors, count, chunk, ctx, NormOfChunk<T>{norm, partial});
  launch(norm_kernel<T>, 1, list_block, 0, ctx, result, partial, chunks, norm);
}

template <class T>
void clip_norm(const Span<T>* tensors, int64_t count, const double* norm, double max_norm, Context ctx) {
  for_each_span(tensors, count, chunk_for(elements(tensors, count), ctx), ctx,
                ScaleToNorm<T>{norm, max_norm});
}

template <class T>
void clip_value(const Span<T>* tensors, int64_t count, double bound, Context ctx) {
  for_each_span(tensors, count, chunk_for(elements(tensors, count), ctx), ctx,
                Clamp<T>{static_cast<Wide<T>>(bound)});
}

#define INSTANTIATE(T)                                                                    \
  template void sgd_step(const OptimizerTensor<T>*, int64_t, SgdParams, Context);         \
  template void rmsprop_step(const OptimizerTensor<T>*, int64_t, RmspropParams, Context); \
  template void adam_step(const OptimizerTensor<T>*, int64_t, AdamParams, Context);       \
  template void total_norm(T*, const Span<const T>*, int64_t, double, Context);           \
  template void clip_norm(const Span<T>*, int64_t, const double*, double, Context);       \
  template void clip_value(const Span<T>*, int64_t, double, Context);
MINIDL_FOR_EACH_TYPE(INSTANTIATE)

}  // namespace minidl::cuda
