#include "softmax.h"

#include "kernels.h"
#include "vmath.h"

namespace minidl::MINIDL_ISA {
namespace {

constexpr int64_t grain = 16384;  // elements below which one thread is quicker
constexpr int64_t chunk = 8192;   // elements whose rows make up one partial sum

template <class T>
constexpr T lowest = static_cast<T>(sizeof(T) == 4 ? -__FLT_MAX__ : -__DBL_MAX__);

// ---- the target distribution q of a row ----

// All of q that depends on the class alone or on given probabilities: q[c] = (scale p[c] + shift) weight[c].
template <class T>
struct Spread {
  static constexpr bool exists = true;
  const T* p;       // at the first element of the walk, or nullptr for 0
  const T* weight;  // nullptr for 1
  T scale, shift;

  Spread at(int64_t offset) const { return {p ? p + offset : nullptr, weight, scale, shift}; }

  template <class Walk, class Tag>
  MINIDL_INLINE Vec<T> q(const Walk& walk, int64_t c, int64_t offset, int64_t lanes, Tag tag) const {
    Vec<T> v = shift;
    if (p) v = fmadd(load_lanes(p + offset, lanes, tag), scale, v);
    if (weight) v = v * walk.per_class(weight, c, lanes, tag);
    return walk.keep(v, lanes, T(0), tag);
  }
};

// An index target without smoothing: q is 0 but at the index.
template <class T>
struct NoSpread {
  static constexpr bool exists = false;
  NoSpread at(int64_t) const { return {}; }
};

template <class T, class F>
void visit_spread(const ClassTarget<T>& t, int64_t classes, F visit) {
  const T shift = static_cast<T>(t.label_smoothing / static_cast<double>(classes));
  if (t.probability)
    return visit(Spread<T>{t.probability, t.weight, static_cast<T>(1 - t.label_smoothing), shift});
  if (t.label_smoothing > 0) return visit(Spread<T>{nullptr, t.weight, T(0), shift});
  visit(NoSpread<T>{});
}

// What the index targets of a walk's rows say, one lane a row: the weight of the index in q, 0 in ignored
// rows.
template <class T>
struct Picked {
  int64_t position[Vec<T>::width];  // of the element at the index, from the first element of the walk; -1:
                                    // ignored
  T weight[Vec<T>::width] = {};

