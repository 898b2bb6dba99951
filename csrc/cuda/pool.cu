// Pooling. Forward, a thread takes an output, or a warp where windows are large and rows lie in memory.
// Backward, a thread takes an input and gathers from the windows that hold it, in their order.
#include "reduce.cuh"

namespace minidl::cuda {
namespace {

constexpr int pool_block = 256;
constexpr int64_t warp_window = 64;  // elements of a window from which on a warp takes it

// ---- geometry, in indices I: 32 bits where these hold all that occurs, for the sake of divisions

template <class I>
struct Axis {
  I in, out, kernel, stride, padding, dilation;
  bool adaptive;
  explicit Axis(const PoolAxis& a)
      : in(static_cast<I>(a.in)),
        out(static_cast<I>(a.out)),
        kernel(static_cast<I>(a.kernel)),
        stride(static_cast<I>(a.stride)),
        padding(static_cast<I>(a.padding)),
        dilation(static_cast<I>(a.dilation)),
        adaptive(a.adaptive) {}

  // Where the window of output o starts: the input of its place 0.
  MINIDL_DEVICE I start(I o) const { return adaptive ? o * in / out : o * stride - padding; }
  // The place of input i in the window of o, which reaches over it, or -1.
  MINIDL_DEVICE I place(I o, I i) const {
    const I offset = i - start(o);
    if (dilation == 1) return offset;
    return offset % dilation == 0 ? offset / dilation : -1;
  }
};

template <class I>
MINIDL_DEVICE I divide_up(I a, I b) {
  return (a + b - 1) / b;
}

// The places first, first + 1, ... of a window are the inputs begin, begin + dilation, ..., `count` of them.
// `length` is what an average counts.
template <class I>
struct Window {
  I start, begin, first, count, length;

  MINIDL_DEVICE Window(const Axis<I>& a, I o, bool count_padding)
      : start(a.start(o)), begin(start), first(0) {
    if (a.adaptive) {
      length = count = divide_up((o + 1) * a.in, a.out) - begin;
      return;
    }
    if (start < 0) {
      first = divide_up(-start, a.dilation);
      begin = start + first * a.dilation;
    }
    I end = a.kernel;
    if (start + (end - 1) * a.dilation >= a.in) {
      end = first + (begin < a.in ? divide_up(a.in - begin, a.dilation) : 0);
    }
    count = end - first;
    length = count_padding ? min_of(start + a.kernel, a.in + a.padding) - start : count;
  }
};

// The outputs [begin, end), whose windows reach over input i.
template <class I>
struct Cover {
  I begin, end;

  MINIDL_DEVICE Cover(const Axis<I>& a, I i) {
    if (a.adaptive) {
      begin = i * a.out / a.in;
      end = divide_up((i + 1) * a.out, a.in);
    } else {
      const I before = i + a.padding - (a.kernel - 1) * a.dilation;
      begin = before > 0 ? divide_up(before, a.stride) : 0;
      end = min_of(a.out, (i + a.padding) / a.stride + 1);
    }
  }
};

template <class I>
struct Geometry {
  I planes, depth;  // images of one channel, or of all, which then lie innermost: depth of them
  Axis<I> h, w;
  explicit Geometry(const PoolShape& s)
      : planes(static_cast<I>(s.channels_last ? s.images : s.images * s.channels)),
        depth(static_cast<I>(s.channels_last ? s.channels : 1)),
        h(s.h),
        w(s.w) {}
  MINIDL_DEVICE I output(I plane, I oh, I ow, I d) const {
    return ((plane * h.out + oh) * w.out + ow) * depth + d;
  }
};

// Calls f(I{}) with the type of index that holds every number of the geometry.
template <class F>
void visit_index(const PoolShape& s, F f) {
  const auto span = [](const PoolAxis& a) {
    return max_of(a.in, a.out) + 2 * a.padding + a.kernel * a.dilation;
  };
  const auto product = [](const PoolAxis& a) {
    return a.adaptive ? (a.in + 1) * (a.out + 1) : a.out * a.stride;
  };
  constexpr double most = 0x1p31;
  const double elements = double(s.images) * double(s.channels) * double(span(s.h)) * double(span(s.w));
  const bool narrow = elements < most && double(product(s.h)) < most && double(product(s.w)) < most;
  narrow ? f(int32_t{}) : f(int64_t{});
}

// ---- forward

// The largest and its number: the first of equals, but the last NaN.
template <class W, class I>
struct Largest {
  W value;
  I number;
  MINIDL_DEVICE void add(W v, I at) {
    if (v > value || v != v) value = v, number = at;
  }
  MINIDL_DEVICE void end_row() {}
  MINIDL_DEVICE void merge_warp() {
    MINIDL_UNROLL for (int bits = 16; bits > 0; bits /= 2) {
      const W v = __shfl_xor_sync(full_mask, value, bits);
      const I at = __shfl_xor_sync(full_mask, number, bits);
      const bool nan = value != value, other_nan = v != v;
      const bool better =
          nan || other_nan ? other_nan && (!nan || at > number) : v > value || (v == value && at < number);
      if (better) value = v, number = at;
    }
  }
};

template <class T, class I>
struct MaxForward {
  T* y;
  PoolPosition position;
  I row_step, column_step, columns;  // what a row and a column further add to an element's number

