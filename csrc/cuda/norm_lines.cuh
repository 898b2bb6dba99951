// Normalisation where channels have planes of values: batch norm, and group norm. Batch norm of channels that lie
// last has planes of one value; what reads these in another order is in norm_columns.cuh.
#pragma once
#include "norm.cuh"

namespace minidl::cuda {
namespace {

constexpr int64_t line_piece = 4096;  // values of a block: its second look at them finds them in L1

// A line is what has one mean and one weight: the planes line + k * lines, k < count, of `inner` contiguous values.
// per_set lines in a row share a mean.
struct Lines {
  int64_t lines, count, inner, channels, sets, per_set;
  int64_t parts;  // of a line, each summed by one block

  static Lines of_batch(ChannelShape s, int64_t parts) {
    return {s.channels, s.outer, s.inner, s.channels, s.channels, 1, parts};
  }
  static Lines of_groups(ChannelShape s, int64_t groups) {
    return {s.outer * s.channels,         1, s.inner, s.channels, s.outer * groups, s.channels / groups,
            ceil_div(s.inner, line_piece)};
  }
  __host__ __device__ int64_t values() const { return count * inner; }
};

// A thread's way through part `unit % parts` of line `unit / parts`, with the block's others, `width` values a step.
template <int width>
struct LineWalk {
  const Lines& l;
  int64_t step = int64_t(blockDim.x) * width, planes = step / l.inner, rest = step % l.inner;
  int64_t line, begin, end, first_plane, first;