  template <class Walk>
  Picked(const Walk& walk, const ClassTarget<T>& t, int64_t row) {
    for (int64_t r = 0; r < walk.rows; ++r) {
      const int64_t c = t.index[row + r];
      const bool ignored = c == t.ignore_index;
      position[r] = ignored ? -1 : c * walk.class_stride + r;
      weight[r] = ignored ? T(0) : t.weight ? t.weight[c] : T(1);
    }
  }
};

// ---- one pass over a row ----

template <class T>
struct RowSums {
  Vec<T> max = lowest<T>;  // not -inf: exp(x - max) is then 0, not NaN, as long as every x is -inf
  Vec<T> sum;              // of exp(x - max)
  Vec<T> reference;  // some value near the logits; of a block without any, all q sums are inf or NaN anyway
  Vec<T> mass;       // sum of q
  Vec<T> cross;      // sum of q (reference - x)
};

// The maximum of x over the classes [begin, end), and m. Two chains hide half the latency of the instruction.
template <class T, class Walk>
MINIDL_INLINE Vec<T> max_classes(const T* x, const Walk& walk, int64_t begin, int64_t end, Vec<T> m) {
  Vec<T> other = m;
  walk.each(begin, end, [&](int64_t, int64_t offset, int64_t lanes, auto tag) {
    const Vec<T> larger = max(other, walk.keep(load_lanes(x + offset, lanes, tag), lanes, lowest<T>, tag));
    other = m;
    m = larger;
  });
  return walk.merge_max(max(m, other));
}

// Online softmax (Milakov and Gimelshein, arXiv:1805.02867): block by block, the maximum, then the sums
// relative to it while the block is in L1. A NaN or +inf anywhere makes the sum NaN.
template <class T, class Walk, class Q>
MINIDL_INLINE RowSums<T> sum_row(const T* x, const Walk& walk, const Q& spread) {
  RowSums<T> row;
  Cascade<T> row_sum, row_mass, row_cross;
  for (int64_t begin = 0; begin < walk.classes; begin += walk.block) {
    const int64_t end = min_of(walk.classes, begin + walk.block);
    const Vec<T> m = max_classes(x, walk, begin, end, row.max);
    if (begin == 0) {
      row.reference = m;
    } else {
      row_sum.scale(exp(row.max - m));
    }
    row.max = m;
    Vec<T> sum, mass, cross;
    walk.each(begin, end, [&](int64_t c, int64_t offset, int64_t lanes, auto tag) {
      const Vec<T> v = load_lanes(x + offset, lanes, tag);
      sum = sum + walk.keep(exp(v - m), lanes, T(0), tag);
      if constexpr (Q::exists) {
        const Vec<T> q = spread.q(walk, c, offset, lanes, tag);
        mass = mass + q;
        cross = fmadd(q, row.reference - v, cross);
      }
    });
    row_sum.add(sum);
    row_mass.add(mass);
    row_cross.add(cross);
  }
  row.sum = walk.merge_sum(row_sum.total());
  if constexpr (Q::exists) {
    row.mass = walk.merge_sum(row_mass.total());
    row.cross = walk.merge_sum(row_cross.total());
  }
  return row;
}

struct LossSums {
  double loss = 0, weight = 0;
  LossSums& operator+=(LossSums s) {
    loss += s.loss;
    weight += s.weight;
    return *this;
  }
};

template <class T>
void finish_loss(T* loss, T* total_weight, LossSums sums, Reduction r) {
  *total_weight = static_cast<T>(sums.weight);
  if (r == Reduction::sum) *loss = static_cast<T>(sums.loss);
  if (r == Reduction::mean) *loss = static_cast<T>(sums.loss / sums.weight);
}

// The losses of a walk's rows, written to `losses`.
template <class T, class Walk, class Q>
MINIDL_INLINE LossSums row_losses(T* losses, const RowSums<T>& sums, const T* x, const Walk& walk, const Q&,
                                  const ClassTarget<T>& t, int64_t row) {
  const Vec<T> log_sum = log(sums.sum);
  Vec<T> l;
  if constexpr (Q::exists) l = fmadd(sums.mass, (sums.max - sums.reference) + log_sum, sums.cross);
  if (t.probability) {
    walk.store_rows(l, losses);
    LossSums s{0, static_cast<double>(walk.rows)};
    for (int64_t r = 0; r < walk.rows; ++r) s.loss += static_cast<double>(losses[r]);
    return s;
  }
  const Picked<T> picked(walk, t, row);
  T at_index[Vec<T>::width] = {};
  for (int64_t r = 0; r < walk.rows; ++r) at_index[r] = picked.position[r] < 0 ? T(0) : x[picked.position[r]];
  const Vec<T> hard = Vec<T>::load(picked.weight) * static_cast<T>(1 - t.label_smoothing);
  const Vec<T> nll = (sums.max - Vec<T>::load(at_index)) + log_sum;
  walk.store_rows(Q::exists ? l + hard * nll : hard * nll, losses);
  LossSums s;
  for (int64_t r = 0; r < walk.rows; ++r) {
    if (picked.position[r] < 0) losses[r] = 0;
    s += {static_cast<double>(losses[r]), static_cast<double>(picked.weight[r])};
  }
  return s;
}

// ---- nll_loss ----

// f(row, position of x[t], weight[t]) for the rows of [begin, end) that are not ignored.
template <class T, class F>
void each_picked(const ClassTarget<T>& t, ClassShape s, int64_t begin, int64_t end, F f) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t c = t.index[row];
    if (c == t.ignore_index) continue;
    const int64_t o = row / s.inner, i = row % s.inner;
    f(row, (o * s.classes + c) * s.inner + i, t.weight ? t.weight[c] : T(1));
  }
}

template <class T>
void fill_zero(T* p, int64_t n) {
  parallel_for(n, 2 * grain, [&](int64_t begin, int64_t end) {
    __builtin_memset(p + begin, 0, static_cast<size_t>(end - begin) * sizeof(T));
  });
}

// What dy is to one row, before its weight.
template <class T>
T row_gradient(const T* dy, const T* total_weight, Reduction r, int64_t row) {
  return r == Reduction::none ? dy[row] : r == Reduction::mean ? *dy / *total_weight : *dy;
}

}  // namespace

// ---- kernels ----

