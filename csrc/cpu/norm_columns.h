// Batch norm where channels lie last: (N, C), and tensors in the channels_last format.
#pragma once
#include "norm.h"

namespace minidl::MINIDL_ISA {
namespace {

// rows x channels elements in blocks of up to four registers of channels by `block` rows.
template <class T>
struct Columns {
  static constexpr int64_t w = Vec<T>::width, group = 4 * w, block = 256;
  int64_t rows, channels;
  int64_t blocks() const { return ceil_div(rows, block); }
  int64_t groups() const { return ceil_div(channels, group); }

  // f(b, n, at, c, lanes, Index<registers>): block b has n rows from element `at` on, of channels from c on;
  // the last register holds `lanes` of them.
  template <class F>
  void each(F f) const {
    const int64_t worth = ceil_div(grain, block * min_of(group, max_of(1, channels)));
    parallel_for(blocks() * groups(), worth, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t b = t / groups(), n = min_of(block, rows - b * block), at = b * block * channels;
        int64_t c = t % groups() * group;
        if (c + group <= channels) {
          f(b, n, at + c, c, w, Index<4>{});
        } else {
          for (; c < channels; c += w) f(b, n, at + c, c, min_of(w, channels - c), Index<1>{});
        }
      }
    });
  }
};

template <class T, int count>
MINIDL_INLINE Vec<T> load_column(const T* p, Index<count>, int64_t lanes) {
  return count == 1 ? Vec<T>::load(p, static_cast<int>(lanes)) : Vec<T>::load(p);
}
template <class T, int count>
MINIDL_INLINE void store_column(Vec<T> v, T* p, Index<count>, int64_t lanes) {
  count == 1 ? v.store(p, static_cast<int>(lanes)) : v.store(p);
}

// The sums over n rows of what f(row, v, sums) adds to the `sums` of register v; emptied every 16 rows.
template <class T, int registers, int count, class F>
MINIDL_INLINE void sum_columns(int64_t n, F f, Vec<T> (&totals)[registers][count]) {
  for (int64_t i = 0; i < n;) {
    Vec<T> recent[registers][count];
    for (const int64_t end = min_of(i + 16, n); i < end; ++i) {
      unroll<registers>([&](auto v) { f(i, v, recent[v]); });
    }
    unroll<registers>(
        [&](auto v) { unroll<count>([&](auto s) { totals[v][s] = totals[v][s] + recent[v][s]; }); });
  }
}

template <class T>
void column_moments(Moments* parts, const T* x_, Columns<T> columns) {
  constexpr int64_t w = Vec<T>::width;
  columns.each([&](int64_t b, int64_t n, int64_t at, int64_t c, int64_t lanes, auto registers) {
    constexpr int count = registers.value;
    const T* x = x_ + at;
    const auto load = [&](int64_t i, int64_t v) {
      return load_column(x + i * columns.channels + v * w, registers, lanes);
    };
    const int64_t head = min_of(n, 8);
    Vec<T> shift[count], sums[count][2];
    unroll<count>([&](auto v) {
      for (int64_t i = 0; i < head; ++i) shift[v] = shift[v] + load(i, v);
      const Vec<T> mean = shift[v] * (T(1) / static_cast<T>(head));
      shift[v] = select(mean - mean == Vec<T>(T(0)), mean, T(0));
    });
    sum_columns<T, count, 2>(
        n,
        [&](int64_t i, auto v, Vec<T>(&s)[2]) {
          const Vec<T> d = load(i, v) - shift[v];
          s[0] = s[0] + d;
          s[1] = fmadd(d, d, s[1]);
        },
        sums);
    for (int v = 0; v < count; ++v) {
      T shifts[w], sum[w], square[w];
      shift[v].store(shifts), sums[v][0].store(sum), sums[v][1].store(square);
      for (int64_t lane = 0; lane < lanes; ++lane) {
        parts[b * columns.channels + c + v * w + lane] =
            shifted_moments(static_cast<double>(sum[lane]), static_cast<double>(square[lane]), shifts[lane],
                            x + v * w + lane, n, columns.channels);
      }
    }
  });
}

