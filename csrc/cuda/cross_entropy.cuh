// Cross entropy of one row, forward and backward, for any team of threads.
#pragma once
#include "softmax.cuh"

namespace minidl::cuda {
namespace {

// ---- targets

// The part of the target distribution q that depends on the class alone or on given probabilities: q[c] =
// (scale p[c] + shift) weight[c]. An index target without smoothing has none.
template <class T>
struct Spread {
  using W = Wide<T>;
  const T *p, *weight;  // p: nullptr for 0; weight: for 1
  W scale, shift;
  bool exists;

  __host__ __device__ Spread(const ClassTarget<T>& t, int64_t classes)
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

}  // namespace
}  // namespace minidl::cuda
