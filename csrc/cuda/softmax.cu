#include "cross_entropy.cuh"

namespace minidl::cuda {
namespace {

struct NothingElse {
  MINIDL_DEVICE void start(ClassShape) const {}
  MINIDL_DEVICE void finish() const {}
};

// ---- softmax and log_softmax

template <class T, bool log_>
struct SoftmaxForward : NothingElse {
  using W = Wide<T>;
  T* y;
  const T* x;
  bool cached;
  SoftmaxForward(T* y_, const T* x_, bool c) : y(y_), x(x_), cached(c) {}

  template <class Team>
  MINIDL_DEVICE void row(const Team& team, const Row<T>& row) const {
    OnlineSum<W> of_row;
    Cache<W> first(cached), second(cached);
    row.each(team, [&](int64_t, int64_t i, auto width) {
      W v[width];
      load<width>(v, x + i);
      first.put(v);
      of_row.add(v);
    });
    of_row.merge(team);
    const W scale = log_ ? log(of_row.sum) : W(1) / of_row.sum;
    row.each(team, [&](int64_t, int64_t i, auto width) {
      W v[width];
      second.take(v, x + i);
      MINIDL_UNROLL for (int j = 0; j < width; ++j) {
        v[j] = log_ ? (v[j] - of_row.max) - scale : exp(v[j] - of_row.max) * scale;
      }
      store<width>(y + i, v);
    });
  }
};

// softmax: dx = y (dy - sum(dy y)). log_softmax: dx = dy - exp(y) sum(dy).
template <class T, bool log_>
struct SoftmaxBackward : NothingElse {
  using W = Wide<T>;
  T* dx;
  const T *dy, *y;
  bool cached;
  SoftmaxBackward(T* dx_, const T* dy_, const T* y_, bool c) : dx(dx_), dy(dy_), y(y_), cached(c) {}

  template <class Team>
  MINIDL_DEVICE void row(const Team& team, const Row<T>& row) const {
    W sum = 0;
    Cache<W> first(cached), second(cached);
    row.each(team, [&](int64_t, int64_t i, auto width) {
      W g[width], v[width];
      load<width>(g, dy + i);
      load<width>(v, y + i);
      first.put(g);
      first.put(v);
      MINIDL_UNROLL for (int j = 0; j < width; ++j) sum += log_ ? g[j] : g[j] * v[j];
    });
    sum = team.sum(sum);
    row.each(team, [&](int64_t, int64_t i, auto width) {
      W g[width], v[width];
      second.take(g, dy + i);
      second.take(v, y + i);
      MINIDL_UNROLL for (int j = 0; j < width; ++j) {
        g[j] = log_ ? g[j] - exp(v[j]) * sum : v[j] * (g[j] - sum);
      }
      store<width>(dx + i, g);
    });
  }
};

// ---- sums of losses

constexpr int final_block = 256;

template <class T>
__global__ void __launch_bounds__(final_block)
    finish_loss_kernel(T* loss, Wide<T>* total_weight, const LossSums* partial, int64_t count, Reduction r) {
  LossSums sums;
  for (int64_t i = threadIdx.x; i < count; i += final_block) {
    sums.loss += partial[i].loss;
    sums.weight += partial[i].weight;
  }
  sums = {block_sum(sums.loss), block_sum(sums.weight)};
  if (threadIdx.x != 0) return;
  *total_weight = static_cast<Wide<T>>(sums.weight);
  if (r == Reduction::sum) *loss = narrow<T>(static_cast<Wide<T>>(sums.loss));
  if (r == Reduction::mean) *loss = narrow<T>(static_cast<Wide<T>>(sums.loss / sums.weight));
}

// Launches f over the rows, whose sums go to f.partial, and then sums those.
template <class T, class F>
void launch_loss(T* loss, Wide<T>* total_weight, ClassShape s, int misaligned, Reduction r, RowLaunch plan,
                 const Context& ctx, F f) {
  f.partial = static_cast<LossSums*>(ctx.workspace(sizeof(LossSums) * static_cast<size_t>(plan.blocks)));
  launch_rows<T>(s, misaligned, plan, ctx, f);
  launch(finish_loss_kernel<T>, 1, final_block, 0, ctx, loss, total_weight, f.partial, plan.blocks, r);
}

// ---- nll_loss

template <class T>
__global__ void __launch_bounds__(row_block)
    nll_forward_kernel(T* loss, const T* x, ClassTarget<T> t, ClassShape s, LossSums* partial) {
  LossSums sums;
  const ThreadTeam team;
  for (int64_t row = team.first; row < s.outer * s.inner; row += team.step) {
    const Picked<T> picked(t, row, s.classes);
    Wide<T> l = 0;
    if (!picked.ignored) {
      const int64_t o = row / s.inner, i = row % s.inner;
      const Wide<T> at_index = picked.bad ? Wide<T>(0) : widen(x[(o * s.classes + picked.c) * s.inner + i]);
      l = -picked.weight * at_index;
    }
    if (loss) loss[row] = narrow<T>(l);
    sums.loss += static_cast<double>(l);
    sums.weight += static_cast<double>(picked.weight);
  }
  sums.to_block(partial);
}

template <class T>
struct NllBackward : NothingElse {
  T* dx;
  RowGradient<T> gradient;
  ClassTarget<T> t;
  NllBackward(T* dx_, RowGradient<T> g, ClassTarget<T> t_) : dx(dx_), gradient(g), t(t_) {}

