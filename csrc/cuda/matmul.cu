#include "gemm_mma.cuh"
#include "gemm_wgmma.h"
#include "reduce.cuh"

namespace minidl::cuda {
namespace {

// ---- the GEMM: which kernel

template <Order order>
using OrderOf = std::integral_constant<Order, order>;

// Calls f with the orders of both operands as types. Where one has none, neither is read in vectors: five
// pairs are kernels enough.
template <class T, class F>
void visit_orders(const Problem<T>& p, F f) {
  const Order a = p.a.order(p.k), b = p.b.order(p.k);
  if (a == Order::none || b == Order::none) return f(OrderOf<Order::none>{}, OrderOf<Order::none>{});
  const auto with_a = [&](auto of_a) {
    b == Order::k ? f(of_a, OrderOf<Order::k>{}) : f(of_a, OrderOf<Order::i>{});
  };
  a == Order::k ? with_a(OrderOf<Order::k>{}) : with_a(OrderOf<Order::i>{});
}

template <class T, int t>
void launch_simt(const Problem<T>& p, int64_t blocks, const Context& ctx) {
  constexpr int bk = t == 8 ? 8 : 64 / static_cast<int>(sizeof(T));  // 16 would spill registers at t = 8
  visit_orders(p, [&](auto a, auto b) {
    launch(gemm_simt_kernel<T, t, bk, a.value, b.value>, blocks, gemm_block, 0, ctx, p);
  });
}
template <class T, int t>
void launch_mma(const Problem<T>& p, int64_t blocks, const Context& ctx) {
  visit_orders(p, [&](auto a, auto b) {
    launch(gemm_mma_kernel<T, t, a.value, b.value>, blocks, gemm_block,
           mma_shared_bytes<T, t, a.value, b.value>, ctx, p);
  });
}

template <class T>
void launch_gemm(const Problem<T>& p, bool large, int64_t blocks, const Context& ctx) {
  if constexpr (sizeof(T) == 8) {
    launch_simt<T, 4>(p, blocks, ctx);
  } else if constexpr (sizeof(T) == 4) {
    if (ctx.allow_tf32) {
      large ? launch_mma<T, 4>(p, blocks, ctx) : launch_mma<T, 2>(p, blocks, ctx);
    } else {
      large ? launch_simt<T, 8>(p, blocks, ctx) : launch_simt<T, 4>(p, blocks, ctx);
    }
  } else {
    large ? launch_mma<T, 4>(p, blocks, ctx) : launch_mma<T, 2>(p, blocks, ctx);
  }
}

// ---- column sums, with the activation's derivative on the way
//
// A block takes 32 columns (a warp's width) of a run of rows, its warps take every `warps`-th row of it. Sums
// of several runs are added up in their order by a second kernel.

constexpr int column_warps = 8, column_block = 32 * column_warps;

template <class T, class F>
__global__ void __launch_bounds__(column_block)
    epilogue_backward_kernel(T* dz, T* db, double* partial, const T* dy, const T* y, int64_t m, int64_t n,
                             int64_t rows_per_run, F f) {
  constexpr int64_t step =
      16 * column_warps;  // a thread's 16 rows are summed in Wide<T>, their sums in double
  MINIDL_SHARED(double, of_warp, [column_warps][32]);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t strips = ceil_div(n, 32), run = blockIdx.x / strips;
  const int64_t col = blockIdx.x % strips * 32 + lane, end = min_of(m, (run + 1) * rows_per_run);
  double sum = 0;
  for (int64_t begin = run * rows_per_run + warp; col < n && begin < end; begin += step) {
    Wide<T> of_rows = 0;
    for (int64_t row = begin; row < min_of(end, begin + step); row += column_warps) {
      const int64_t i = row * n + col;
      Wide<T> g = widen(dy[i]);
      if (dz) {
        g = f.backward(g, widen(y[i]));
        dz[i] = narrow<T>(g);
      }
      of_rows += g;
    }
    sum += static_cast<double>(of_rows);
  }
  if (!db) return;
  of_warp[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || col >= n) return;
  MINIDL_UNROLL for (int w = 1; w < column_warps; ++w) sum += of_warp[w][lane];
  if (partial) {
    partial[run * n + col] = sum;
  } else {
    db[col] = narrow<T>(static_cast<Wide<T>>(sum));
  }
}

}  // namespace

// ---- launchers

template <class T>
void gemm(T* c, int64_t ldc, int64_t c_batch_stride, MatrixView<T> a, MatrixView<T> b, int64_t batch,
          int64_t m, int64_t n, int64_t k, Epilogue<T> epilogue, Context ctx) {
  if (batch == 0 || m == 0 || n == 0) return;
  if constexpr (sizeof(T) == 2) {
    if (batch == 1 && gemm_wgmma(c, ldc, a, b, m, n, k, epilogue, ctx)) return;
  }
  Problem<T> p = {c,
                  ldc,
                  c_batch_stride,
                  {a.data, a.row_stride, a.col_stride, a.batch_stride, m},
                  {b.data, b.col_stride, b.row_stride, b.batch_stride, n},
                  batch,
                  m,
                  n,
                  k,
                  epilogue};
  const bool large = sizeof(T) < 8 && tiles_of(p, 128) >= sm_count(ctx);
  const int64_t tiles = tiles_of(p, large ? 128 : 64);
  split_k(p, tiles, ctx);
  if (p.splits > 1 || !fits_in_tile(epilogue.activation.kind)) {
    p.partial =
        static_cast<Wide<T>*>(ctx.workspace(sizeof(Wide<T>) * static_cast<size_t>(p.splits * batch * m * n)));
  }
  launch_gemm(p, large, tiles * p.splits, ctx);
  if (p.partial) {
    launch(finish_splits_kernel<T>, grid_stride_blocks(batch * m * n, map_block, ctx), map_block, 0, ctx, p);
  }
}

template <class T>
void epilogue_backward(T* dz, T* db, const T* dy, const T* y, int64_t m, int64_t n, Activation activation,
                       Context ctx) {
  const int64_t strips = ceil_div(n, 32);
  // Runs enough to fill the device, of 32 rows at least.
  const int64_t wanted = max_of<int64_t>(1, 4 * sm_count(ctx) / max_of<int64_t>(strips, 1));
  const int64_t rows_per_run = max_of<int64_t>(32, ceil_div(m, wanted));
  const int64_t runs = max_of<int64_t>(1, ceil_div(m, rows_per_run));
  double* partial = nullptr;
  if (db && runs > 1) {
    partial = static_cast<double*>(ctx.workspace(sizeof(double) * static_cast<size_t>(runs * n)));
  }
  visit_invertible<Wide<T>>(activation.kind, [&](auto f) {
    launch(epilogue_backward_kernel<T, decltype(f)>, strips * runs, column_block, 0, ctx, dz, db, partial, dy,
           y, m, n, rows_per_run, f);
  });
  if (partial) {
    launch(finish_columns_kernel<T>, grid_stride_blocks(n, map_block, ctx), map_block, 0, ctx, db, partial,
           runs, n);
  }
}

#define INSTANTIATE(T)                                                                                       \
  template void gemm(T*, int64_t, int64_t, MatrixView<T>, MatrixView<T>, int64_t, int64_t, int64_t, int64_t, \
                     Epilogue<T>, Context);                                                                  \
  template void epilogue_backward(T*, T*, const T*, const T*, int64_t, int64_t, Activation, Context);
MINIDL_FOR_EACH_TYPE(INSTANTIATE)

}  // namespace minidl::cuda
