// Many training steps of a small model in one launch: one block walks the calls of a step, a barrier after each, and
// begins anew. Between two kernels of a graph there are some microseconds, between two barriers some hundred
// nanoseconds; and all that such a model consists of stays in the multiprocessor's first-level cache.
#include "backend.h"
#include "cross_entropy.cuh"
#include "loss.cuh"
#include "optimizer.cuh"

namespace minidl::cuda {
namespace {

constexpr int loop_block = list_block;  // threads

// The kernels of kernels.def for one block: each thread takes every loop_block-th element from its own on.
namespace in_block {

template <class Visit>
MINIDL_DEVICE void each(int64_t n, Visit visit) {
  for (int64_t i = threadIdx.x; i < n; i += loop_block) visit(i);
}

template <class T>
MINIDL_DEVICE void gemm(T* c, int64_t ldc, int64_t c_batch_stride, const MatrixView<T>& a,
                        const MatrixView<T>& b, int64_t batch, int64_t m, int64_t n, int64_t k,
                        const Epilogue<T>& epilogue, const Context&) {
  visit_activation<T>(epilogue.activation, [&](auto f) {
    each(batch * m * n, [&](int64_t at) {
      const int64_t s = at / (m * n), i = at / n % m, j = at % n;
      const T* x = a.data + s * a.batch_stride + i * a.row_stride;
      const T* y = b.data + s * b.batch_stride + j * b.col_stride;
      T sum = 0;
      for (int64_t p = 0; p < k; ++p) sum += x[p * a.col_stride] * y[p * b.row_stride];
      c[s * c_batch_stride + i * ldc + j] = f.forward(epilogue.bias ? sum + epilogue.bias[j] : sum);
    });
  });
}

template <class T>
MINIDL_DEVICE void epilogue_backward(T* dz, T* db, const T* dy, const T* y, int64_t m, int64_t n,
                                     const Activation& activation, const Context&) {
  visit_activation<T>(activation, [&](auto f) {
    each(n, [&](int64_t j) {
      double sum = 0;
      for (int64_t i = j; i < m * n; i += n) {
        const T d = y ? f.backward(dy[i], y[i]) : dy[i];
        if (dz) dz[i] = d;
        sum += static_cast<double>(d);
      }
      if (db) db[j] = static_cast<T>(sum);
    });
  });
}

template <class T>
MINIDL_DEVICE void activation_forward(T* y, const T* x, int64_t n, const Activation& activation,
                                      const Context&) {
  visit_activation<T>(activation, [&](auto f) { each(n, [&](int64_t i) { y[i] = f.forward(x[i]); }); });
}

template <class T>
MINIDL_DEVICE void activation_backward(T* dx, const T* dy, const T* saved, int64_t n,
                                       const Activation& activation, const Context&) {
  visit_activation<T>(activation,
                      [&](auto f) { each(n, [&](int64_t i) { dx[i] = f.backward(dy[i], saved[i]); }); });
}

template <class T>
MINIDL_DEVICE void add(T* y, const T* a, const T* b, int64_t n, const Context&) {
  each(n, [&](int64_t i) { y[i] = a[i] + b[i]; });
}

template <class T>
MINIDL_DEVICE T at_or_one(const T* p, int64_t i) {
  return p ? p[i] : T(1);
}

template <class T>
MINIDL_DEVICE void loss_forward(T* y, const T* x, const T* t, const T* weight, const T* pos_weight, int64_t n,
                                const LossParams& p, const Context&) {
  double sum = 0;
  visit_loss<T>(p, [&](auto f) {
    each(n, [&](int64_t i) {
      const T l = f.value(x[i], t[i], at_or_one(pos_weight, i)) * at_or_one(weight, i);
      if (p.reduction == Reduction::none) y[i] = l;
      sum += static_cast<double>(l);
    });
  });
  if (p.reduction == Reduction::none) return;
  sum = block_sum(sum);
  if (threadIdx.x == 0)
    *y = static_cast<T>(p.reduction == Reduction::mean ? sum / static_cast<double>(n) : sum);
}

template <class T>
MINIDL_DEVICE void loss_backward(T* d, const T* dy, const T* x, const T* t, const T* weight,
                                 const T* pos_weight, int64_t n, const LossParams& p, bool wrt_target,
                                 const Context&) {
  const T scale = p.reduction == Reduction::mean ? T(1) / static_cast<T>(n) : T(1);
  visit_loss<T>(p, [&](auto f) {
    each(n, [&](int64_t i) {
      const T g = dy[p.reduction == Reduction::none ? i : 0] * scale * at_or_one(weight, i);
      const T pos = at_or_one(pos_weight, i);
      d[i] = g * (wrt_target ? f.dt(x[i], t[i], pos) : f.dx(x[i], t[i], pos));
    });
  });
}

// f.row() for each row, a thread a row.
template <class T, class F>
MINIDL_DEVICE void each_row(const ClassShape& s, F& f) {
  f.start(s);
  for (int64_t r = threadIdx.x; r < s.outer * s.inner; r += loop_block) {
    const int64_t offset = r / s.inner * s.classes * s.inner + r % s.inner;
    f.row(ThreadTeam{}, Row<T>{r, offset, s.classes, s.inner, -1});
  }
}

template <class T>
MINIDL_DEVICE void cross_entropy_forward(T* loss, Wide<T>* stats, Wide<T>* total_weight, const T* x,
                                         const ClassTarget<T>& t, const ClassShape& s, Reduction r,
                                         const Context&) {
  CrossEntropyForward<T> f{r == Reduction::none ? loss : nullptr,
                           stats,
                           x,
                           t,
                           Spread<T>(t, s.classes),
                           s.outer * s.inner,
                           nullptr};
  each_row<T>(s, f);
  const double sum = block_sum(f.sums.loss), weight = block_sum(f.sums.weight);
  if (threadIdx.x != 0) return;
  *total_weight = static_cast<Wide<T>>(weight);
  if (r != Reduction::none) *loss = static_cast<T>(r == Reduction::mean ? sum / weight : sum);
}

template <class T>
MINIDL_DEVICE void cross_entropy_backward(T* dx, const T* dy, const T* x, const Wide<T>* stats,
                                          const Wide<T>* total_weight, const ClassTarget<T>& t,
                                          const ClassShape& s, Reduction r, const Context&) {
  CrossEntropyBackward<T> f{
      dx, x, stats, {dy, total_weight, r}, t, Spread<T>(t, s.classes), s.outer * s.inner};
  each_row<T>(s, f);
}

}  // namespace in_block

template <class T>
MINIDL_DEVICE void run_call(const BlockCall<T>& call) {
  switch (static_cast<BlockKernel>(call.index())) {
#define MINIDL_CASE(name)                                                             \
  case BlockKernel::name:                                                             \
    return std::apply([](const auto&... arguments) { in_block::name(arguments...); }, \
                      *std::get_if<static_cast<size_t>(BlockKernel::name)>(&call));
    MINIDL_BLOCK_KERNELS(MINIDL_CASE)
#undef MINIDL_CASE
    case BlockKernel::none:
      return;
  }
}

template <class T, class Step>
MINIDL_DEVICE void update_row(const OptimizerTensor<T>& t, bool first, LearningRate lr, Scalars<T> scalars,
                              Step step) {
  MINIDL_SHARED(T, computed, [3]);
  CountStep<T>{scalars, lr}({t.step, t.correction1, t.correction2, computed, 1}, {}, 0);
  __syncthreads();
  const UpdateRow<T> row = {t.p, t.g, {t.state[0], t.state[1], t.state[2]}, t.n, {}, computed, false, first};
  UpdateElements<T, Step>{step}(row, {0, 0, t.n}, 0);
  __syncthreads();  // before the next row's numbers
}

template <class T>
MINIDL_DEVICE void update(const OptimizerTensor<T>& t, const OptimizerOptions& options, bool first) {
  if (const auto* p = std::get_if<SgdParams>(&options)) {
    const Sgd<T> step{Gradient<T>(p->maximize, p->weight_decay), static_cast<T>(p->momentum),
                      static_cast<T>(1 - p->dampening), p->nesterov};
    update_row(t, first && t.first, p->lr, Scalars<T>{}, step);
  } else if (const auto* p = std::get_if<RmspropParams>(&options)) {
    const Rmsprop<T> step{Gradient<T>(p->maximize, p->weight_decay), SquareAverage<T>(p->alpha),
                          Lerp<T>(1 - p->alpha), static_cast<T>(p->momentum), static_cast<T>(p->eps)};
    update_row(t, false, p->lr, Scalars<T>{}, step);
  } else if (const auto* p = std::get_if<AdamParams>(&options)) {
    const Adam<T> step{Gradient<T>(p->maximize, p->decoupled ? 0 : p->weight_decay), Lerp<T>(1 - p->beta1),
                       SquareAverage<T>(p->beta2), static_cast<T>(p->eps)};
    update_row(t, false, p->lr, Scalars<T>{true, p->beta1, p->beta2, p->decoupled ? p->weight_decay : 0},
               step);
  }
}

template <class T>
MINIDL_DEVICE void copy_batch(const BlockLoop<T>& loop, int64_t number) {
  for (const auto& part : loop.parts) {
    const int64_t words = part.row_bytes / 4;
    in_block::each(loop.batch_rows * words, [&](int64_t i) {
      const int64_t at = number * loop.batch_rows + i / words, row = loop.order ? loop.order[at] : at;
      reinterpret_cast<uint32_t*>(part.batch)[i] =
          reinterpret_cast<const uint32_t*>(part.data)[row * words + i % words];
    });
  }
}

template <class T>
__global__ void __launch_bounds__(loop_block) block_loop_kernel(const __grid_constant__ BlockLoop<T> loop) {
  for (int64_t step = 0; step < loop.steps; ++step) {
    copy_batch(loop, (loop.first + step) % loop.batches);
    __syncthreads();
    for (int i = 0; i < loop.call_count; ++i) {
      run_call<T>(loop.calls[i]);
      __syncthreads();
    }
    for (int i = 0; i < loop.row_count; ++i) update(loop.rows[i], loop.groups[loop.group_of[i]], step == 0);
    if (threadIdx.x == 0) loop.losses[step] = *loop.loss;
  }
}

}  // namespace

template <class T>
void block_loop(const BlockLoop<T>& loop, Context ctx) {
  static_assert(sizeof(BlockLoop<T>) <= argument_bytes);
  if (loop.steps > 0) launch(block_loop_kernel<T>, 1, loop_block, 0, ctx, loop);
}

template void block_loop(const BlockLoop<float>&, Context);
template void block_loop(const BlockLoop<double>&, Context);

}  // namespace minidl::cuda
