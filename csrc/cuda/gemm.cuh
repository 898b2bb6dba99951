// What the kernels of matmul.cu share: the problem, which tile of it a block computes, and how a finished
// number leaves. A and B are both seen as X(i, k), i being a row of A or a column of B.
#pragma once
#include "activation.cuh"
#include "vec.cuh"

namespace minidl::cuda {
namespace {

template <class T>
struct Operand {
  const T* data;
  int64_t stride, k_stride, batch_stride, size;  // size: of i
  bool k_major;  // k runs along memory, or i does (or neither: read one by one)
  bool vectors;  // 16-byte reads along it are aligned

  Operand(const T* data_, int64_t s, int64_t ks, int64_t bs, int64_t size_)
      : data(data_), stride(s), k_stride(ks), batch_stride(bs), size(size_), k_major(ks == 1 && s != 1) {
    const int64_t along = k_major ? ks : s, across = k_major ? s : ks;
    vectors = along == 1 && across % vec_width<T> == 0 && bs % vec_width<T> == 0 && aligned(data);
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
template <int bm, int bn, class T>
MINIDL_DEVICE Tile tile_of_block(const Problem<T>& p) {
  constexpr int64_t band = 8;
  const int64_t rows = ceil_div(p.m, bm), cols = ceil_div(p.n, bn), tiles = rows * cols;
  const int64_t number = blockIdx.x % tiles, which = blockIdx.x / tiles;
  const int64_t first = number / (band * cols) * band, height = min_of(band, rows - first);
  const int64_t inside = number % (band * cols);
  const int64_t split = which % p.splits;
  return {(first + inside % height) * bm,           inside / height * bn, split * p.k_per_split,
          min_of(p.k, (split + 1) * p.k_per_split), which / p.splits,     split};
}

// Activations cheap enough to be unrolled over a thread's whole tile; the others take the second kernel.
inline bool fits_in_tile(ActivationKind kind) {
  using enum ActivationKind;
  return kind == none || kind == relu || kind == sigmoid || kind == tanh;
}
template <class W, class Visit>
__host__ __device__ void visit_tile_activation(ActivationKind kind, Visit visit) {
  switch (kind) {
    case ActivationKind::relu:
      return visit(Relu<W>{});
    case ActivationKind::sigmoid:
      return visit(Sigmoid<W>{});
    case ActivationKind::tanh:
      return visit(Tanh<W>{});
    default:
      return visit(Identity<W>{});
  }
}

// Writes a thread's sums: each(put) calls put(i, j, sum) for all of them, with i and j within the tile.
template <class T, class Each>
MINIDL_DEVICE void write_tile(const Problem<T>& p, const Tile& tile, Each each) {
  using W = Wide<T>;
  if (p.partial) {
    W* out = p.partial + (tile.split * p.batch + tile.batch) * p.m * p.n;
    each([&](int i, int j, W sum) {
      if (tile.row + i < p.m && tile.col + j < p.n) out[(tile.row + i) * p.n + tile.col + j] = sum;
    });
    return;
  }
  T* out = p.c + tile.batch * p.c_batch_stride;
  visit_tile_activation<W>(p.epilogue.activation.kind, [&](auto f) {
    each([&](int i, int j, W sum) {
      if (tile.row + i >= p.m || tile.col + j >= p.n) return;
      const W bias = p.epilogue.bias ? widen(p.epilogue.bias[tile.col + j]) : W(0);
      out[(tile.row + i) * p.ldc + tile.col + j] = narrow<T>(f.forward(sum + bias));
    });
  });
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

}  // namespace
}  // namespace minidl::cuda
