// What the kernels of matmul.cu share, and many of conv.cu: the problem, which tile of it a block computes, and
// how a finished number leaves. A and B are both seen as X(i, k), i being a row of A or a column of B.
#pragma once
#include "activation.cuh"
#include "vec.cuh"

namespace minidl::cuda {
namespace {

// How 16-byte reads go through an operand: along k, along i, or not at all, since neither is dense, or rows
// do not begin on 16 bytes or end within them. A read of a vector is all inside or all outside then.
enum class Order { k, i, none };

template <class T>
struct Operand {
  const T* data;
  int64_t stride, k_stride, batch_stride, size;  // size: of i

  Order order(int64_t k) const {
    constexpr int64_t width = vec_width<T>;
    const auto runs = [&](int64_t along, int64_t across, int64_t length) {
      return along == 1 && across % width == 0 && length % width == 0 && batch_stride % width == 0 &&
             aligned(data);
    };
    return runs(k_stride, stride, k) ? Order::k : runs(stride, k_stride, size) ? Order::i : Order::none;
  }
};

template <class T>
struct Problem {
  T* c;
  int64_t ldc, c_batch_stride;
  Operand<T> a, b;
  int64_t batch, m, n, k;
  Epilogue<T> epilogue;
  int64_t splits = 1, k_per_split = 0;
  Wide<T>* partial = nullptr;  // (splits, batch, m, n), where a second kernel finishes; else nullptr
};

// Rows, columns and k that a block computes.
struct Tile {
  int64_t row, col, k_begin, k_end, batch, split;
};

// Blocks with neighbouring numbers run at the same time and should find each other's operands in L2: tiles
// are numbered down columns of 8 tiles, band after band.
template <int bm, int bn, class AnyProblem>
MINIDL_DEVICE Tile tile_of_block(const AnyProblem& p) {
  constexpr int64_t band = 8;
  const int64_t rows = ceil_div(p.m, bm), cols = ceil_div(p.n, bn), tiles = rows * cols;
  const int64_t number = blockIdx.x % tiles, which = blockIdx.x / tiles;
  const int64_t first = number / (band * cols) * band, height = min_of(band, rows - first);
  const int64_t inside = number % (band * cols);
  const int64_t split = which % p.splits;
  return {(first + inside % height) * bm,           inside / height * bn, split * p.k_per_split,
          min_of(p.k, (split + 1) * p.k_per_split), which / p.splits,     split};
}

// ---- on the host: how many tiles and splits

template <class AnyProblem>
int64_t tiles_of(const AnyProblem& p, int size) {
  return ceil_div(p.m, size) * ceil_div(p.n, size) * p.batch;
}

// k of a split: less is not worth its share of the second kernel. And what every kernel's block of k divides.
constexpr int64_t least_k_per_split = 128, most_splits = 32, k_multiple = 64;

// Tiles that do not fill the device share their k among several blocks each.
template <class AnyProblem>
void split_k(AnyProblem& p, int64_t tiles, const Context& ctx) {
  const int64_t wanted = 2 * sm_count(ctx) / max_of<int64_t>(tiles, 1);
  const int64_t splits = max_of<int64_t>(1, min_of(min_of(wanted, most_splits), p.k / least_k_per_split));
  p.k_per_split = ceil_div(ceil_div(p.k, splits), k_multiple) * k_multiple;
  p.splits = max_of<int64_t>(1, ceil_div(p.k, max_of(p.k_per_split, k_multiple)));
}

// ---- the end of a tile

// What a tile does to its numbers itself; the other activations would be unrolled over a thread's whole tile,
// and are left to the second kernel.
inline bool fits_in_tile(ActivationKind kind) {
  return kind == ActivationKind::none || kind == ActivationKind::relu;
}

// Writes a thread's sums: each(put) calls put(i, j, sum) for all of them, with i and j within the tile; at(i, j) is
// where they go. bias: of the tile's columns, or nullptr.
template <class AnyProblem, class T, class Each, class At>
MINIDL_DEVICE void write_tile(const AnyProblem& p, const Tile& tile, const T* bias, Each each, At at) {
  using W = Wide<T>;
  const int rows = static_cast<int>(min_of<int64_t>(p.m - tile.row, 1 << 20));
  const int cols = static_cast<int>(min_of<int64_t>(p.n - tile.col, 1 << 20));
  if (p.partial) {
    W* out = p.partial + ((tile.split * p.batch + tile.batch) * p.m + tile.row) * p.n + tile.col;
    each([&](int i, int j, W sum) {
      if (i < rows && j < cols) out[i * p.n + j] = sum;
    });
    return;
  }
  const bool relu = p.epilogue.activation.kind == ActivationKind::relu;
  each([&](int i, int j, W sum) {
    if (i >= rows || j >= cols) return;
    if (bias) sum += widen(bias[j]);
    if (relu && sum <= W(0)) sum = 0;
    *at(i, j) = narrow<T>(sum);
  });
}
template <class T, class Each>
MINIDL_DEVICE void write_tile(const Problem<T>& p, const Tile& tile, Each each) {
  T* out = p.c + tile.batch * p.c_batch_stride + tile.row * p.ldc + tile.col;
  write_tile(p, tile, p.epilogue.bias ? p.epilogue.bias + tile.col : nullptr, each,
             [&](int i, int j) { return out + i * p.ldc + j; });
}

// The second kernel: adds up the splits in their order, then the epilogue.
template <class T>
__global__ void __launch_bounds__(map_block) finish_splits_kernel(Problem<T> p) {
  using W = Wide<T>;
  const int64_t size = p.batch * p.m * p.n;
  ThreadShare{}.each<1>(size, false, [&](int64_t e, auto) {
    W sum = p.partial[e];
    for (int64_t split = 1; split < p.splits; ++split) sum += p.partial[split * size + e];
    const int64_t j = e % p.n, i = e / p.n % p.m, s = e / p.n / p.m;
    if (p.epilogue.bias) sum += widen(p.epilogue.bias[j]);
    visit_activation<W>(p.epilogue.activation, [&](auto f) {
      p.c[s * p.c_batch_stride + i * p.ldc + j] = narrow<T>(f.forward(sum));
    });
  });
}

// ---- column sums, of an epilogue's derivative: the runs of rows that blocks have summed, in their order

template <class T>
__global__ void __launch_bounds__(map_block)
    finish_columns_kernel(T* db, const double* partial, int64_t runs, int64_t n) {
  ThreadShare{}.each<1>(n, false, [&](int64_t j, auto) {
    double sum = 0;
    for (int64_t run = 0; run < runs; ++run) sum += partial[run * n + j];
    db[j] = narrow<T>(static_cast<Wide<T>>(sum));
  });
}

}  // namespace
}  // namespace minidl::cuda
