// Group norm where inner == 1, layer norm being that of one group: a mean is that of contiguous elements,
// each of which has a weight of its own.
#pragma once
#include "norm.h"

namespace minidl::MINIDL_ISA {
namespace {

// Row r = sample * groups + group, of `size` elements, with the weights from group * size on.
struct Rows {
  int64_t samples, groups, size;
  int64_t channels() const { return groups * size; }
};

template <class T>
MINIDL_INLINE Vec<T> load_or(const T* p, int64_t i, T otherwise, int64_t lanes, auto tag) {
  return p ? load_lanes(p + i, lanes, tag) : Vec<T>(otherwise);
}

// The weights of a row, and its z: (x - mean) * rstd + shift is the normalised value.
template <class T>
struct Row {
  T mean, rstd, shift;
  const T *w, *b;

  Row() = default;
  Row(double mean_, double rstd_, NormAffine<T> a, int64_t at)
      : mean(static_cast<T>(mean_)),
        rstd(static_cast<T>(rstd_)),
        shift(static_cast<T>((static_cast<double>(mean) - mean_) * rstd_)),
        w(a.w ? a.w + at : nullptr),
        b(a.b ? a.b + at : nullptr) {}
  MINIDL_INLINE Vec<T> normalised(Vec<T> x) const { return fmadd(x - mean, rstd, shift); }
  MINIDL_INLINE Vec<T> weight(int64_t i, int64_t lanes, auto tag) const {
    return load_or(w, i, T(1), lanes, tag);
  }
  MINIDL_INLINE Vec<T> z(Vec<T> normalised, Vec<T> weight, int64_t i, int64_t lanes, auto tag) const {
    return fmadd(normalised, weight, load_or(b, i, T(0), lanes, tag));
  }
};

template <class T, class F>
void rows_forward(F f, T* y_, double* mean, double* rstd, const T* x_, Rows rows, NormAffine<T> a,
                  double eps) {
  const int64_t size = rows.size;
  parallel_for(
      rows.samples * rows.groups, max_of(1, grain / max_of(1, size)), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const T* x = x_ + r * size;
          T* y = y_ + r * size;
          Moments moments;
          for (int64_t i = 0; i < size; i += piece)
            moments.add(piece_moments(x + i, min_of(piece, size - i)));
          mean[r] = moments.mean;
          rstd[r] = reciprocal_root(moments.variance(), eps);
          const Row<T> row(mean[r], rstd[r], a, r % rows.groups * size);
          for_lanes<T>(0, size, [&](int64_t i, int64_t lanes, auto tag) {
            const Vec<T> v = row.normalised(load_lanes(x + i, lanes, tag));
            store_lanes(f.forward(row.z(v, row.weight(i, lanes, tag), i, lanes, tag)), y + i, lanes, tag);
          });
        }
      });
}

// dw and db of a chunk of samples: in T for a while, then in double.
template <class T>
struct WeightSums {
  static constexpr int64_t together = 4;  // rows whose contributions are added before they are written
  static constexpr int64_t bytes_each = 2 * (sizeof(double) + sizeof(T));
  int64_t channels;
  double *dw, *db;
  T *recent_dw, *recent_db;

  WeightSums(void* memory, int64_t n)
      : channels(n),
        dw(static_cast<double*>(memory)),
        db(dw + n),
        recent_dw(reinterpret_cast<T*>(db + n)),
        recent_db(recent_dw + n) {}
  void clear() {
    for (int64_t i = 0; i < 2 * channels; ++i) dw[i] = 0, recent_dw[i] = 0;
  }
  void flush() {
    for (int64_t i = 0; i < 2 * channels; ++i) {
      dw[i] += static_cast<double>(recent_dw[i]);
      recent_dw[i] = 0;
    }
  }
};