// What the columns are multiplied with and shifted by, side by side as they are loaded.
template <class T>
struct ColumnScales {
  static constexpr int64_t arrays = 5;
  T *mean, *scale, *shift, *slope, *offset;

  ColumnScales(T* memory, int64_t channels)
      : mean(memory),
        scale(mean + channels),
        shift(scale + channels),
        slope(shift + channels),
        offset(slope + channels) {}
  void set(int64_t c, const Channel<T>& channel) const {
    mean[c] = channel.mean, scale[c] = channel.scale, shift[c] = channel.shift;
  }
  void set(int64_t c, const ChannelGradient<T>& g) const { slope[c] = g.slope, offset[c] = g.offset; }
};

// A Channel for each lane of `count` registers.
template <class T, int count>
struct ColumnRegisters {
  Vec<T> mean[count], scale[count], shift[count];

  MINIDL_INLINE ColumnRegisters(const ColumnScales<T>& of, int64_t c, int64_t lanes) {
    unroll<count>([&](auto v) {
      const int64_t at = c + v * Vec<T>::width;
      mean[v] = load_column(of.mean + at, Index<count>{}, lanes);
      scale[v] = load_column(of.scale + at, Index<count>{}, lanes);
      shift[v] = load_column(of.shift + at, Index<count>{}, lanes);
    });
  }
  MINIDL_INLINE Vec<T> z(int v, Vec<T> centered) const { return fmadd(centered, scale[v], shift[v]); }
};

// The scratch of a batch norm over columns: a Part for each block and channel, and the scales.
template <class T, class Part>
struct ColumnScratch {
  Part* parts;
  ColumnScales<T> scales;

  ColumnScratch(Columns<T> columns, Context ctx)
      : ColumnScratch(columns.blocks() * columns.channels, columns.channels, ctx) {}

 private:
  ColumnScratch(int64_t count, int64_t channels, Context ctx)
      : parts(static_cast<Part*>(
            ctx.workspace(static_cast<size_t>(count) * sizeof(Part) +
                          static_cast<size_t>(ColumnScales<T>::arrays * channels) * sizeof(T)))),
        scales(reinterpret_cast<T*>(parts + count), channels) {}
};

// f(c) for every channel, which looks at one part in each block.
template <class T, class F>
void each_channel(Columns<T> columns, F f) {
  const int64_t worth = max_of(1, grain / max_of(1, columns.blocks()));
  parallel_for(columns.channels, worth, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) f(c);
  });
}

// measure and finish: as in planes_forward.
template <class T, class F, class Finish>
void columns_forward(F f, T* y, const T* x, const double* mean, const double* rstd, Columns<T> columns,
                     NormAffine<T> a, bool measure, Finish finish, Context ctx) {
  constexpr int64_t w = Vec<T>::width;
  const int64_t channels = columns.channels;
  const ColumnScratch<T, Moments> scratch(columns, ctx);
  if (measure) column_moments(scratch.parts, x, columns);
  each_channel(columns, [&](int64_t c) {
    if (measure) {
      Moments moments;
      for (int64_t b = 0; b < columns.blocks(); ++b) moments.add(scratch.parts[b * channels + c]);
      finish(c, moments);
    }
    scratch.scales.set(c, Channel<T>(mean[c], rstd[c], a, c));
  });
  columns.each([&](int64_t, int64_t n, int64_t at, int64_t c, int64_t lanes, auto registers) {
    constexpr int count = registers.value;
    const ColumnRegisters<T, count> in(scratch.scales, c, lanes);
    for (int64_t i = 0; i < n; ++i) {
      unroll<count>([&](auto v) {
        const int64_t j = at + i * channels + v * w;
        const Vec<T> centered = load_column(x + j, registers, lanes) - in.mean[v];
        store_column(f.forward(in.z(v, centered)), y + j, registers, lanes);
      });
    }
  });
}

