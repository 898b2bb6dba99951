#include "softmax.cuh"

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

// ---- targets

// The part of the target distribution q that depends on the class alone or on given probabilities: q[c] =
// (scale p[c] + shift) weight[c]. An index target without smoothing has none.
template <class T>
struct Spread {
  using W = Wide<T>;
  const T *p, *weight;  // p: nullptr for 0; weight: for 1
  W scale, shift;
  bool exists;

  Spread(const ClassTarget<T>& t, int64_t classes)
      : p(t.probability),
        weight(t.weight),
        scale(static_cast<W>(1 - t.label_smoothing)),
        shift(static_cast<W>(t.label_smoothing / static_cast<double>(classes))),
        exists(t.probability || t.label_smoothing > 0) {}

  MINIDL_DEVICE W q(int64_t c, int64_t i) const {
    const W v = p ? widen(p[i]) * scale + shift : shift;
    return weight ? v * widen(weight[c]) : v;
  }
  template <class Team>
  MINIDL_DEVICE W mass(const Team& team, const Row<T>& row) const {
    W sum = 0;
    row.each(team, [&](int64_t c, int64_t i, auto width) {
      MINIDL_UNROLL for (int j = 0; j < width; ++j) sum += q(c + j, i + j);
    });
    return team.sum(sum);
  }
};

// What a row's index says.
template <class T>
struct Picked {
  int64_t c;
  bool ignored, bad;
  Wide<T> weight;

  MINIDL_DEVICE Picked(const ClassTarget<T>& t, int64_t row, int64_t classes) : c(t.index[row]) {
    ignored = c == t.ignore_index;
    bad = !ignored && (c < 0 || c >= classes);
    weight = ignored ? Wide<T>(0) : bad ? Wide<T>(NAN) : t.weight ? widen(t.weight[c]) : Wide<T>(1);
  }
};

// ---- the sum of losses: of each block, in double, then of their sums

struct LossSums {
  double loss = 0, weight = 0;
  MINIDL_DEVICE void to_block(LossSums* partial) {
    const LossSums sums = {block_sum(loss), block_sum(weight)};
    if (threadIdx.x == 0) partial[blockIdx.x] = sums;
  }
};

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

// ---- cross entropy

template <class T>
struct CrossEntropyForward {
  using W = Wide<T>;
  T* loss;  // of each row, or nullptr
  W* stats;
  const T* x;
  ClassTarget<T> t;
  Spread<T> spread;
  int64_t rows;
  LossSums* partial;
  LossSums sums = {};

  MINIDL_DEVICE void start(ClassShape) const {}
  MINIDL_DEVICE void finish() { sums.to_block(partial); }

  template <class Team>
  MINIDL_DEVICE void row(const Team& team, const Row<T>& row) {
    OnlineSum<W> of_row;
    W mass = 0, cross = 0;  // sum of q, and of q (max - x): as a new maximum comes up, it is moved along
    const auto move_from = [&](W max) {
      if (mass != W(0)) cross += mass * (of_row.max - max);  // 0 times infinity would be NaN
    };
    row.each(team, [&](int64_t c, int64_t i, auto width) {
      W v[width];
      load<width>(v, x + i);
      const W before = of_row.max;
      of_row.add(v);
      if (!spread.exists) return;
      move_from(before);
      MINIDL_UNROLL for (int j = 0; j < width; ++j) {
        const W q = spread.q(c + j, i + j);
        mass += q;
        cross += q * (of_row.max - v[j]);
      }
    });
    const W own = of_row.max;
    of_row.merge(team);
    W l = 0;
    const W log_sum = log(of_row.sum);
    if (spread.exists) {
      move_from(own);
      mass = team.sum(mass);
      cross = team.sum(cross);
      l = mass * log_sum + cross;
    }
    if (team.rank != 0) return;
    stats[row.index] = of_row.max;
    stats[rows + row.index] = of_row.sum;
    W weight = 1;
    if (t.index) {
      const Picked<T> picked(t, row.index, row.classes);
      weight = picked.weight;
      const bool there = !picked.ignored && !picked.bad;
      const W at_index = there ? widen(x[row.offset + picked.c * row.stride]) : W(0);
      l += static_cast<W>(1 - t.label_smoothing) * weight * ((of_row.max - at_index) + log_sum);
      if (picked.ignored) l = 0;
    }
    if (row.classes == 0) l = weight = 0;
    if (loss) loss[row.index] = narrow<T>(l);
    sums.loss += static_cast<double>(l);
    sums.weight += static_cast<double>(weight);
  }
};

// What dy is to one row, before its weight.
template <class T>
struct RowGradient {
  const T* dy;
  const Wide<T>* total_weight;
  Reduction r;
  MINIDL_DEVICE Wide<T> of(int64_t row) const {
    const Wide<T> g = widen(dy[r == Reduction::none ? row : 0]);
    return r == Reduction::mean ? g / *total_weight : g;
  }
};

template <class T>
struct CrossEntropyBackward {
  using W = Wide<T>;
  T* dx;
  const T* x;
  const W* stats;
  RowGradient<T> gradient;
  ClassTarget<T> t;
  Spread<T> spread;
  int64_t rows;
  W smoothing_mass = 0;  // that smoothing gives to each row with an index target

  MINIDL_DEVICE void start(ClassShape s) {
    if (!t.index || !spread.exists) return;
    W sum = 0;
    for (int64_t c = threadIdx.x; c < s.classes; c += blockDim.x) sum += spread.q(c, 0);
    smoothing_mass = block_sum(sum);
  }
  MINIDL_DEVICE void finish() const {}

  template <class Team>
  MINIDL_DEVICE void row(const Team& team, const Row<T>& row) const {
    W g = gradient.of(row.index), mass = smoothing_mass, at_index = 0;
    int64_t index = -1;
    if (t.index) {
      const Picked<T> picked(t, row.index, row.classes);
      if (picked.ignored) g = 0;
      index = picked.c;
      at_index = static_cast<W>(1 - t.label_smoothing) * picked.weight;
      mass += at_index;
    } else {
      mass = spread.mass(team, row);
    }
    const W m = stats[row.index], scale = g * mass / stats[rows + row.index];
    row.each(team, [&](int64_t c, int64_t i, auto width) {
      W v[width];
      load<width>(v, x + i);
      MINIDL_UNROLL for (int j = 0; j < width; ++j) {
        v[j] = scale * exp(v[j] - m);
        if (spread.exists) v[j] -= g * spread.q(c + j, i + j);
        if (c + j == index) v[j] -= g * at_index;
      }
      store<width>(dx + i, v);
    });
  }
};

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
