// C = A B on tensor cores: mma.sync on tiles that cp.async brings to shared memory, `stages` of them in
// flight, and ldmatrix to registers. For Half, BFloat16, and float as tf32. A block computes a tile of 32 t x
// 32 t, its 8 warps (2 x 4) tiles of 16 t x 8 t.
#pragma once
#include "gemm_simt.cuh"

namespace minidl::cuda {
namespace {

// A tile of an operand in shared memory: rows of k (k_major), or rows of i. Rows are 16 bytes (32 for tf32
// rows of i) longer than their numbers, so that the eight rows of an 8 x 8 matrix lie in different banks.
template <class T, int size, Order order>
struct MmaTile {
  static constexpr bool k_major = order != Order::i;
  static constexpr int width = vec_width<T>, bk = 64 / static_cast<int>(sizeof(T));
  static constexpr int length = k_major ? bk : size, rows = k_major ? size : bk;
  static constexpr int pitch = length + (sizeof(T) == 4 && !k_major ? 2 : 1) * width;
  static constexpr int elements = rows * pitch;
  static constexpr int k_step = 32 / static_cast<int>(sizeof(T));  // of one mma

  // Zeros beyond the operand's size and k_end.
  static MINIDL_DEVICE void copy(T* tile, const Operand<T>& x, const T* data, int64_t first, int64_t first_k,
                                 int64_t k_end) {
    constexpr int chunks = rows * length / width;
    static_assert(chunks % gemm_block == 0, "each thread copies the same number of chunks");
    MINIDL_UNROLL for (int v = 0; v < chunks / gemm_block; ++v) {
      const int index = v * gemm_block + static_cast<int>(threadIdx.x);
      const int in_row = index / (length / width), along = index % (length / width) * width;
      T* to = tile + in_row * pitch + along;
      const int64_t i = first + (k_major ? in_row : along), k = first_k + (k_major ? along : in_row);
      const T* from = data + i * x.stride + k * x.k_stride;
      if constexpr (order == Order::none) {
        MINIDL_UNROLL for (int j = 0; j < width; ++j) {
          to[j] = i < x.size && k + j < k_end ? from[j * x.k_stride] : T{};
        }
      } else {
        const bool inside = i < x.size && k < k_end;
        copy_async_16(to, inside ? from : data, inside ? 16 : 0);
      }
    }
  }

  // The fragments of 16 i by one step of k: {i 0-7, i 8-15} of the step's first half, then of its second.
  static MINIDL_DEVICE void fragment(uint32_t (&r)[4], const T* tile, int i, int k) {
    const int lane = static_cast<int>(threadIdx.x) % 32, matrix = lane / 8, in_matrix = lane % 8;
    if constexpr (k_major) {
      load_matrix_x4<false>(r, tile + (i + matrix % 2 * 8 + in_matrix) * pitch + k + matrix / 2 * width);
    } else if constexpr (sizeof(T) == 2) {
      load_matrix_x4<true>(r, tile + (k + matrix / 2 * 8 + in_matrix) * pitch + i + matrix % 2 * 8);
    } else {
      MINIDL_UNROLL for (int j = 0; j < 4; ++j) {
        r[j] = __float_as_uint(tile[(k + j / 2 * 4 + lane % 4) * pitch + i + j % 2 * 8 + lane / 4]);
      }
    }
    if constexpr (sizeof(T) == 4) {
      MINIDL_UNROLL for (int j = 0; j < 4; ++j) r[j] = to_tf32(__uint_as_float(r[j]));
    }
  }
};

// Where a warp's 16 t x 8 t numbers lie in the tile of its block, and which of them are a thread's.
template <class T, int t>
struct MmaPlaces {
  static_assert(t % 2 == 0, "fragments of B come in pairs");
  int row, col, lane;