template <class T, class F>
void columns_backward(F f, T* dx, T* dw, T* db, const T* dy, const T* x, const double* mean,
                      const double* rstd, Columns<T> columns, NormAffine<T> a, bool of_batch, Context ctx) {
  constexpr int64_t w = Vec<T>::width;
  const int64_t channels = columns.channels;
  const ColumnScratch<T, GradientSums> scratch(columns, ctx);
  const ColumnScales<T>& scales = scratch.scales;
  const bool sums_wanted = dw || db || of_batch;
  each_channel(columns, [&](int64_t c) { scales.set(c, Channel<T>(mean[c], rstd[c], a, c)); });
  if (sums_wanted) {
    columns.each([&](int64_t b, int64_t n, int64_t at, int64_t c, int64_t lanes, auto registers) {
      constexpr int count = registers.value;
      const ColumnRegisters<T, count> in(scales, c, lanes);
      Vec<T> sums[count][2];
      sum_columns<T, count, 2>(
          n,
          [&](int64_t i, auto v, Vec<T>(&s)[2]) {
            const int64_t j = at + i * channels + v * w;
            const Vec<T> centered = load_column(x + j, registers, lanes) - in.mean[v];
            const Vec<T> dz = f.backward(load_column(dy + j, registers, lanes), in.z(v, centered));
            s[0] = s[0] + dz;
            s[1] = fmadd(dz, centered, s[1]);
          },
          sums);
      for (int v = 0; v < count; ++v) {
        T dz[w], dz_x[w];
        sums[v][0].store(dz), sums[v][1].store(dz_x);
        for (int64_t lane = 0; lane < lanes; ++lane) {
          scratch.parts[b * channels + c + v * w + lane] = {static_cast<double>(dz[lane]),
                                                            static_cast<double>(dz_x[lane])};
        }
      }
    });
    each_channel(columns, [&](int64_t c) {
      GradientSums rough;
      for (int64_t b = 0; b < columns.blocks(); ++b) rough.add(scratch.parts[b * channels + c]);
      const double rounded = static_cast<double>(scales.mean[c]);
      const GradientSums sums = rough.relative_to(mean[c], rounded);
      if (dw) dw[c] = static_cast<T>(sums.dz_x * rstd[c]);
      if (db) db[c] = static_cast<T>(sums.dz);
      // Of dz, not of w * dz: a channel has one weight, which its scale holds.
      scales.set(c, ChannelGradient<T>(mean[c], rounded, rstd[c], sums, static_cast<double>(columns.rows)));
    });
  }
  if (!dx) return;
  columns.each([&](int64_t, int64_t n, int64_t at, int64_t c, int64_t lanes, auto registers) {
    constexpr int count = registers.value;
    const ColumnRegisters<T, count> in(scales, c, lanes);
    Vec<T> slope[count], offset[count];
    unroll<count>([&](auto v) {
      slope[v] = load_column(scales.slope + c + v * w, registers, lanes);
      offset[v] = load_column(scales.offset + c + v * w, registers, lanes);
    });
    for (int64_t i = 0; i < n; ++i) {
      unroll<count>([&](auto v) {
        const int64_t j = at + i * channels + v * w;
        const Vec<T> centered = load_column(x + j, registers, lanes) - in.mean[v];
        const Vec<T> dz = f.backward(load_column(dy + j, registers, lanes), in.z(v, centered));
        const Vec<T> through_stats = fmadd(centered, slope[v], dz + offset[v]);
        store_column((of_batch ? through_stats : dz) * in.scale[v], dx + j, registers, lanes);
      });
    }
  });
}

}  // namespace
}  // namespace minidl::MINIDL_ISA
