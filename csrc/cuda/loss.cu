#include "loss.cuh"
#include "reduce.cuh"

namespace minidl::cuda {
namespace {

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
