// C = A B with multiply-adds of plain registers, for float and double. A block computes a tile of 16 t x 16
// t, its 8 warps (2 x 4) tiles of 8 t x 4 t, their lanes (8 x 4) tiles of t x t. A and B go through shared
// memory, which is double-buffered: while one pair of k-blocks is multiplied, the next is on its way in
// registers.
#pragma once
#include "gemm.cuh"

namespace minidl::cuda {
namespace {

// Two blocks on a multiprocessor: one computes while the other waits. Caps a thread at 128 registers.
constexpr int gemm_block = 256, gemm_blocks_per_sm = 2;

// `rows` x bk numbers of an operand: from global memory to registers, then to shared memory as (k, row).
template <class T, int rows, int bk, Order order>
struct TileLoader {
  static constexpr bool k_major = order != Order::i;
  static constexpr int width = vec_width<T>, count = rows * bk / width / gemm_block;
  // Rows in shared memory are 16 bytes longer, so that they begin aligned, but not all in the same bank.
  static constexpr int pitch = rows + width;
  static_assert(rows * bk % (width * gemm_block) == 0, "each thread loads the same number of vectors");
  T held[count][width];

  // Where vector v of this thread begins.
  static MINIDL_DEVICE void place(int v, int& row, int& k) {
    const int index = v * gemm_block + static_cast<int>(threadIdx.x);
    row = k_major ? index / (bk / width) : index % (rows / width) * width;
    k = k_major ? index % (bk / width) * width : index / (rows / width);
  }

  // Zeros beyond the operand's rows and k_end.
  MINIDL_DEVICE void fetch(const Operand<T>& x, const T* data, int64_t first_row, int64_t first_k,
                           int64_t k_end) {
    MINIDL_UNROLL for (int v = 0; v < count; ++v) {
      int in_row, in_k;
      place(v, in_row, in_k);
      const int64_t row = first_row + in_row, k = first_k + in_k;
      const T* from = data + row * x.stride + k * x.k_stride;
      if constexpr (order == Order::none) {
        MINIDL_UNROLL for (int j = 0; j < width; ++j) {
          held[v][j] = row < x.size && k + j < k_end ? from[j * x.k_stride] : T(0);
        }
      } else {
        Pack<T, width> pack = {};
        if (row < x.size && k < k_end) pack = *reinterpret_cast<const Pack<T, width>*>(from);
        MINIDL_UNROLL for (int j = 0; j < width; ++j) held[v][j] = pack.lane[j];
      }
    }
  }
  MINIDL_DEVICE void put(T (*tile)[pitch]) const {
    MINIDL_UNROLL for (int v = 0; v < count; ++v) {
      int row, k;
      place(v, row, k);
      if constexpr (k_major) {
        MINIDL_UNROLL for (int j = 0; j < width; ++j) tile[k + j][row] = held[v][j];
      } else {
        store<width>(&tile[k][row], held[v]);
      }
    }
  }
};

// Where a thread's t x t numbers lie in the tile of its block: of a lane's groups of `width` rows, 8 lanes' lie
// side by side; of its columns, 4 lanes'.
template <class T, int t>
struct SimtPlaces {
  static constexpr int width = vec_width<T>, groups = t / width;
  static_assert(t % width == 0, "a lane reads its rows and columns of a k in whole vectors");
  int row, col;

  MINIDL_DEVICE SimtPlaces() {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    row = warp / 4 * 8 * t + lane / 4 * width;
    col = warp % 4 * 4 * t + lane % 4 * width;
  }
  // acc += the product of two blocks of k in shared memory.
  template <int bk, int pitch_a, int pitch_b>
  MINIDL_DEVICE void multiply(T (&acc)[t][t], const T (&a)[bk][pitch_a], const T (&b)[bk][pitch_b]) const {
    MINIDL_UNROLL for (int k = 0; k < bk; ++k) {
      T x[t], y[t];
      MINIDL_UNROLL for (int g = 0; g < groups; ++g) {
        load<width>(reinterpret_cast<T(&)[width]>(x[g * width]), &a[k][row + g * 8 * width]);
        load<width>(reinterpret_cast<T(&)[width]>(y[g * width]), &b[k][col + g * 4 * width]);
      }
      MINIDL_UNROLL for (int i = 0; i < t; ++i) {
        MINIDL_UNROLL for (int j = 0; j < t; ++j) acc[i][j] += x[i] * y[j];
      }
    }
  }
  template <class Put>
  MINIDL_DEVICE void each(const T (&acc)[t][t], Put put) const {
    MINIDL_UNROLL for (int i = 0; i < t; ++i) {
      MINIDL_UNROLL for (int j = 0; j < t; ++j) {
        put(row + i / width * 8 * width + i % width, col + j / width * 4 * width + j % width, acc[i][j]);
      }
    }
  }
};

template <class T, int t, int bk, Order a_order, Order b_order>
__global__ void __launch_bounds__(gemm_block, gemm_blocks_per_sm)
    gemm_simt_kernel(const __grid_constant__ Problem<T> p) {
  constexpr int bm = 16 * t, bn = 16 * t;
  using LoaderA = TileLoader<T, bm, bk, a_order>;
  using LoaderB = TileLoader<T, bn, bk, b_order>;
  MINIDL_SHARED(T, a_tile, [2][bk][LoaderA::pitch]);
  MINIDL_SHARED(T, b_tile, [2][bk][LoaderB::pitch]);

  const Tile tile = tile_of_block<bm, bn>(p);
  const T *a = p.a.data + tile.batch * p.a.batch_stride, *b = p.b.data + tile.batch * p.b.batch_stride;
  const SimtPlaces<T, t> places;

  T acc[t][t] = {};
  LoaderA load_a;
  LoaderB load_b;
  const auto fetch = [&](int64_t k) {
    load_a.fetch(p.a, a, tile.row, k, tile.k_end);
    load_b.fetch(p.b, b, tile.col, k, tile.k_end);
  };
  int now = 0;
  if (tile.k_begin < tile.k_end) {
    fetch(tile.k_begin);
    load_a.put(a_tile[0]);
    load_b.put(b_tile[0]);
  }
  __syncthreads();
  for (int64_t k0 = tile.k_begin; k0 < tile.k_end; k0 += bk) {
    const bool more = k0 + bk < tile.k_end;
    if (more) fetch(k0 + bk);
    places.multiply(acc, a_tile[now], b_tile[now]);
    if (!more) break;
    now ^= 1;
    load_a.put(a_tile[now]);
    load_b.put(b_tile[now]);
    __syncthreads();
  }
  write_tile(p, tile, [&](auto put) { places.each(acc, put); });
}

}  // namespace
}  // namespace minidl::cuda
