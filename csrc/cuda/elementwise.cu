#include "vec.cuh"

namespace minidl::cuda {
namespace {

struct Add {
  template <class T>
  MINIDL_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};

template <class T>
__global__ void __launch_bounds__(map_block) strided_copy_kernel(T* y, const T* x, CopyShape s, int64_t n) {
  ThreadShare{}.each<1>(n, false, [&](int64_t i, auto) {
    int64_t to = 0, from = 0;
    for (int d = 3; d >= 0; --d) {
      const int64_t at = i % s.size[d];
      i /= s.size[d];
      to += at * s.y_stride[d], from += at * s.x_stride[d];
    }
    y[to] = x[from];
  });
}

}  // namespace

template <class T>
void add(T* y, const T* a, const T* b, int64_t n, Context ctx) {
  map(y, n, ctx, Add{}, a, b);
}

template <class T>
void strided_copy(T* y, const T* x, CopyShape s, Context ctx) {
  const int64_t n = s.size[0] * s.size[1] * s.size[2] * s.size[3];
  launch(strided_copy_kernel<T>, grid_stride_blocks(n, map_block, ctx), map_block, 0, ctx, y, x, s, n);
}

#define INSTANTIATE(T)                                         \
  template void add(T*, const T*, const T*, int64_t, Context); \
  template void strided_copy(T*, const T*, CopyShape, Context);
MINIDL_FOR_EACH_TYPE(INSTANTIATE)
#undef INSTANTIATE

}  // namespace minidl::cuda
