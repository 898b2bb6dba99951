#include "kernels.h"
#include "reduce.h"
#include "vmath.h"

namespace minidl::MINIDL_ISA {
namespace {

constexpr int64_t grain = 32768;  // elements below which one thread is quicker
constexpr int64_t chunk = 8192;   // elements of one partial sum

// Each loss: value(x, t, pos_weight), and its derivatives dx(...) and dt(...). Formulas are torch's.

// Losses of d = x - t alone.
template <class F>
struct OfDifference {
  F f;
  template <class V>
  MINIDL_INLINE V value(V x, V t, V) const {
    return f.value(x - t);
  }
  template <class V>
  MINIDL_INLINE V dx(V x, V t, V) const {
    return f.slope(x - t);
  }
  template <class V>
  MINIDL_INLINE V dt(V x, V t, V) const {
    return neg(f.slope(x - t));
  }
};

template <class T>
struct Mse {
  MINIDL_INLINE Vec<T> value(Vec<T> d) const { return d * d; }
  MINIDL_INLINE Vec<T> slope(Vec<T> d) const { return d * T(2); }
};

// -1, 0 or 1; 0 for NaN, as torch.
template <class T>
MINIDL_INLINE Vec<T> sign(Vec<T> d) {
  const Vec<T> zero = T(0);
  return select(zero < d, T(1), select(d < zero, Vec<T>(T(-1)), zero));
}

template <class T>
struct L1 {
  MINIDL_INLINE Vec<T> value(Vec<T> d) const { return abs(d); }
  MINIDL_INLINE Vec<T> slope(Vec<T> d) const { return sign(d); }
};

// d^2 / (2 beta) below beta, |d| - beta / 2 above.
template <class T>
struct SmoothL1 {
  T beta;
  MINIDL_INLINE Vec<T> value(Vec<T> d) const {
    const Vec<T> a = abs(d);
    return select(a < Vec<T>(beta), a * a * T(0.5) / Vec<T>(beta), a - T(0.5) * beta);
  }
  MINIDL_INLINE Vec<T> slope(Vec<T> d) const {
    return select(Vec<T>(beta) <= abs(d), sign(d), d / Vec<T>(beta));
  }
};

// d^2 / 2 up to delta, delta (|d| - delta / 2) above.
template <class T>
struct Huber {
  T delta;
  MINIDL_INLINE Vec<T> value(Vec<T> d) const {
    const Vec<T> a = abs(d);
    return select(a <= Vec<T>(delta), a * a * T(0.5), (a - T(0.5) * delta) * delta);
  }
  MINIDL_INLINE Vec<T> slope(Vec<T> d) const { return select(Vec<T>(delta) <= abs(d), sign(d) * delta, d); }
};

// log(1 - x) for x in [0, 1]; the rounding error of 1 - x, to first order, is put back.
template <class T>
MINIDL_INLINE Vec<T> log_complement(Vec<T> x) {
  const Vec<T> u = Vec<T>(T(1)) - x;
  const Vec<T> lost = (Vec<T>(T(1)) - u) - x;
  return log(u) + select(lost == Vec<T>(T(0)), T(0), lost / u);
}

// -t log(x) - (1 - t) log(1 - x), both logarithms at least -100.
template <class T>
struct Bce {
  MINIDL_INLINE Vec<T> value(Vec<T> x, Vec<T> t, Vec<T>) const {
    return (t - T(1)) * max(T(-100), log_complement(x)) - t * max(T(-100), log(x));
  }
  MINIDL_INLINE Vec<T> dx(Vec<T> x, Vec<T> t, Vec<T>) const {
    return (x - t) / max(static_cast<T>(1e-12), (Vec<T>(T(1)) - x) * x);
  }
  MINIDL_INLINE Vec<T> dt(Vec<T> x, Vec<T>, Vec<T>) const { return log_complement(x) - log(x); }
};

// (1 - t) x - (1 + (pos_weight - 1) t) log sigmoid(x). Either side of 0 is written so that nothing cancels.
template <class T>
struct BceWithLogits {
  static MINIDL_INLINE Vec<T> scale(Vec<T> t, Vec<T> pos_weight) { return fmadd(pos_weight - T(1), t, T(1)); }