  explicit MINIDL_DEVICE LineWalk(const Lines& lines) : l(lines) {}
  MINIDL_DEVICE void start(int64_t unit) {
    line = unit / l.parts;
    begin = (unit - line * l.parts) * line_piece;
    end = min_of(l.values(), begin + line_piece);
    const int64_t i = begin + int64_t(threadIdx.x) * width;
    first_plane = i / l.inner, first = i - first_plane * l.inner;
  }
  // visit(offset of a vector)
  template <class Visit>
  MINIDL_DEVICE void each(Visit visit) const {
    int64_t plane = first_plane, at = first;
    for (int64_t i = begin + int64_t(threadIdx.x) * width; i < end; i += step) {
      visit((line + plane * l.lines) * l.inner + at);
      plane += planes, at += rest;
      if (at >= l.inner) at -= l.inner, ++plane;
    }
  }
};

// Whether the lines of these tensors can be read in vectors.
template <class T, class... P>
bool vectors_in_lines(const Lines& l, P... tensors) {
  return l.inner % vec_width<T> == 0 && (aligned(tensors) && ...);
}

inline int64_t line_blocks(const Lines& l, const Context& ctx) {
  return min_of(l.lines * l.parts, int64_t(sm_count(ctx)) * 32);
}
inline int line_threads(const Lines& l) { return norm_threads(min_of(l.values(), line_piece)); }

template <class T, int width>
__global__ void __launch_bounds__(norm_block) line_moments_kernel(Moments* parts, const T* x, Lines l) {
  LineWalk<width> walk(l);
  for (int64_t unit = blockIdx.x; unit < l.lines * l.parts; unit += gridDim.x) {
    walk.start(unit);
    const Moments m = moments_of<Wide<T>>(WholeBlock{}, walk.end - walk.begin, [&](auto add) {
      walk.each([&](int64_t offset) {
        Wide<T> v[width];
        load<width>(v, x + offset);
        MINIDL_UNROLL for (int j = 0; j < width; ++j) add(v[j]);
      });
    });
    if (threadIdx.x == 0) parts[unit] = m;
  }
}

template <class T, int width>
__global__ void __launch_bounds__(norm_block)
    line_sums_kernel(GradientSums* parts, const T* dy, const T* x, NormTable<Wide<T>> table, NormAffine<T> a,
                     Lines l) {
  LineWalk<width> walk(l);
  for (int64_t unit = blockIdx.x; unit < l.lines * l.parts; unit += gridDim.x) {
    walk.start(unit);
    const int64_t channel = walk.line % l.channels;
    const Normal<Wide<T>> normal = table.normal(walk.line / l.per_set);
    const Wide<T> w = weight(a, channel), b = bias(a, channel);
    Wide<T> dz_sum = 0, dz_x_sum = 0;
    walk.each([&](int64_t offset) {
      Wide<T> v[width], g[width];
      load<width>(v, x + offset);
      load<width>(g, dy + offset);
      MINIDL_UNROLL for (int j = 0; j < width; ++j) {
        const Wide<T> normalised = normal.of(v[j]), dz = through_relu(a, g[j], normalised, w, b);
        dz_sum += dz, dz_x_sum += dz * normalised;
      }
    });
    const double dz = block_sum(static_cast<double>(dz_sum)), dz_x = block_sum(static_cast<double>(dz_x_sum));
    if (threadIdx.x == 0) parts[unit] = {dz, dz_x};
  }
}

// ---- from the parts of lines to numbers for each set and each channel: a warp each

// The warps of a grid: f(i) for i < n, each by one of them.
template <class F>
MINIDL_DEVICE void each_by_warp(int64_t n, F f) {
  constexpr int warps = norm_block / 32;
  for (int64_t i = int64_t(blockIdx.x) * warps + threadIdx.x / 32; i < n; i += int64_t(gridDim.x) * warps)
    f(i);
}
inline int64_t warp_blocks(int64_t n, const Context& ctx) {
  return grid_stride_blocks(n, norm_block / 32, ctx);
}

// stats: means, rstds, and, where `unbiased`, unbiased variances, `sets` of each. With `mean` and `var`, from these.
template <class T>
__global__ void __launch_bounds__(norm_block)
    norm_stats_kernel(double* stats, NormTable<Wide<T>> table, const Moments* parts, const T* mean,
                      const T* var, int64_t sets, int64_t parts_each, double eps, bool unbiased) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  each_by_warp(sets, [&](int64_t i) {
    double m, v, spread;
    if (mean) {
      m = static_cast<double>(widen(mean[i]));
      v = spread = static_cast<double>(widen(var[i]));
    } else {
      Moments moments{};
      for (int64_t k = lane; k < parts_each; k += 32) moments.add(parts[i * parts_each + k]);
      moments.merge_warp();
      m = moments.mean, v = moments.variance(), spread = moments.unbiased_variance();
    }
    if (lane != 0) return;
    const double rstd = reciprocal_root(v, eps);
    stats[i] = m, stats[sets + i] = rstd;
    if (unbiased) stats[2 * sets + i] = spread;
    table.set(i, Normal<Wide<T>>(m, rstd));
  });
}

// The gradients of sets, where `slopes`, and of channels, from the sums of lines. stats: as above.
template <class T>
__global__ void __launch_bounds__(norm_block)
    norm_gradients_kernel(T* dw, T* db, bool slopes, NormTable<Wide<T>> table, const GradientSums* parts,
                          const double* stats, NormAffine<T> a, Lines l) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t sets = slopes ? l.sets : 0, of_channel = l.lines / l.channels;
  each_by_warp(sets + (dw || db ? l.channels : 0), [&](int64_t i) {
    GradientSums sums{};
    if (i < sets) {
      for (int64_t k = lane; k < l.per_set * l.parts; k += 32) {
        const int64_t channel = (i * l.per_set + k / l.parts) % l.channels;
        sums.add(parts[i * l.per_set * l.parts + k], static_cast<double>(weight(a, channel)));
      }
      sums.merge_warp();
      if (lane != 0) return;
      const double n = static_cast<double>(l.per_set * l.values());
      table.set(i, Slope<Wide<T>>(stats[i], stats[l.sets + i], sums, n));
    } else {
      const int64_t channel = i - sets;
      for (int64_t k = lane; k < of_channel * l.parts; k += 32) {
        const int64_t line = channel + k / l.parts * l.channels;
        sums.add(parts[line * l.parts + k % l.parts]);
      }
      sums.merge_warp();
      if (lane != 0) return;
      if (dw) dw[channel] = narrow<T>(static_cast<Wide<T>>(sums.dz_x));
      if (db) db[channel] = narrow<T>(static_cast<Wide<T>>(sums.dz));
    }
  });
}

