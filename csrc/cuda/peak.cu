#include "vec.cuh"

namespace minidl::cuda {
namespace {

constexpr int block = 256, blocks_per_sm = 8, accumulators = 8;

template <class W>
__global__ void __launch_bounds__(block) fma_kernel(W* never, int64_t iterations) {
  const W x = W(0.999), y = W(0.001);
  W acc[accumulators];
  MINIDL_UNROLL for (int j = 0; j < accumulators; ++j) acc[j] = W(j + static_cast<int>(threadIdx.x));
  for (int64_t i = 0; i < iterations; ++i) {
    MINIDL_UNROLL for (int j = 0; j < accumulators; ++j) acc[j] = acc[j] * x + y;
  }
  W sum = 0;
  MINIDL_UNROLL for (int j = 0; j < accumulators; ++j) sum += acc[j];
  if (sum == W(-1)) *never = sum;  // keeps the loop alive: the sum is positive
}

}  // namespace

// In Wide<T>: the ceiling of kernels without tensor cores.
template <class T>
void fma_loop(double* operations, int64_t iterations, Context ctx) {
  const int64_t blocks = int64_t(blocks_per_sm) * sm_count(ctx);
  launch(fma_kernel<Wide<T>>, blocks, block, 0, ctx, nullptr, iterations);
  *operations = 2.0 * accumulators * block * static_cast<double>(blocks) * static_cast<double>(iterations);
}

#define INSTANTIATE(T) template void fma_loop<T>(double*, int64_t, Context);
MINIDL_FOR_EACH_TYPE(INSTANTIATE)

}  // namespace minidl::cuda