  MINIDL_INLINE Vec<T> value(Vec<T> x, Vec<T> t, Vec<T> pos_weight) const {
    const Vec<T> slope = select(Vec<T>(T(0)) < x, Vec<T>(T(1)) - t, neg(pos_weight * t));
    return slope * x + scale(t, pos_weight) * log1p(exp(neg(abs(x))));
  }
  MINIDL_INLINE Vec<T> dx(Vec<T> x, Vec<T> t, Vec<T> pos_weight) const {
    return scale(t, pos_weight) * sigmoid(x) - pos_weight * t;
  }
  MINIDL_INLINE Vec<T> dt(Vec<T> x, Vec<T>, Vec<T> pos_weight) const {
    const Vec<T> log_sigmoid = min(T(0), x) - log1p(exp(neg(abs(x))));
    return (Vec<T>(T(1)) - pos_weight) * log_sigmoid - x;
  }
};

// Calls visit with the loss as a type, so that the loop over elements has no branch on the kind.
template <class T, class F>
void visit_loss(LossParams p, F visit) {
  const T beta = static_cast<T>(p.beta);
  switch (p.kind) {
    case LossKind::mse:
      return visit(OfDifference<Mse<T>>{});
    case LossKind::l1:
      return visit(OfDifference<L1<T>>{});
    case LossKind::smooth_l1:
      return visit(OfDifference<SmoothL1<T>>{{beta}});
    case LossKind::huber:
      return visit(OfDifference<Huber<T>>{{beta}});
    case LossKind::bce:
      return visit(Bce<T>{});
    case LossKind::bce_with_logits:
      return visit(BceWithLogits<T>{});
  }
}

// p[i], or 1 where p is nullptr.
template <class T, class Tag>
MINIDL_INLINE Vec<T> load_or_one(const T* p, int64_t i, int64_t lanes, Tag tag) {
  return p ? load_lanes(p + i, lanes, tag) : Vec<T>(T(1));
}

}  // namespace

template <class T>
void loss_forward(T* y, const T* x, const T* t, const T* weight, const T* pos_weight, int64_t n, LossParams p,
                  Context ctx) {
  visit_loss<T>(p, [&](auto f) {
    const auto element = [&](int64_t i, int64_t lanes, auto tag) {
      const Vec<T> l = f.value(load_lanes(x + i, lanes, tag), load_lanes(t + i, lanes, tag),
                               load_or_one(pos_weight, i, lanes, tag));
      return weight ? l * load_lanes(weight + i, lanes, tag) : l;
    };
    if (p.reduction == Reduction::none) {
      parallel_for(n, grain, [&](int64_t begin, int64_t end) {
        for_lanes<T>(begin, end, [&](int64_t i, int64_t lanes, auto tag) {
          store_lanes(element(i, lanes, tag), y + i, lanes, tag);
        });
      });
    } else {
      const double sum = chunked_sum<double>(n, chunk, grain, ctx, [&](int64_t begin, int64_t end) {
        return sum_lanes<T>(begin, end, element);
      });
      *y = static_cast<T>(p.reduction == Reduction::mean ? sum / static_cast<double>(n) : sum);
    }
  });
}

template <class T>
void loss_backward(T* d, const T* dy, const T* x, const T* t, const T* weight, const T* pos_weight, int64_t n,
                   LossParams p, bool wrt_target, Context) {
  const bool each = p.reduction == Reduction::none;
  const T common = each ? T(0) : p.reduction == Reduction::mean ? *dy / static_cast<T>(n) : *dy;
  const auto run = [&](auto slope) {
    parallel_for(n, grain, [&](int64_t begin, int64_t end) {
      for_lanes<T>(begin, end, [&](int64_t i, int64_t lanes, auto tag) {
        const Vec<T> s = slope(load_lanes(x + i, lanes, tag), load_lanes(t + i, lanes, tag),
                               load_or_one(pos_weight, i, lanes, tag));
        Vec<T> g = each ? load_lanes(dy + i, lanes, tag) : Vec<T>(common);
        if (weight) g = g * load_lanes(weight + i, lanes, tag);
        store_lanes(g * s, d + i, lanes, tag);
      });
    });
  };
  visit_loss<T>(p, [&](auto f) {
    if (wrt_target) {
      run([f](Vec<T> x, Vec<T> t, Vec<T> w) { return f.dt(x, t, w); });
    } else {
      run([f](Vec<T> x, Vec<T> t, Vec<T> w) { return f.dx(x, t, w); });
    }
  });
}

template <class T>
void all_in_unit_interval(bool* inside, const T* x, int64_t n, Context ctx) {
  const double outside = chunked_sum<double>(n, chunk, grain, ctx, [&](int64_t begin, int64_t end) {
    return sum_lanes<T>(begin, end, [&](int64_t i, int64_t lanes, auto tag) {
      const Vec<T> v = load_lanes(x + i, lanes, tag);
      const Vec<T> zero = T(0), one = T(1);
      return select(zero <= v, select(v <= one, zero, one), one);
    });
  });
  *inside = outside == 0;
}

#define INSTANTIATE(T)                                                                                   \
  template void loss_forward(T*, const T*, const T*, const T*, const T*, int64_t, LossParams, Context);  \
  template void loss_backward(T*, const T*, const T*, const T*, const T*, const T*, int64_t, LossParams, \
                              bool, Context);                                                            \
  template void all_in_unit_interval(bool*, const T*, int64_t, Context);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace minidl::MINIDL_ISA
