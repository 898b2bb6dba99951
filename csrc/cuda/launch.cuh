// One source for two compilers. Under nvcc these are CUDA's own words; under g++ with MINIDL_SIM they come
// from tests/sim/cuda_sim.h, which runs kernels on the CPU. A kernel launches through launch(), takes shared
// memory through the two macros, and PTX through ptx.cuh: nothing else differs.
#pragma once
#include <math.h>

#include "kernels.h"

#ifdef MINIDL_SIM
#include "cuda_sim.h"
// MINIDL_SHARED(float, tile, [32][33]): static shared memory. MINIDL_DYNAMIC_SHARED(float, tile): what
// launch() was asked for, 16-byte aligned.
#define MINIDL_SHARED(T, name, ...)  \
  using name##_type = T __VA_ARGS__; \
  static const char name##_key = 0;  \
  name##_type& name = *static_cast<name##_type*>(sim::shared(&name##_key, sizeof(name##_type)))
#define MINIDL_DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(sim::dynamic_shared())
#define MINIDL_UNROLL
#else
#include <cuda_runtime.h>
#define MINIDL_SHARED(T, name, ...) __shared__ T name __VA_ARGS__
#define MINIDL_DYNAMIC_SHARED(T, name)                          \
  extern __shared__ __align__(16) unsigned char shared_bytes[]; \
  T* name = reinterpret_cast<T*>(shared_bytes)
#define MINIDL_UNROLL _Pragma("unroll")
#endif

#define MINIDL_DEVICE __device__ __forceinline__

namespace minidl::cuda {
namespace {

constexpr unsigned full_mask = 0xffffffffu;

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
template <class T>
__host__ __device__ constexpr T min_of(T a, T b) {
  return b < a ? b : a;
}
template <class T>
__host__ __device__ constexpr T max_of(T a, T b) {
  return a < b ? b : a;
}

// The first error of a kernel's launches is kept: csrc/dispatch.h raises it.
inline void report(const Context& ctx, int code) {
  if (code != 0 && ctx.error && *ctx.error == 0) *ctx.error = code;
}

template <class T>
struct Exactly {
  using type = T;
};

// kernel<<<grid, block, dynamic_bytes, ctx.stream>>>(args...) on ctx.device. An empty grid is no launch.
template <class... P>
void launch(void (*kernel)(P...), int64_t grid, int block, size_t dynamic_bytes, const Context& ctx,
            typename Exactly<P>::type... args) {
  if (grid <= 0) return;
  if (grid > 0x7fffffff) return report(ctx, 9);  // cudaErrorInvalidConfiguration, before it is cut to 32 bits
#ifdef MINIDL_SIM
  auto body = [&] { kernel(args...); };
  report(ctx, sim::run(
                  dim3(static_cast<unsigned>(grid)), dim3(static_cast<unsigned>(block)), dynamic_bytes,
                  [](void* f) { (*static_cast<decltype(body)*>(f))(); }, &body));
#else
  // This runtime's own idea of the current device: it is linked statically, so torch's guard has set
  // another's.
  int device = -1;
  cudaGetDevice(&device);
  if (device != ctx.device) cudaSetDevice(ctx.device);
  const void* function = reinterpret_cast<const void*>(kernel);
  if (dynamic_bytes > 48 << 10) {
    cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(dynamic_bytes));
  }
  void* pointers[] = {static_cast<void*>(&args)...};
  cudaLaunchKernel(function, dim3(static_cast<unsigned>(grid)), dim3(static_cast<unsigned>(block)), pointers,
                   dynamic_bytes, static_cast<cudaStream_t>(ctx.stream));
  report(ctx, cudaGetLastError());
#endif
}

// Multiprocessors of the device.
inline int sm_count(const Context& ctx) {
#ifdef MINIDL_SIM
  (void)ctx;
  return 2;  // few, so that loops over the grid go round
#else
  int count = 1;
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, ctx.device);
  return count;
#endif
}

// Shared memory that one block may ask launch() for.
inline size_t most_shared_bytes(const Context& ctx) {
#ifdef MINIDL_SIM
  (void)ctx;
  return 227 << 10;
#else
  int bytes = 48 << 10;
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, ctx.device);
  return static_cast<size_t>(bytes);
#endif
}

// Blocks for a grid-stride loop over n elements, `per_block` in one round: no more than run at once.
inline int64_t grid_stride_blocks(int64_t n, int64_t per_block, const Context& ctx, int blocks_per_sm = 8) {
  return min_of<int64_t>(ceil_div(n, per_block), int64_t(sm_count(ctx)) * blocks_per_sm);
}

}  // namespace
}  // namespace minidl::cuda

// f(T) for every element type that the CUDA table has. MINIDL_FEW_TYPES halves what sanitizers have to
// compile.
#ifdef MINIDL_FEW_TYPES
#define MINIDL_FOR_EACH_TYPE(f) f(float) f(minidl::Half)
#else
#define MINIDL_FOR_EACH_TYPE(f) f(float) f(double) f(minidl::Half) f(minidl::BFloat16)
#endif
