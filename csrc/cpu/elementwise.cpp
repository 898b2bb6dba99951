#include "kernels.h"
#include "parallel.h"
#include "vec.h"

namespace minidl::MINIDL_ISA {
namespace {

constexpr int64_t grain = 32768;  // elements that are worth a thread

template <class T>
MINIDL_INLINE void copy_row(T* y, const T* x, int64_t n, int64_t y_stride, int64_t x_stride) {
  if (y_stride == 1 && x_stride == 1) {
    for_lanes<T>(0, n, [&](int64_t i, int64_t lanes, auto tag) {
      store_lanes(load_lanes(x + i, lanes, tag), y + i, lanes, tag);
    });
  } else {
    for (int64_t i = 0; i < n; ++i) y[i * y_stride] = x[i * x_stride];
  }
}

}  // namespace

template <class T>
void add(T* y, const T* a, const T* b, int64_t n, Context) {
  parallel_for(n, grain, [&](int64_t begin, int64_t end) {
    for_lanes<T>(begin, end, [&](int64_t i, int64_t lanes, auto tag) {
      store_lanes(load_lanes(a + i, lanes, tag) + load_lanes(b + i, lanes, tag), y + i, lanes, tag);
    });
  });
}

template <class T>
void strided_copy(T* y, const T* x, CopyShape s, Context) {
  const auto [n0, n1, n2, n3] = s.size;
  parallel_for(n0 * n1 * n2, max_of(1, grain / max_of(1, n3)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at[3] = {row / s.size[2] / s.size[1], row / s.size[2] % s.size[1], row % s.size[2]};
      int64_t to = 0, from = 0;
      for (int d = 0; d < 3; ++d) to += at[d] * s.y_stride[d], from += at[d] * s.x_stride[d];
      copy_row(y + to, x + from, s.size[3], s.y_stride[3], s.x_stride[3]);
    }
  });
}

template void add(float*, const float*, const float*, int64_t, Context);
template void add(double*, const double*, const double*, int64_t, Context);
template void strided_copy(float*, const float*, CopyShape, Context);
template void strided_copy(double*, const double*, CopyShape, Context);

}  // namespace minidl::MINIDL_ISA
