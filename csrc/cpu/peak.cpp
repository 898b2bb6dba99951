#include "kernels.h"
#include "parallel.h"
#include "vec.h"

namespace minidl::MINIDL_ISA {

// 12 accumulators: more than latency times throughput of any FMA unit (4 cycles x 2 units), few enough for
// the 16 registers of AVX2.
template <class T>
void fma_loop(double* operations, int64_t iterations, Context ctx) {
  constexpr int accumulators = 12;
  parallel_for(ctx.threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      const Vec<T> x(T(0.999)), y(T(0.001));
      Vec<T> acc[accumulators];
      MINIDL_UNROLL for (int j = 0; j < accumulators; ++j) acc[j] =
          T(j);  // distinct, or the compiler merges them
      for (int64_t i = 0; i < iterations; ++i) {
        MINIDL_UNROLL for (int j = 0; j < accumulators; ++j) acc[j] = fmadd(acc[j], x, y);
      }
      Vec<T> sum;
      MINIDL_UNROLL for (int j = 0; j < accumulators; ++j) sum = sum + acc[j];
      volatile T sink = reduce_add(sum);  // keeps the loop alive
      (void)sink;
    }
  });
  *operations = 2.0 * accumulators * Vec<T>::width * static_cast<double>(iterations) * ctx.threads;
}

template void fma_loop<float>(double*, int64_t, Context);
template void fma_loop<double>(double*, int64_t, Context);

}  // namespace minidl::MINIDL_ISA