  MaxForward(T* y_, PoolPosition p, const Geometry<I>& g)
      : y(y_),
        position(p),
        row_step(p.place ? g.w.kernel : g.h.dilation * g.w.in),
        column_step(p.place ? 1 : g.w.dilation),
        columns(g.w.in) {}
  MINIDL_DEVICE I number(I row, I column) const { return row * row_step + column * column_step; }
  MINIDL_DEVICE auto start(const Window<I>& h, const Window<I>& w) const {
    return Largest<Wide<T>, I>{static_cast<Wide<T>>(-INFINITY), number(h.first, w.first)};
  }
  template <class State>
  MINIDL_DEVICE void finish(const State& largest, I at, const Window<I>& h, const Window<I>& w) const {
    y[at] = narrow<T>(largest.value);
    if (position.place) {
      position.place[at] = static_cast<uint8_t>(largest.number);
    } else {
      position.index[at] = h.start * columns + w.start + largest.number;
    }
  }
};

// Rows are summed each for itself: sums of sums err less.
template <class W, class I>
struct RowSums {
  W rows, row;
  MINIDL_DEVICE void add(W v, I) { row += v; }
  MINIDL_DEVICE void end_row() { rows += row, row = 0; }
  MINIDL_DEVICE void merge_warp() { rows = warp_reduce<Sum>(rows); }
};

template <class W, class I>
struct Divisor {
  W fixed;
  explicit Divisor(PoolDivisor d) : fixed(static_cast<W>(d.fixed)) {}
  MINIDL_DEVICE W of(const Window<I>& h, const Window<I>& w) const {
    return fixed != W(0) ? fixed : static_cast<W>(h.length) * static_cast<W>(w.length);
  }
};

template <class T, class I>
struct AverageForward {
  T* y;
  Divisor<Wide<T>, I> divisor;
  MINIDL_DEVICE I number(I, I) const { return 0; }
  MINIDL_DEVICE auto start(const Window<I>&, const Window<I>&) const { return RowSums<Wide<T>, I>{0, 0}; }
  template <class State>
  MINIDL_DEVICE void finish(const State& sums, I at, const Window<I>& h, const Window<I>& w) const {
    y[at] = narrow<T>(sums.rows / divisor.of(h, w));
  }
};

// `lanes` threads an output, 1 or a warp.
template <int lanes, class T, class I, class Pool>
__global__ void __launch_bounds__(pool_block)
    pool_forward_kernel(const T* x, Geometry<I> g, bool count_padding, Pool pool) {
  const int64_t n = int64_t(g.planes) * g.h.out * g.w.out * g.depth,
                step = int64_t(gridDim.x) * pool_block / lanes;
  const I rank = static_cast<I>(threadIdx.x % lanes);
  for (int64_t i = (int64_t(blockIdx.x) * pool_block + threadIdx.x) / lanes; i < n; i += step) {
    const I at = static_cast<I>(i), pixel = at / g.depth, line = pixel / g.w.out;
    const Window<I> h(g.h, line % g.h.out, count_padding), w(g.w, pixel % g.w.out, count_padding);
    const I plane = line / g.h.out, row_stride = g.h.dilation * g.w.in * g.depth,
            column_stride = g.w.dilation * g.depth;
    const T* corner = x + (((plane * g.h.in + h.begin) * g.w.in + w.begin) * g.depth + at % g.depth);
    auto state = pool.start(h, w);
    if (w.count > 0) {
      // Elements rank, rank + lanes... of the window, row after row.
      const I rows_each = w.count > lanes ? 0 : lanes / w.count, columns_each = lanes - rows_each * w.count;
      I row = rank / w.count, column = rank - row * w.count;
      while (row < h.count) {
        state.add(widen(corner[row * row_stride + column * column_stride]),
                  pool.number(h.first + row, w.first + column));
        row += rows_each, column += columns_each;
        if (column >= w.count) {
          ++row, column -= w.count;
          state.end_row();
        }
      }
      state.end_row();
    }
    if constexpr (lanes > 1) state.merge_warp();
    if (rank == 0) pool.finish(state, at, h, w);
  }
}

template <class T, class I, class Pool>
void pool_forward(Pool pool, const T* x, const PoolShape& s, const Geometry<I>& g, bool count_padding,
                  const Context& ctx) {
  const int64_t n = s.images * s.channels * s.h.out * s.w.out;
  const bool warps = !s.channels_last && s.h.kernel * s.w.kernel >= warp_window;
  launch(warps ? pool_forward_kernel<32, T, I, Pool> : pool_forward_kernel<1, T, I, Pool>,
         grid_stride_blocks(n, warps ? pool_block / 32 : pool_block, ctx, 16), pool_block, 0, ctx, x, g,
         count_padding, pool);
}

// ---- backward

// What the window of output (oh, ow), number `at`, gives to an input: its `place` in the window, its `index` in
// the image.
template <class T>
struct MaxBackward {
  const T* dy;
  PoolPosition position;
  template <class I>
  MINIDL_DEVICE Wide<T> share(const Geometry<I>& g, I at, I, I, I row, I column, I index) const {
    const bool here =
        position.place ? position.place[at] == row * g.w.kernel + column : position.index[at] == index;
    return here ? widen(dy[at]) : Wide<T>(0);
  }
};

template <class T, class I>
struct AverageBackward {
  const T* dy;
  Divisor<Wide<T>, I> divisor;
  bool count_padding;
  MINIDL_DEVICE Wide<T> share(const Geometry<I>& g, I at, I oh, I ow, I, I, I) const {
    return widen(dy[at]) / divisor.of({g.h, oh, count_padding}, {g.w, ow, count_padding});
  }
};

template <class T, class I, class Pool>
__global__ void __launch_bounds__(pool_block) pool_backward_kernel(T* dx, Geometry<I> g, Pool pool) {
  const int64_t n = int64_t(g.planes) * g.h.in * g.w.in * g.depth;
  const ThreadShare share;
  for (int64_t i = share.first; i < n; i += share.step) {
    const I pixel = static_cast<I>(i) / g.depth, d = static_cast<I>(i) % g.depth, line = pixel / g.w.in;
    const I iw = pixel % g.w.in, ih = line % g.h.in, plane = line / g.h.in;
    const Cover<I> rows(g.h, ih), columns(g.w, iw);
    Wide<T> sum = 0;
    for (I oh = rows.begin; oh < rows.end; ++oh) {
      const I row = g.h.place(oh, ih);
      if (row < 0) continue;
      for (I ow = columns.begin; ow < columns.end; ++ow) {
        const I column = g.w.place(ow, iw);
        if (column < 0) continue;
        sum += pool.share(g, g.output(plane, oh, ow, d), oh, ow, row, column, ih * g.w.in + iw);
      }
    }
    dx[i] = narrow<T>(sum);
  }
}

template <class T, class I, class Pool>
void pool_backward(Pool pool, T* dx, const PoolShape& s, const Geometry<I>& g, const Context& ctx) {
  const int64_t n = s.images * s.channels * s.h.in * s.w.in;
  launch(pool_backward_kernel<T, I, Pool>, grid_stride_blocks(n, pool_block, ctx, 16), pool_block, 0, ctx, dx,
         g, pool);
}

}  // namespace

template <class T>
void max_pool_forward(T* y, PoolPosition position, const T* x, PoolShape s, Context ctx) {
  visit_index(s, [&](auto index) {
    using I = decltype(index);
    const Geometry<I> g(s);
    pool_forward(MaxForward<T, I>(y, position, g), x, s, g, false, ctx);
  });
}

template <class T>
void max_pool_backward(T* dx, const T* dy, PoolPosition position, PoolShape s, Context ctx) {
  visit_index(s, [&](auto index) {
    const Geometry<decltype(index)> g(s);
    pool_backward(MaxBackward<T>{dy, position}, dx, s, g, ctx);
  });
}

template <class T>
void avg_pool_forward(T* y, const T* x, PoolShape s, PoolDivisor divisor, Context ctx) {
  visit_index(s, [&](auto index) {
    using I = decltype(index);
    const AverageForward<T, I> pool{y, Divisor<Wide<T>, I>(divisor)};
    pool_forward(pool, x, s, Geometry<I>(s), divisor.count_padding, ctx);
  });
}

template <class T>
void avg_pool_backward(T* dx, const T* dy, PoolShape s, PoolDivisor divisor, Context ctx) {
  visit_index(s, [&](auto index) {
    using I = decltype(index);
    const AverageBackward<T, I> pool{dy, Divisor<Wide<T>, I>(divisor), divisor.count_padding};
    pool_backward(pool, dx, s, Geometry<I>(s), ctx);
  });
}

#define INSTANTIATE(T)                                                             \
  template void max_pool_forward(T*, PoolPosition, const T*, PoolShape, Context);  \
  template void max_pool_backward(T*, const T*, PoolPosition, PoolShape, Context); \
  template void avg_pool_forward(T*, const T*, PoolShape, PoolDivisor, Context);   \
  template void avg_pool_backward(T*, const T*, PoolShape, PoolDivisor, Context);
MINIDL_FOR_EACH_TYPE(INSTANTIATE)

}  // namespace minidl::cuda
