#include "gemm_wgmma.h"

// The tensor cores of Hopper have instructions of their own, wgmma, which only the target sm_90a knows: this file is
// compiled for it alone (cmake/cuda.cmake, which defines MINIDL_WGMMA), and is empty where that cannot be.
#ifdef MINIDL_WGMMA
#include <cuda.h>

#include <cstdlib>

#include "gemm.cuh"

namespace minidl::cuda {
namespace {

// A block computes 128 x 256 of C. Its first warpgroup (128 threads) copies: one thread of it orders tiles of A and B,
// 64 wide in k, from the copy engine (TMA) into a ring of `stages`. The two others multiply, 64 rows each. Of each
// stage there are two barriers: full, at which the engine counts its bytes, and empty, at which the warps that multiply
// say that they are done.
//
// A tile lies in shared memory in rows of 128 bytes, 64 elements along k (k-major) or along i, and 8 rows are an atom,
// within which the engine swaps 16-byte pieces so that neither side meets a bank twice (its 128-byte swizzle; atoms
// begin at multiples of 1024 bytes). k-major, there is a row for each i. Along i, there is one for each k, and a box
// of 64 x 64 for every 64 of i.
constexpr int wg_rows = 128, wg_cols = 256, wg_k = 64, wg_stages = 4;
constexpr int warpgroup = 128, wg_block = 3 * warpgroup, multiplying_warps = 8;
constexpr unsigned row_bytes = 128, atom_bytes = 8 * row_bytes, box_bytes = 64 * row_bytes;
constexpr unsigned a_bytes = wg_rows * row_bytes, b_bytes = wg_cols * row_bytes;
constexpr size_t wg_shared_bytes = wg_stages * (a_bytes + b_bytes) + atom_bytes;  // and what aligning takes

// ---- PTX

MINIDL_DEVICE void init_barrier(unsigned barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
MINIDL_DEVICE void arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
MINIDL_DEVICE void arrive_and_expect(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Until the phase of that parity is complete. A fresh barrier is in phase 0, and phase -1, of parity 1, is complete.
MINIDL_DEVICE void wait(unsigned barrier, unsigned parity) {
  unsigned done = 0;
  while (!done) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
}
// A box of a matrix, from element (inner, outer) on; zeros beyond the matrix, which count as bytes too.
MINIDL_DEVICE void copy_box(unsigned to, const CUtensorMap& map, int64_t inner, int64_t outer,
                            unsigned barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
      "[%4];" ::"r"(to),
      "l"(&map), "r"(static_cast<int>(inner)), "r"(static_cast<int>(outer)), "r"(barrier)
      : "memory");
}

// How wgmma finds an operand's tile: where it begins; along i, the way from one box to the next (k-major, unused and
// 1); the way from one atom to the next, along i of k-major rows, along k of others. Each field counts 16 bytes. Bits
// 62 and 63: the 128-byte swizzle.
template <bool along_i>
MINIDL_DEVICE uint64_t describe(unsigned tile) {
  return uint64_t{(tile & 0x3ffff) >> 4} | uint64_t{along_i ? box_bytes >> 4 : 1} << 16 |
         uint64_t{atom_bytes >> 4} << 32 | uint64_t{1} << 62;
}
// What 16 of k, one wgmma, add to it: 32 bytes within the rows, or 16 rows.
template <bool along_i>
constexpr uint64_t k_step = (along_i ? 16 * row_bytes : 32) >> 4;

MINIDL_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
MINIDL_DEVICE void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int left>
MINIDL_DEVICE void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory");
}

#define MINIDL_8(i)                                                                           \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define MINIDL_32(i) MINIDL_8(i), MINIDL_8(i + 8), MINIDL_8(i + 16), MINIDL_8(i + 24)
#define MINIDL_WGMMA_256(type)                                                                            \
  asm volatile(                                                                                           \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                                        \
      " {"                                                                                                \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                            \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                  \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                  \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                  \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                  \
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                  \
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "      \
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, " \
      "%128, %129, 1, 1, 1, %130, %131;"                                                                  \
      : MINIDL_32(0), MINIDL_32(32), MINIDL_32(64), MINIDL_32(96)                                         \
      : "l"(a), "l"(b), "n"(a_along_i), "n"(b_along_i))

// d += a b for 64 x 16 and 16 x 256. Thread t of the warpgroup, lane l of warp w: d[4 j + e] is at row
// 16 w + l / 4 + 8 (e / 2), column 8 j + 2 (l % 4) + e % 2.
template <class T, bool a_along_i, bool b_along_i>
MINIDL_DEVICE void wgmma(float (&d)[128], uint64_t a, uint64_t b) {
  if constexpr (std::is_same_v<T, Half>) {
    MINIDL_WGMMA_256("f16");
  } else {
    MINIDL_WGMMA_256("bf16");
  }
}

// ---- the kernel

template <int rows, bool along_i>
MINIDL_DEVICE void copy_tile(unsigned to, const CUtensorMap& map, int64_t i, int64_t k, unsigned barrier) {
  if constexpr (along_i) {
    MINIDL_UNROLL for (int box = 0; box < rows / 64; ++box) {
      copy_box(to + box * box_bytes, map, i + 64 * box, k, barrier);
    }
  } else {
    copy_box(to, map, k, i, barrier);
  }
}

template <class T, bool a_along_i, bool b_along_i>
__global__ void __launch_bounds__(wg_block, 1)
    gemm_wgmma_kernel(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map,
                      const __grid_constant__ Problem<T> p) {
  MINIDL_DYNAMIC_SHARED(T, shared);
  MINIDL_SHARED(uint64_t, barriers, [2 * wg_stages]);
  const unsigned a_tiles = (shared_address(shared) + atom_bytes - 1) / atom_bytes * atom_bytes;
  const unsigned b_tiles = a_tiles + wg_stages * a_bytes;
  const auto full = [&](int stage) { return shared_address(&barriers[stage]); };
  const auto empty = [&](int stage) { return shared_address(&barriers[wg_stages + stage]); };
  if (threadIdx.x == 0) {
    for (int s = 0; s < wg_stages; ++s) {
      init_barrier(full(s), 1);
      init_barrier(empty(s), multiplying_warps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");  // the engine must see them too
  }
  __syncthreads();

  const Tile tile = tile_of_block<wg_rows, wg_cols>(p);
  const int blocks = static_cast<int>(ceil_div(p.k, wg_k)), group = static_cast<int>(threadIdx.x) / warpgroup;
  int stage = 0;
  unsigned parity = 0;  // of the round through the ring
  const auto advance = [&] {
    if (++stage == wg_stages) stage = 0, parity ^= 1;
  };
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x != 0) return;
    for (int block = 0; block < blocks; ++block, advance()) {
      wait(empty(stage), parity ^ 1);  // of the round before; before the first, at once
      arrive_and_expect(full(stage), a_bytes + b_bytes);
      const int64_t k = int64_t{block} * wg_k;
      copy_tile<wg_rows, a_along_i>(a_tiles + stage * a_bytes, a_map, tile.row, k, full(stage));
      copy_tile<wg_cols, b_along_i>(b_tiles + stage * b_bytes, b_map, tile.col, k, full(stage));
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int thread = static_cast<int>(threadIdx.x) % warpgroup, lane = thread % 32;
    // 64 rows are 64 rows of 128 bytes, or one box: the same bytes.
    const unsigned a_rows = a_tiles + static_cast<unsigned>(group - 1) * box_bytes;
    float acc[128] = {};
    int last = 0;  // the stage before
    for (int block = 0; block < blocks; ++block, last = stage, advance()) {
      wait(full(stage), parity);
      const uint64_t a = describe<a_along_i>(a_rows + stage * a_bytes),
                     b = describe<b_along_i>(b_tiles + stage * b_bytes);
      begin_products();
      MINIDL_UNROLL for (int step = 0; step < wg_k / 16; ++step) {
        wgmma<T, a_along_i, b_along_i>(acc, a + step * k_step<a_along_i>, b + step * k_step<b_along_i>);
      }
      end_products();
      wait_for_products<1>();  // all but these: the stage before is done with
      if (block > 0 && lane == 0) arrive(empty(last));
    }
    wait_for_products<0>();
    const int row = (group - 1) * 64 + thread / 32 * 16 + lane / 4, col = lane % 4 * 2;
    write_tile(p, tile, [&](auto put) {
      MINIDL_UNROLL for (int e = 0; e < 128; ++e) {
        put(row + e / 2 % 2 * 8, col + e / 4 * 8 + e % 2, acc[e]);
      }
    });
  }
}

// ---- the host

using Encode = CUresult(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                        const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                        CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's function, or nullptr: the driver is not linked, for there may be none.
Encode* find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<Encode*>(function);
}

// Describes X(i, k) to the copy engine, in boxes of 64 along its dense index by `across`.
template <class T>
bool encode(CUtensorMap& map, const Operand<T>& x, int64_t k, bool along_i, int across) {
  static Encode* const driver = find_encode();
  if (!driver) return false;
  const auto u64 = [](int64_t n) { return static_cast<cuuint64_t>(n); };
  const cuuint64_t sizes[] = {u64(along_i ? x.size : k), u64(along_i ? k : x.size)};
  const cuuint64_t bytes[] = {u64(along_i ? x.k_stride : x.stride) * sizeof(T)};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(across)}, every[] = {1, 1};
  return driver(&map,
                std::is_same_v<T, Half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2, const_cast<T*>(x.data), sizes, bytes, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool is_hopper(const Context& ctx) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ctx.device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ctx.device);
  return major == 9 && minor == 0;
}

}  // namespace

template <class T>
bool gemm_wgmma(T* c, int64_t ldc, MatrixView<T> a, MatrixView<T> b, int64_t m, int64_t n, int64_t k,
                Epilogue<T> epilogue, const Context& ctx) {
  static const bool wanted = [] {
    const char* value = std::getenv("MINIDL_CUDA_WGMMA");
    return value && *value && *value != '0';
  }();
  const int64_t tiles = ceil_div(m, wg_rows) * ceil_div(n, wg_cols);
  if (!wanted || k == 0 || max_of(max_of(m, n), k) > INT32_MAX - wg_cols ||
      !fits_in_tile(epilogue.activation.kind) || !is_hopper(ctx) || 4 * tiles < 3 * sm_count(ctx)) {
    return false;
  }
  Problem<T> p = {c,
                  ldc,
                  0,
                  {a.data, a.row_stride, a.col_stride, 0, m},
                  {b.data, b.col_stride, b.row_stride, 0, n},
                  1,
                  m,
                  n,
                  k,
                  epilogue};
  const Order a_order = p.a.order(k), b_order = p.b.order(k);
  if (a_order == Order::none || b_order == Order::none) return false;
  const bool a_along_i = a_order == Order::i, b_along_i = b_order == Order::i;
  CUtensorMap a_map, b_map;
  if (!encode(a_map, p.a, k, a_along_i, a_along_i ? wg_k : wg_rows) ||
      !encode(b_map, p.b, k, b_along_i, b_along_i ? wg_k : wg_cols)) {
    return false;
  }
  const auto run = [&](auto kernel) {
    launch(kernel, tiles, wg_block, wg_shared_bytes, ctx, a_map, b_map, p);
  };
  if (a_along_i) {
    b_along_i ? run(gemm_wgmma_kernel<T, true, true>) : run(gemm_wgmma_kernel<T, true, false>);
  } else {
    b_along_i ? run(gemm_wgmma_kernel<T, false, true>) : run(gemm_wgmma_kernel<T, false, false>);
  }
  return true;
}

#else

namespace minidl::cuda {

template <class T>
bool gemm_wgmma(T*, int64_t, MatrixView<T>, MatrixView<T>, int64_t, int64_t, int64_t, Epilogue<T>,
                const Context&) {
  return false;
}

#endif

template bool gemm_wgmma(Half*, int64_t, MatrixView<Half>, MatrixView<Half>, int64_t, int64_t, int64_t,
                         Epilogue<Half>, const Context&);
template bool gemm_wgmma(BFloat16*, int64_t, MatrixView<BFloat16>, MatrixView<BFloat16>, int64_t, int64_t,
                         int64_t, Epilogue<BFloat16>, const Context&);

}  // namespace minidl::cuda
