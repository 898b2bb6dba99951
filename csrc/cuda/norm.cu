#include "norm_columns.cuh"
#include "norm_lines.cuh"
#include "norm_rows.cuh"

namespace minidl::cuda {
namespace {

// The scratch of a normalisation: a Part for each part of each line, and the numbers of each set.
template <class T, class Part>
struct NormScratch {
  Part* parts;
  NormTable<Wide<T>> table;

  NormScratch(int64_t count, int64_t sets, const Context& ctx)
      : NormScratch(ceil_div(count * int64_t(sizeof(Part)), 64) * 64, sets, ctx, 0) {}

 private:
  NormScratch(int64_t bytes, int64_t sets, const Context& ctx, int)
      : parts(static_cast<Part*>(ctx.workspace(static_cast<size_t>(bytes) + table.bytes(sets)))),
        table(reinterpret_cast<char*>(parts) + bytes, sets) {}
};

Lines lines_of_batch(ChannelShape s) {
  const int64_t parts = s.inner == 1 ? column_parts(s.outer) : ceil_div(s.outer * s.inner, line_piece);
  return Lines::of_batch(s, parts);
}

// stats and y, by the moments of x or given ones.
template <class T>
void lines_forward(T* y, double* stats, const T* x, const T* mean, const T* var, NormAffine<T> a,
                   const Lines& l, double eps, bool unbiased, const Context& ctx) {
  if (l.sets == 0) return;
  const NormScratch<T, Moments> scratch(mean ? 0 : l.lines * l.parts, l.sets, ctx);
  if (!mean && l.inner == 1) {
    launch(column_moments_kernel<T>, column_blocks(l.count, l.lines), norm_block, 0, ctx, scratch.parts,
           l.parts, x, l.count, l.lines);
  } else if (!mean) {
    launch(vectors_in_lines<T>(l, x) ? line_moments_kernel<T, vec_width<T>> : line_moments_kernel<T, 1>,
           line_blocks(l, ctx), line_threads(l), 0, ctx, scratch.parts, x, l);
  }
  launch(norm_stats_kernel<T>, warp_blocks(l.sets, ctx), norm_block, 0, ctx, stats, scratch.table,
         scratch.parts, mean, var, l.sets, l.per_set * l.parts, eps, unbiased);
  launch(norm_apply_kernel<T>, grid_stride_blocks(l.lines * l.values(), map_block, ctx), map_block, 0, ctx, y,
         x, scratch.table, a, l, vectors_of_elements<T>(l, y, x));
}

template <class T>
void lines_backward(T* dx, T* dw, T* db, const T* dy, const T* x, const double* stats, NormAffine<T> a,
                    const Lines& l, bool of_set, const Context& ctx) {
  const bool slopes = dx && of_set;
  const NormScratch<T, GradientSums> scratch(l.lines * l.parts, l.sets, ctx);
  fill_table(scratch.table, stats, l.sets, ctx);
  if (slopes || dw || db) {
    if (l.inner == 1) {
      launch(column_sums_kernel<T>, column_blocks(l.count, l.lines), norm_block, 0, ctx, scratch.parts,
             l.parts, dy, x, scratch.table, a, l.count, l.lines, 0, 1);
    } else {
      launch(vectors_in_lines<T>(l, dy, x) ? line_sums_kernel<T, vec_width<T>> : line_sums_kernel<T, 1>,
             line_blocks(l, ctx), line_threads(l), 0, ctx, scratch.parts, dy, x, scratch.table, a, l);
    }
    launch(norm_gradients_kernel<T>, warp_blocks(l.sets + l.channels, ctx), norm_block, 0, ctx, dw, db,
           slopes, scratch.table, scratch.parts, stats, a, l);
  }
  if (!dx) return;
  launch(norm_descend_kernel<T>, grid_stride_blocks(l.lines * l.values(), map_block, ctx), map_block, 0, ctx,
         dx, dy, x, scratch.table, a, l, of_set, vectors_of_elements<T>(l, dx, dy, x));
}

template <class T>
void rows_backward(T* dx, T* dw, T* db, const T* dy, const T* x, const double* stats, NormAffine<T> a,
                   ChannelShape s, const Rows& rows, const Context& ctx) {
  if (dw || db) {  // first: dx may be where dy or x is
    const Lines l = Lines::of_batch(s, column_parts(s.outer));
    const NormScratch<T, GradientSums> scratch(l.lines * l.parts, rows.count, ctx);
    fill_table(scratch.table, stats, rows.count, ctx);
    launch(column_sums_kernel<T>, column_blocks(s.outer, s.channels), norm_block, 0, ctx, scratch.parts,
           l.parts, dy, x, scratch.table, a, s.outer, s.channels, rows.groups, rows.size);
    launch(norm_gradients_kernel<T>, warp_blocks(l.channels, ctx), norm_block, 0, ctx, dw, db, false,
           scratch.table, scratch.parts, stats, a, l);
  }
  if (!dx) return;
  launch(vectors_in_rows(rows, a, dx, dy, x) ? rows_backward_kernel<T, vec_width<T>>
                                             : rows_backward_kernel<T, 1>,
         row_blocks(rows, ctx), norm_threads(rows.size), 0, ctx, dx, dy, x, stats, stats + rows.count, rows,
         a);
}

// momentum * stats + (1 - momentum) * running
template <class T>
__global__ void __launch_bounds__(map_block)
    batch_norm_update_kernel(T* mean, T* var, const double* stats, int64_t channels, double momentum) {
  ThreadShare{}.each<1>(channels, false, [&](int64_t c, auto) {
    const auto move = [&](T& running, double to) {
      running = narrow<T>(
          static_cast<Wide<T>>(momentum * to + (1 - momentum) * static_cast<double>(widen(running))));
    };
    move(mean[c], stats[c]);
    move(var[c], stats[2 * channels + c]);
  });
}

}  // namespace

template <class T>
void batch_norm_forward(T* y, double* stats, const T* x, const T* mean, const T* var, NormAffine<T> a,
                        ChannelShape s, double eps, Context ctx) {
  lines_forward(y, stats, x, mean, var, a, lines_of_batch(s), eps, true, ctx);
}

template <class T>
void batch_norm_update(T* running_mean, T* running_var, const double* stats, int64_t channels,
                       double momentum, Context ctx) {
  launch(batch_norm_update_kernel<T>, grid_stride_blocks(channels, map_block, ctx), map_block, 0, ctx,
         running_mean, running_var, stats, channels, momentum);
}

template <class T>
void batch_norm_backward(T* dx, T* dw, T* db, const T* dy, const T* x, const double* stats, NormAffine<T> a,
                         ChannelShape s, bool of_batch, Context ctx) {
  lines_backward(dx, dw, db, dy, x, stats, a, lines_of_batch(s), of_batch, ctx);
}

template <class T>
void group_norm_forward(T* y, double* stats, const T* x, NormAffine<T> a, ChannelShape s, int64_t groups,
                        double eps, Context ctx) {
  if (s.inner != 1) {
    return lines_forward<T>(y, stats, x, nullptr, nullptr, a, Lines::of_groups(s, groups), eps, false, ctx);
  }
  const Rows rows{s.outer * groups, groups, s.channels / groups};
  launch(vectors_in_rows(rows, a, y, x) ? rows_forward_kernel<T, vec_width<T>> : rows_forward_kernel<T, 1>,
         row_blocks(rows, ctx), norm_threads(rows.size), 0, ctx, y, stats, stats + rows.count, x, rows, a,
         eps);
}

template <class T>
void group_norm_backward(T* dx, T* dw, T* db, const T* dy, const T* x, const double* stats, NormAffine<T> a,
                         ChannelShape s, int64_t groups, Context ctx) {
  if (s.inner != 1)
    return lines_backward(dx, dw, db, dy, x, stats, a, Lines::of_groups(s, groups), true, ctx);
  rows_backward(dx, dw, db, dy, x, stats, a, s, {s.outer * groups, groups, s.channels / groups}, ctx);
}

#define INSTANTIATE(T)                                                                                     \
  template void batch_norm_forward(T*, double*, const T*, const T*, const T*, NormAffine<T>, ChannelShape, \
                                   double, Context);                                                       \
  template void batch_norm_update(T*, T*, const double*, int64_t, double, Context);                        \
  template void batch_norm_backward(T*, T*, T*, const T*, const T*, const double*, NormAffine<T>,          \
                                    ChannelShape, bool, Context);                                          \
  template void group_norm_forward(T*, double*, const T*, NormAffine<T>, ChannelShape, int64_t, double,    \
                                   Context);                                                               \
  template void group_norm_backward(T*, T*, T*, const T*, const T*, const double*, NormAffine<T>,          \
                                    ChannelShape, int64_t, Context);
MINIDL_FOR_EACH_TYPE(INSTANTIATE)

}  // namespace minidl::cuda