  template <class Team>
  MINIDL_DEVICE void row(const Team& team, const Row<T>& row) const {
    const Picked<T> picked(t, row.index, row.classes);
    const Wide<T> d = -picked.weight * gradient.of(row.index);
    row.each(team, [&](int64_t c, int64_t i, auto width) {
      Wide<T> v[width];
      MINIDL_UNROLL for (int j = 0; j < width; ++j) {
        v[j] = picked.bad || (c + j == picked.c && !picked.ignored) ? d : Wide<T>(0);
      }
      store<width>(dx + i, v);
    });
  }
};

}  // namespace

// ---- launchers ----

template <class T>
void softmax_forward(T* y, const T* x, ClassShape s, bool log, Context ctx) {
  const RowLaunch plan = plan_rows<T>(s, ctx, 1);
  const bool cached = plan.dynamic_bytes > 0;
  const auto run = [&](auto f) { launch_rows<T>(s, misalignment(x, y), plan, ctx, f); };
  log ? run(SoftmaxForward<T, true>(y, x, cached)) : run(SoftmaxForward<T, false>(y, x, cached));
}

template <class T>
void softmax_backward(T* dx, const T* dy, const T* y, ClassShape s, bool log, Context ctx) {
  const RowLaunch plan = plan_rows<T>(s, ctx, 2);
  const bool cached = plan.dynamic_bytes > 0;
  const auto run = [&](auto f) { launch_rows<T>(s, misalignment(y, dy, dx), plan, ctx, f); };
  log ? run(SoftmaxBackward<T, true>(dx, dy, y, cached)) : run(SoftmaxBackward<T, false>(dx, dy, y, cached));
}

// The host does not wait for the device to know: rows with a bad target have a NaN loss and gradient instead.
template <class T>
void find_bad_target(int64_t* position, const int64_t*, int64_t, int64_t, int64_t, Context) {
  *position = -1;
}

template <class T>
void cross_entropy_forward(T* loss, Wide<T>* stats, Wide<T>* total_weight, const T* x, ClassTarget<T> t,
                           ClassShape s, Reduction r, Context ctx) {
  launch_loss(loss, total_weight, s, misalignment(x), r, plan_rows<T>(s, ctx), ctx,
              CrossEntropyForward<T>{r == Reduction::none ? loss : nullptr, stats, x, t,
                                     Spread<T>(t, s.classes), s.outer * s.inner, nullptr});
}

template <class T>
void cross_entropy_backward(T* dx, const T* dy, const T* x, const Wide<T>* stats, const Wide<T>* total_weight,
                            ClassTarget<T> t, ClassShape s, Reduction r, Context ctx) {
  launch_rows<T>(s, misalignment(x, dx), plan_rows<T>(s, ctx), ctx,
                 CrossEntropyBackward<T>{
                     dx, x, stats, {dy, total_weight, r}, t, Spread<T>(t, s.classes), s.outer * s.inner});
}

template <class T>
void nll_loss_forward(T* loss, Wide<T>* total_weight, const T* x, ClassTarget<T> t, ClassShape s, Reduction r,
                      Context ctx) {
  const int64_t blocks = grid_stride_blocks(s.outer * s.inner, row_block, ctx);
  auto* partial = static_cast<LossSums*>(ctx.workspace(sizeof(LossSums) * static_cast<size_t>(blocks)));
  launch(nll_forward_kernel<T>, blocks, row_block, 0, ctx, r == Reduction::none ? loss : nullptr, x, t, s,
         partial);
  launch(finish_loss_kernel<T>, 1, final_block, 0, ctx, loss, total_weight, partial, blocks, r);
}

template <class T>
void nll_loss_backward(T* dx, const T* dy, const Wide<T>* total_weight, ClassTarget<T> t, ClassShape s,
                       Reduction r, Context ctx) {
  launch_rows<T>(s, misalignment(dx), plan_rows<T>(s, ctx), ctx,
                 NllBackward<T>(dx, {dy, total_weight, r}, t));
}

#define INSTANTIATE(T)                                                                                       \
  template void softmax_forward(T*, const T*, ClassShape, bool, Context);                                    \
  template void softmax_backward(T*, const T*, const T*, ClassShape, bool, Context);                         \
  template void find_bad_target<T>(int64_t*, const int64_t*, int64_t, int64_t, int64_t, Context);            \
  template void cross_entropy_forward<T>(T*, Wide<T>*, Wide<T>*, const T*, ClassTarget<T>, ClassShape,       \
                                         Reduction, Context);                                                \
  template void cross_entropy_backward<T>(T*, const T*, const T*, const Wide<T>*, const Wide<T>*,            \
                                          ClassTarget<T>, ClassShape, Reduction, Context);                   \
  template void nll_loss_forward<T>(T*, Wide<T>*, const T*, ClassTarget<T>, ClassShape, Reduction, Context); \
  template void nll_loss_backward<T>(T*, const T*, const Wide<T>*, ClassTarget<T>, ClassShape, Reduction,    \
                                     Context);
MINIDL_FOR_EACH_TYPE(INSTANTIATE)

}  // namespace minidl::cuda