// ---- elementwise: y, and dx

// What `width` values from element i on are multiplied by: of one line, or, where `columns`, of neighbours.
template <class T, int width>
struct LineNumbers {
  using W = Wide<T>;
  int64_t set, channel;
  bool columns;
  W mean[width], rstd[width], shift[width], w[width], b[width];

  MINIDL_DEVICE LineNumbers(int64_t i, const NormTable<W>& table, const NormAffine<T>& a, const Lines& l)
      : columns(width > 1 && l.inner == 1) {
    const int64_t line = i / l.inner % l.lines;
    set = line / l.per_set, channel = line % l.channels;
    spread(mean, table.mean);
    spread(rstd, table.rstd);
    spread(shift, table.shift);
    MINIDL_UNROLL for (int j = 0; j < width; ++j) {
      w[j] = weight(a, channel + (columns ? j : 0));
      b[j] = bias(a, channel + (columns ? j : 0));
    }
  }
  MINIDL_DEVICE void spread(W (&to)[width], const W* of_sets) const {
    if (columns) return load<width>(to, of_sets + set);
    MINIDL_UNROLL for (int j = 0; j < width; ++j) to[j] = of_sets[set];
  }
  MINIDL_DEVICE Normal<W> normal(int j) const { return {mean[j], rstd[j], shift[j]}; }
};

// Whether element i begins a vector of one line, or of as many columns.
template <class T, class... P>
bool vectors_of_elements(const Lines& l, P... tensors) {
  const bool columns = l.inner == 1 && l.lines % vec_width<T> == 0;
  return (columns || l.inner % vec_width<T> == 0) && (aligned(tensors) && ...);
}

template <class T>
__global__ void __launch_bounds__(map_block)
    norm_apply_kernel(T* y, const T* x, NormTable<Wide<T>> table, NormAffine<T> a, Lines l, bool vectors) {
  ThreadShare{}.each<vec_width<T>>(l.lines * l.values(), vectors, [&](int64_t i, auto width) {
    const LineNumbers<T, width> numbers(i, table, a, l);
    Wide<T> v[width];
    load<width>(v, x + i);
    MINIDL_UNROLL for (int j = 0; j < width; ++j) {
      v[j] = numbers.normal(j).of(v[j]) * numbers.w[j] + numbers.b[j];
      if (a.relu) v[j] = Relu<Wide<T>>{}.forward(v[j]);
    }
    store<width>(y + i, v);
  });
}

// of_set: whether the means are those of x.
template <class T>
__global__ void __launch_bounds__(map_block)
    norm_descend_kernel(T* dx, const T* dy, const T* x, NormTable<Wide<T>> table, NormAffine<T> a, Lines l,
                        bool of_set, bool vectors) {
  ThreadShare{}.each<vec_width<T>>(l.lines * l.values(), vectors, [&](int64_t i, auto width) {
    const LineNumbers<T, width> numbers(i, table, a, l);
    Wide<T> v[width], g[width], slope[width], offset[width];
    load<width>(v, x + i);
    load<width>(g, dy + i);
    if (of_set) {
      numbers.spread(slope, table.slope);
      numbers.spread(offset, table.offset);
    }
    MINIDL_UNROLL for (int j = 0; j < width; ++j) {
      const Normal<Wide<T>> normal = numbers.normal(j);
      g[j] = through_relu(a, g[j], normal.of(v[j]), numbers.w[j], numbers.b[j]) * numbers.w[j];
      g[j] = of_set ? Slope<Wide<T>>(slope[j], offset[j]).dx(g[j], v[j], normal) : g[j] * normal.rstd;
    }
    store<width>(dx + i, g);
  });
}

}  // namespace
}  // namespace minidl::cuda