template <class T>
void softmax_forward(T* y_, const T* x_, ClassShape s, bool log_, Context) {
  const Walks<T> walks{s};
  parallel_for(walks.count(), walks.holding(grain), [&](int64_t first, int64_t last) {
    walks.each(first, last, [&](const auto& walk, int64_t offset, int64_t) {
      const T* x = x_ + offset;
      T* y = y_ + offset;
      if (log_) {
        const RowSums<T> row = sum_row(x, walk, NoSpread<T>{});
        const Vec<T> log_sum = log(row.sum);
        walk.each(0, walk.classes, [&](int64_t, int64_t i, int64_t lanes, auto tag) {
          store_lanes((load_lanes(x + i, lanes, tag) - row.max) - log_sum, y + i, lanes, tag);
        });
        return;
      }
      const Vec<T> m = max_classes(x, walk, 0, walk.classes, Vec<T>(lowest<T>));
      const Vec<T> sum = sum_classes<T>(walk, [&](int64_t, int64_t i, int64_t lanes, auto tag) {
        const Vec<T> e = exp(load_lanes(x + i, lanes, tag) - m);
        store_lanes(e, y + i, lanes, tag);
        return e;
      });
      const Vec<T> scale = Vec<T>(T(1)) / sum;
      walk.each(0, walk.classes, [&](int64_t, int64_t i, int64_t lanes, auto tag) {
        store_lanes(load_lanes(y + i, lanes, tag) * scale, y + i, lanes, tag);
      });
    });
  });
}

// softmax: dx = y (dy - sum(dy y)). log_softmax: dx = dy - exp(y) sum(dy).
template <class T>
void softmax_backward(T* dx_, const T* dy_, const T* y_, ClassShape s, bool log_, Context) {
  const Walks<T> walks{s};
  parallel_for(walks.count(), walks.holding(grain), [&](int64_t first, int64_t last) {
    walks.each(first, last, [&](const auto& walk, int64_t offset, int64_t) {
      const T *dy = dy_ + offset, *y = y_ + offset;
      T* dx = dx_ + offset;
      const Vec<T> sum = sum_classes<T>(walk, [&](int64_t, int64_t i, int64_t lanes, auto tag) {
        const Vec<T> g = load_lanes(dy + i, lanes, tag);
        return log_ ? g : g * load_lanes(y + i, lanes, tag);
      });
      walk.each(0, walk.classes, [&](int64_t, int64_t i, int64_t lanes, auto tag) {
        const Vec<T> g = load_lanes(dy + i, lanes, tag), v = load_lanes(y + i, lanes, tag);
        store_lanes(log_ ? g - exp(v) * sum : v * (g - sum), dx + i, lanes, tag);
      });
    });
  });
}

template <class T>
void find_bad_target(int64_t* position, const int64_t* target, int64_t n, int64_t classes,
                     int64_t ignore_index, Context) {
  const auto bad = [&](int64_t t) {
    return (static_cast<uint64_t>(t) >= static_cast<uint64_t>(classes)) & (t != ignore_index);
  };
  *position = -1;
  int64_t any = 0;  // a loop without an exit, which the compiler vectorises
  for (int64_t i = 0; i < n; ++i) any |= bad(target[i]);
  for (int64_t i = 0; any && *position < 0; ++i) {
    if (bad(target[i])) *position = i;
  }
}

template <class T>
void cross_entropy_forward(T* loss, Wide<T>* stats, Wide<T>* total_weight, const T* x_, ClassTarget<T> t,
                           ClassShape s, Reduction r, Context ctx) {
  const int64_t rows = s.outer * s.inner;
  if (s.classes == 0) {
    if (r == Reduction::none) fill_zero(loss, rows);
    return finish_loss(loss, total_weight, {}, r);
  }
  const Walks<T> walks{s};
  visit_spread(t, s.classes, [&](auto spread_) {
    const auto run = [&](int64_t first, int64_t last) {
      LossSums sums;
      walks.each(first, last, [&](const auto& walk, int64_t offset, int64_t row) {
        const T* x = x_ + offset;
        const auto spread = spread_.at(offset);
        const RowSums<T> row_sums = sum_row(x, walk, spread);
        walk.store_rows(row_sums.max, stats + row);
        walk.store_rows(row_sums.sum, stats + rows + row);
        T losses[Vec<T>::width];
        sums += row_losses(r == Reduction::none ? loss + row : losses, row_sums, x, walk, spread, t, row);
      });
      return sums;
    };
    const int64_t count = walks.count(), per_chunk = walks.holding(chunk);
    finish_loss(loss, total_weight, chunked_sum<LossSums>(count, per_chunk, walks.holding(grain), ctx, run),
                r);
  });
}