  MINIDL_DEVICE MmaPlaces() {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    row = warp / 4 * 16 * t, col = warp % 4 * 8 * t, lane = static_cast<int>(threadIdx.x) % 32;
  }
  // acc += the product of two blocks of k in shared memory.
  template <class TileA, class TileB>
  MINIDL_DEVICE void multiply(float (&acc)[t][t][4], const T* a, const T* b) const {
    MINIDL_UNROLL for (int k = 0; k < TileA::bk; k += TileA::k_step) {
      uint32_t x[t][4], y[t][2];
      MINIDL_UNROLL for (int i = 0; i < t; ++i) TileA::fragment(x[i], a, row + 16 * i, k);
      MINIDL_UNROLL for (int j = 0; j < t; j += 2) {
        uint32_t both[4];
        TileB::fragment(both, b, col + 8 * j, k);
        MINIDL_UNROLL for (int h = 0; h < 4; ++h) y[j + h % 2][h / 2] = both[h];
      }
      MINIDL_UNROLL for (int i = 0; i < t; ++i) {
        MINIDL_UNROLL for (int j = 0; j < t; ++j) mma<T>(acc[i][j], x[i], y[j]);
      }
    }
  }
  template <class Put>
  MINIDL_DEVICE void each(const float (&acc)[t][t][4], Put put) const {
    MINIDL_UNROLL for (int i = 0; i < t; ++i) {
      MINIDL_UNROLL for (int j = 0; j < t; ++j) {
        MINIDL_UNROLL for (int e = 0; e < 4; ++e) {
          put(row + 16 * i + e / 2 * 8 + lane / 4, col + 8 * j + lane % 4 * 2 + e % 2, acc[i][j][e]);
        }
      }
    }
  }
};

constexpr int mma_stages = 3;
template <class T, int t, Order a_order, Order b_order>
constexpr size_t mma_shared_bytes =
    mma_stages * sizeof(T) * (MmaTile<T, 32 * t, a_order>::elements + MmaTile<T, 32 * t, b_order>::elements);

template <class T, int t, Order a_order, Order b_order>
__global__ void __launch_bounds__(gemm_block, gemm_blocks_per_sm)
    gemm_mma_kernel(const __grid_constant__ Problem<T> p) {
  constexpr int bm = 32 * t, bn = 32 * t;
  using TileA = MmaTile<T, bm, a_order>;
  using TileB = MmaTile<T, bn, b_order>;
  constexpr int bk = TileA::bk;
  MINIDL_DYNAMIC_SHARED(T, shared);
  T *const a_tiles = shared, *const b_tiles = shared + mma_stages * TileA::elements;

  const Tile tile = tile_of_block<bm, bn>(p);
  const T *a = p.a.data + tile.batch * p.a.batch_stride, *b = p.b.data + tile.batch * p.b.batch_stride;
  const MmaPlaces<T, t> places;

  // Every stage is a group of copies, empty past the end, so that the number of groups to wait for is
  // constant.
  const auto copy = [&](int64_t k, int stage) {
    if (k < tile.k_end) {
      TileA::copy(a_tiles + stage * TileA::elements, p.a, a, tile.row, k, tile.k_end);
      TileB::copy(b_tiles + stage * TileB::elements, p.b, b, tile.col, k, tile.k_end);
    }
    copy_async_commit();
  };
  for (int s = 0; s < mma_stages - 1; ++s) copy(tile.k_begin + s * bk, s);

  float acc[t][t][4] = {};
  int stage = 0;
  for (int64_t k0 = tile.k_begin; k0 < tile.k_end; k0 += bk) {
    copy_async_wait<mma_stages - 2>();
    __syncthreads();  // the stage is there for all, and all are done with the one before, which is
                      // overwritten:
    copy(k0 + (mma_stages - 1) * bk, (stage + mma_stages - 1) % mma_stages);
    places.template multiply<TileA, TileB>(acc, a_tiles + stage * TileA::elements,
                                           b_tiles + stage * TileB::elements);
    stage = (stage + 1) % mma_stages;
  }
  copy_async_wait<0>();
  write_tile(p, tile, [&](auto put) { places.each(acc, put); });
}

}  // namespace
}  // namespace minidl::cuda