// The gradients of `count` rows that have the weights of one group, `stride` elements apart.
template <class T, int count, class F>
void rows_gradient(F f, T* dx, const T* dy, const T* x, int64_t stride, const Row<T> (&row)[count],
                   const double* mean, const double* rstd, int64_t stats_stride, int64_t size, T* dw, T* db) {
  const auto dz_at = [&](int64_t r, Vec<T> v, Vec<T> weight, int64_t i, int64_t lanes, auto tag) {
    return f.backward(load_lanes(dy + r * stride + i, lanes, tag), row[r].z(v, weight, i, lanes, tag));
  };
  T slope[count] = {}, offset[count] = {};
  for (int64_t r = 0; dx && r < count; ++r) {
    GradientSums sums;
    for (int64_t begin = 0; begin < size; begin += piece) {
      double s[2];
      sum_run<T>(
          min_of(piece, size - begin),
          [&](int64_t j, int64_t lanes, auto tag, Vec<T>(&total)[2]) {
            const int64_t i = begin + j;
            const Vec<T> from_x = load_lanes(x + r * stride + i, lanes, tag),
                         w = row[r].weight(i, lanes, tag);
            const Vec<T> g = dz_at(r, row[r].normalised(from_x), w, i, lanes, tag) * w;
            total[0] = total[0] + g;
            total[1] = fmadd(g, from_x - row[r].mean, total[1]);
          },
          s);
      sums.add({s[0], s[1]});
    }
    const double m = mean[r * stats_stride], rounded = static_cast<double>(row[r].mean);
    const ChannelGradient<T> g(m, rounded, rstd[r * stats_stride], sums.relative_to(m, rounded),
                               static_cast<double>(size));
    slope[r] = g.slope, offset[r] = g.offset;
  }
  for_lanes<T>(0, size, [&](int64_t i, int64_t lanes, auto tag) {
    const Vec<T> w = row[0].weight(i, lanes, tag);
    Vec<T> dw_sum, db_sum;
    unroll<count>([&](auto r) {
      const Vec<T> from_x = load_lanes(x + r * stride + i, lanes, tag), v = row[r].normalised(from_x);
      const Vec<T> dz = dz_at(r, v, w, i, lanes, tag);
      dw_sum = fmadd(dz, v, dw_sum);
      db_sum = db_sum + dz;
      if (!dx) return;
      const Vec<T> d = fmadd(from_x - row[r].mean, slope[r], fmadd(dz, w, offset[r]));
      store_lanes(d * row[r].rstd, dx + r * stride + i, lanes, tag);
    });
    if (!dw) return;
    store_lanes(load_lanes(dw + i, lanes, tag) + dw_sum, dw + i, lanes, tag);
    store_lanes(load_lanes(db + i, lanes, tag) + db_sum, db + i, lanes, tag);
  });
}

template <class T, class F>
void rows_backward(F f, T* dx, T* dw, T* db, const T* dy, const T* x, const double* mean, const double* rstd,
                   Rows rows, NormAffine<T> a, Context ctx) {
  constexpr int64_t most_chunks = 32, flush_after = 64;
  const int64_t channels = rows.channels(), groups = rows.groups;
  const int64_t chunk = max_of(ceil_div(rows.samples, most_chunks), ceil_div(grain, max_of(1, channels)));
  const int64_t chunks = ceil_div(rows.samples, chunk);
  const bool weights = dw || db;
  const int64_t bytes = round_up(channels * WeightSums<T>::bytes_each, 64);
  char* workspace =
      weights ? static_cast<char*>(ctx.workspace(static_cast<size_t>(chunks * bytes))) : nullptr;
  const auto sums_of = [&](int64_t c) { return WeightSums<T>(workspace + c * bytes, channels); };
  const auto gradient = [&](int64_t sample, auto count, const WeightSums<T>* sums) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t r = sample * groups + g, at = r * rows.size, from = g * rows.size;
      Row<T> row[count.value];
      for (int k = 0; k < count; ++k) row[k] = {mean[r + k * groups], rstd[r + k * groups], a, from};
      rows_gradient<T, count.value>(f, dx ? dx + at : nullptr, dy + at, x + at, channels, row, mean + r,
                                    rstd + r, groups, rows.size, sums ? sums->recent_dw + from : nullptr,
                                    sums ? sums->recent_db + from : nullptr);
    }
  };
  parallel_for(chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      WeightSums<T> sums = sums_of(c);
      if (weights) sums.clear();
      const int64_t last = min_of(rows.samples, (c + 1) * chunk);
      for (int64_t first = c * chunk; first < last; first += flush_after) {
        int64_t i = first;
        const int64_t stop = min_of(last, first + flush_after);
        for (; i + 4 <= stop; i += 4) gradient(i, Index<4>{}, weights ? &sums : nullptr);
        for (; i < stop; ++i) gradient(i, Index<1>{}, weights ? &sums : nullptr);
        if (weights) sums.flush();
      }
    }
  });
  for (int64_t i = 0; weights && i < channels; ++i) {
    double dw_sum = 0, db_sum = 0;
    for (int64_t c = 0; c < chunks; ++c) dw_sum += sums_of(c).dw[i], db_sum += sums_of(c).db[i];
    if (dw) dw[i] = static_cast<T>(dw_sum);
    if (db) db[i] = static_cast<T>(db_sum);
  }
}

}  // namespace
}  // namespace minidl::MINIDL_ISA
