// Normalisation where channels do not lie last: batch norm, and group norm.
#pragma once
#include "norm.h"

namespace minidl::MINIDL_ISA {
namespace {

// The outer * channels planes of `inner` contiguous elements, cut into pieces, and gathered in the sets that
// share a mean: plane k of a set is set * first + k * step.
struct Planes {
  int64_t channels, inner, sets, count, first, step;
  int64_t pieces = ceil_div(inner, piece);  // of a plane

  static Planes of_batch(ChannelShape s) { return {s.channels, s.inner, s.channels, s.outer, 1, s.channels}; }
  static Planes of_groups(ChannelShape s, int64_t groups) {
    return {s.channels, s.inner, s.outer * groups, s.channels / groups, s.channels / groups, 1};
  }
  int64_t total() const { return sets * count * pieces; }
  int64_t values() const { return count * inner; }  // of a set
  int64_t set_of(int64_t plane) const { return step == 1 ? plane / count : plane % sets; }

  // f(i, offset, n, channel, set): the piece's number, where it begins and how long it is.
  template <class F>
  MINIDL_INLINE void at(int64_t i, int64_t set, F f) const {
    const int64_t plane = i / pieces, begin = i % pieces * piece;
    f(i, plane * inner + begin, min_of(piece, inner - begin), plane % channels, set);
  }
  template <class F>
  MINIDL_INLINE void each_of_set(int64_t set, F f) const {
    for (int64_t k = 0; k < count; ++k) {
      const int64_t plane = set * first + k * step;
      for (int64_t p = 0; p < pieces; ++p) at(plane * pieces + p, set, f);
    }
  }
  template <class F>
  void parallel_each(F f) const {
    parallel_for(total(), max_of(1, grain / min_of(max_of(1, inner), piece)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) at(i, set_of(i / pieces), f);
                 });
  }
  template <class F>
  void parallel_sets(F f) const {
    parallel_for(sets, max_of(1, grain / max_of(1, values())), [&](int64_t begin, int64_t end) {
      for (int64_t set = begin; set < end; ++set) f(set);
    });
  }
  // Whether a thread's second look at a set finds it in L2, `streams` tensors of it, and every thread has its
  // share of sets: then all is done set by set. The results are the same either way.
  template <class T>
  bool set_by_set(int64_t streams, Context ctx) const {
    const int64_t bytes = values() * streams * static_cast<int64_t>(sizeof(T));
    return bytes <= ctx.l2_bytes * 3 / 4 && (sets >= 4 * ctx.threads || sets % ctx.threads == 0);
  }
};

// finish(set, moments) writes the stats of a set, from which on mean[set] and rstd[set] hold; without, they
// do already.
template <class T, class F, class Finish>
void planes_forward(F f, T* y, const T* x, const double* mean, const double* rstd, const Planes& planes,
                    NormAffine<T> a, bool measure, Finish finish, Context ctx) {
  const auto normalise = [&](int64_t, int64_t offset, int64_t n, int64_t channel, int64_t set) {
    const Channel<T> c(mean[set], rstd[set], a, channel);
    for_lanes<T>(offset, offset + n, [&](int64_t i, int64_t lanes, auto tag) {
      store_lanes(f.forward(c.z(load_lanes(x + i, lanes, tag))), y + i, lanes, tag);
    });
  };
  if (!measure) return planes.parallel_each(normalise);
  if (planes.set_by_set<T>(2, ctx)) {
    return planes.parallel_sets([&](int64_t set) {
      Moments moments;
      planes.each_of_set(set, [&](int64_t, int64_t offset, int64_t n, int64_t, int64_t) {
        moments.add(piece_moments(x + offset, n));
      });
      finish(set, moments);
      planes.each_of_set(set, normalise);
    });
  }
  Moments* parts =
      static_cast<Moments*>(ctx.workspace(static_cast<size_t>(planes.total()) * sizeof(Moments)));
  planes.parallel_each([&](int64_t i, int64_t offset, int64_t n, int64_t, int64_t) {
    parts[i] = piece_moments(x + offset, n);
  });
  planes.parallel_sets([&](int64_t set) {
    Moments moments;
    planes.each_of_set(set, [&](int64_t i, int64_t, int64_t, int64_t, int64_t) { moments.add(parts[i]); });
    finish(set, moments);
  });
  planes.parallel_each(normalise);
}

// of_set: whether mean and rstd are those of x.
template <class T, class F>
void planes_backward(F f, T* dx, T* dw, T* db, const T* dy, const T* x, const double* mean,
                     const double* rstd, const Planes& planes, NormAffine<T> a, bool of_set, Context ctx) {
  const int64_t total = planes.total();
  GradientSums* const sums = static_cast<GradientSums*>(
      ctx.workspace(static_cast<size_t>(total + planes.sets) * sizeof(GradientSums)));
  GradientSums* const weighted = sums + total;  // by w, of sets
  const auto sum = [&](int64_t i, int64_t offset, int64_t n, int64_t channel, int64_t set) {
    const Channel<T> c(mean[set], rstd[set], a, channel);
    double s[2];
    sum_run<T>(
        n,
        [&](int64_t j, int64_t lanes, auto tag, Vec<T>(&total_of)[2]) {
          const Vec<T> v = load_lanes(x + offset + j, lanes, tag);
          const Vec<T> dz = f.backward(load_lanes(dy + offset + j, lanes, tag), c.z(v));
          total_of[0] = total_of[0] + dz;
          total_of[1] = fmadd(dz, v - c.mean, total_of[1]);
        },
        s);
    sums[i] = GradientSums{s[0], s[1]}.relative_to(mean[set], static_cast<double>(c.mean));
  };
  const auto sum_set = [&](int64_t set) {
    weighted[set] = {};
    planes.each_of_set(set, [&](int64_t i, int64_t, int64_t, int64_t channel, int64_t) {
      weighted[set].add(sums[i], a.w ? static_cast<double>(a.w[channel]) : 1);
    });
  };
  const auto descend = [&](int64_t, int64_t offset, int64_t n, int64_t channel, int64_t set) {
    const Channel<T> c(mean[set], rstd[set], a, channel);
    const auto dz_at = [&](int64_t i, Vec<T> v, int64_t lanes, auto tag) {
      return f.backward(load_lanes(dy + i, lanes, tag), c.z(v));
    };
    if (!of_set) {
      return for_lanes<T>(offset, offset + n, [&](int64_t i, int64_t lanes, auto tag) {
        const Vec<T> dz = dz_at(i, load_lanes(x + i, lanes, tag), lanes, tag);
        store_lanes(dz * c.scale, dx + i, lanes, tag);
      });
    }
    const T weight = a.w ? a.w[channel] : T(1), factor = static_cast<T>(rstd[set]);
    const ChannelGradient<T> g(mean[set], static_cast<double>(c.mean), rstd[set], weighted[set],
                               static_cast<double>(planes.values()));
    for_lanes<T>(offset, offset + n, [&](int64_t i, int64_t lanes, auto tag) {
      const Vec<T> v = load_lanes(x + i, lanes, tag);
      const Vec<T> direct = fmadd(dz_at(i, v, lanes, tag), weight, g.offset);
      store_lanes(fmadd(v - c.mean, g.slope, direct) * factor, dx + i, lanes, tag);
    });
  };
  if (dx && of_set && planes.set_by_set<T>(3, ctx)) {
    planes.parallel_sets([&](int64_t set) {
      planes.each_of_set(set, sum);
      sum_set(set);
      planes.each_of_set(set, descend);
    });
  } else {
    if (dw || db || of_set) planes.parallel_each(sum);
    if (dx && of_set) planes.parallel_sets(sum_set);
    if (dx) planes.parallel_each(descend);
  }
  if (!dw && !db) return;
  const int64_t outer = planes.channels ? planes.sets * planes.count / planes.channels : 0;
  parallel_for(planes.channels, max_of(1, grain / max_of(1, outer * planes.pieces)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t channel = begin; channel < end; ++channel) {
                   GradientSums of_channel;
                   for (int64_t o = 0; o < outer; ++o) {
                     const int64_t plane = o * planes.channels + channel;
                     GradientSums of_plane;
                     for (int64_t p = 0; p < planes.pieces; ++p)
                       of_plane.add(sums[plane * planes.pieces + p]);
                     of_channel.dz += of_plane.dz;
                     of_channel.dz_x += of_plane.dz_x * rstd[planes.set_of(plane)];
                   }
                   if (dw) dw[channel] = static_cast<T>(of_channel.dz_x);
                   if (db) db[channel] = static_cast<T>(of_channel.dz);
                 }
               });
}

}  // namespace
}  // namespace minidl::MINIDL_ISA