template <class T>
void cross_entropy_backward(T* dx_, const T* dy, const T* x_, const Wide<T>* stats,
                            const Wide<T>* total_weight, ClassTarget<T> t, ClassShape s, Reduction r,
                            Context) {
  const Walks<T> walks{s};
  const int64_t rows = s.outer * s.inner;
  visit_spread(t, s.classes, [&](auto spread_) {
    using Q = decltype(spread_);
    // The mass that smoothing gives to a row with an index target: the same for all.
    Vec<T> smoothing_mass;
    if constexpr (Q::exists) {
      const AlongClasses<T> walk{s.classes};
      if (t.index) {
        smoothing_mass = sum_classes<T>(walk, [&](int64_t c, int64_t i, int64_t lanes, auto tag) {
          return spread_.q(walk, c, i, lanes, tag);
        });
      }
    }
    parallel_for(walks.count(), walks.holding(grain), [&](int64_t first, int64_t last) {
      walks.each(first, last, [&](const auto& walk, int64_t offset, int64_t row) {
        const T* x = x_ + offset;
        T* dx = dx_ + offset;
        const auto spread = spread_.at(offset);
        T g_of_row[Vec<T>::width] = {}, at_index[Vec<T>::width] = {};
        int64_t position[Vec<T>::width];
        for (int64_t i = 0; i < walk.rows; ++i) g_of_row[i] = row_gradient(dy, total_weight, r, row + i);
        Vec<T> mass = smoothing_mass;
        if (t.index) {
          const Picked<T> picked(walk, t, row);
          for (int64_t i = 0; i < walk.rows; ++i) {
            position[i] = picked.position[i];
            if (position[i] < 0) g_of_row[i] = 0;
            at_index[i] = static_cast<T>(1 - t.label_smoothing) * picked.weight[i];
          }
          mass = mass + walk.load_rows(at_index);
        } else if constexpr (Q::exists) {
          mass = sum_classes<T>(walk, [&](int64_t c, int64_t i, int64_t lanes, auto tag) {
            return spread.q(walk, c, i, lanes, tag);
          });
        }
        const Vec<T> g = walk.load_rows(g_of_row), m = walk.load_rows(stats + row);
        const Vec<T> scale = g * mass / walk.load_rows(stats + rows + row);
        walk.each(0, walk.classes, [&](int64_t c, int64_t i, int64_t lanes, auto tag) {
          const Vec<T> e = exp(load_lanes(x + i, lanes, tag) - m);
          if constexpr (Q::exists) {
            store_lanes(fmadd(scale, e, neg(g * spread.q(walk, c, i, lanes, tag))), dx + i, lanes, tag);
          } else {
            store_lanes(scale * e, dx + i, lanes, tag);
          }
        });
        if (t.index) {
          for (int64_t i = 0; i < walk.rows; ++i) {
            if (position[i] >= 0) dx[position[i]] -= g_of_row[i] * at_index[i];
          }
        }
      });
    });
  });
}

template <class T>
void nll_loss_forward(T* loss, Wide<T>* total_weight, const T* x, ClassTarget<T> t, ClassShape s, Reduction r,
                      Context ctx) {
  const auto run = [&](int64_t begin, int64_t end) {
    LossSums sums;
    each_picked(t, s, begin, end, [&](int64_t row, int64_t position, T weight) {
      const T l = -weight * x[position];
      sums += {static_cast<double>(l), static_cast<double>(weight)};
      if (r == Reduction::none) loss[row] = l;
    });
    return sums;
  };
  if (r == Reduction::none) fill_zero(loss, s.outer * s.inner);
  finish_loss(loss, total_weight, chunked_sum<LossSums>(s.outer * s.inner, chunk, grain, ctx, run), r);
}

template <class T>
void nll_loss_backward(T* dx, const T* dy, const Wide<T>* total_weight, ClassTarget<T> t, ClassShape s,
                       Reduction r, Context) {
  fill_zero(dx, s.outer * s.classes * s.inner);
  parallel_for(s.outer * s.inner, grain, [&](int64_t begin, int64_t end) {
    each_picked(t, s, begin, end, [&](int64_t row, int64_t position, T weight) {
      dx[position] = -weight * row_gradient(dy, total_weight, r, row);
    });
  });
}

#define INSTANTIATE(T)                                                                                 \
  template void softmax_forward(T*, const T*, ClassShape, bool, Context);                              \
  template void softmax_backward(T*, const T*, const T*, ClassShape, bool, Context);                   \
  template void find_bad_target<T>(int64_t*, const int64_t*, int64_t, int64_t, int64_t, Context);      \
  template void cross_entropy_forward<T>(T*, T*, T*, const T*, ClassTarget<T>, ClassShape, Reduction,  \
                                         Context);                                                     \
  template void cross_entropy_backward<T>(T*, const T*, const T*, const T*, const T*, ClassTarget<T>,  \
                                          ClassShape, Reduction, Context);                             \
  template void nll_loss_forward<T>(T*, T*, const T*, ClassTarget<T>, ClassShape, Reduction, Context); \
  template void nll_loss_backward<T>(T*, const T*, const T*, ClassTarget<T>, ClassShape, Reduction, Context);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace minidl::MINIDL_ISA
