// Reductions in a fixed order: the same bits on every run. Each gives its result to all threads.
#pragma once
#include "vec.cuh"

namespace minidl::cuda {
namespace {

struct Sum {
  template <class T>
  static MINIDL_DEVICE T combine(T a, T b) {
    return a + b;
  }
};
// Of a NaN and a number, the number.
struct Max {
  template <class T>
  static MINIDL_DEVICE T combine(T a, T b) {
    return fmax(a, b);
  }
};

template <class Op, class T>
MINIDL_DEVICE T warp_reduce(T v) {
  MINIDL_UNROLL for (int bits = 16; bits > 0; bits /= 2) {
    v = Op::combine(v, __shfl_xor_sync(full_mask, v, bits));
  }
  return v;
}

// Over a block of whole warps; `neutral` changes nothing.
template <class Op, class T>
MINIDL_DEVICE T block_reduce(T v, T neutral) {
  MINIDL_SHARED(T, of_warp, [32]);
  v = warp_reduce<Op>(v);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
  __syncthreads();
  v = warp_reduce<Op>(threadIdx.x % 32 < blockDim.x / 32 ? of_warp[threadIdx.x % 32] : neutral);
  __syncthreads();  // before the next reduction writes
  return v;
}

template <class T>
MINIDL_DEVICE T block_sum(T v) {
  return block_reduce<Sum>(v, T(0));
}

}  // namespace
}  // namespace minidl::cuda
