// Elements of any of the four types as numbers to compute with, 16-byte vectors of them, and the elementwise
// kernel: out[i] = f(in[i]...), vectors where every pointer is aligned, one element at a time elsewhere.
#pragma once
#include <utility>

#include "ptx.cuh"

namespace minidl::cuda {
namespace {

MINIDL_DEVICE float widen(float x) { return x; }
MINIDL_DEVICE double widen(double x) { return x; }
MINIDL_DEVICE float widen(Half x) { return to_float(x); }
MINIDL_DEVICE float widen(BFloat16 x) { return to_float(x); }

template <class T>
MINIDL_DEVICE T narrow(Wide<T> x) {
  return x;
}
template <>
MINIDL_DEVICE Half narrow<Half>(float x) {
  return to_half(x);
}
template <>
MINIDL_DEVICE BFloat16 narrow<BFloat16>(float x) {
  return to_bfloat16(x);
}

template <class T>
constexpr int vec_width = 16 / sizeof(T);  // elements of one 16-byte access

template <class T, int n>
struct alignas(n * sizeof(T)) Pack {
  T lane[n];
};

// n elements from p, which is aligned to all of them.
template <int n, class T>
MINIDL_DEVICE void load(Wide<T> (&to)[n], const T* p) {
  const Pack<T, n> pack = *reinterpret_cast<const Pack<T, n>*>(p);
  MINIDL_UNROLL for (int j = 0; j < n; ++j) to[j] = widen(pack.lane[j]);
}
template <int n, class T>
MINIDL_DEVICE void store(T* p, const Wide<T> (&from)[n]) {
  Pack<T, n> pack;
  MINIDL_UNROLL for (int j = 0; j < n; ++j) pack.lane[j] = narrow<T>(from[j]);
  *reinterpret_cast<Pack<T, n>*>(p) = pack;
}

template <class T>
__host__ __device__ bool aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// ---- operands of an elementwise kernel: pointers, and these

// p[i], or 1 where there is no p.
template <class T>
struct OrOne {
  const T* p;
};
// p[i], or the one number *p for every i, times scale.
template <class T>
struct EachOrOne {
  const T* p;
  bool each;
  Wide<T> scale;
};

template <class T>
bool aligned(OrOne<T> x) {
  return aligned(x.p);
}
template <class T>
bool aligned(EachOrOne<T> x) {
  return !x.each || aligned(x.p);
}

template <int n, class T>
MINIDL_DEVICE void fetch(Wide<T> (&to)[n], const T* p, int64_t i) {
  load<n>(to, p + i);
}
template <int n, class T>
MINIDL_DEVICE void fetch(Wide<T> (&to)[n], OrOne<T> x, int64_t i) {
  if (x.p) return load<n>(to, x.p + i);
  MINIDL_UNROLL for (int j = 0; j < n; ++j) to[j] = 1;
}
template <int n, class T>
MINIDL_DEVICE void fetch(Wide<T> (&to)[n], EachOrOne<T> x, int64_t i) {
  if (x.each) {
    load<n>(to, x.p + i);
  } else {
    MINIDL_UNROLL for (int j = 0; j < n; ++j) to[j] = widen(*x.p);
  }
  MINIDL_UNROLL for (int j = 0; j < n; ++j) to[j] *= x.scale;
}

// ---- the elementwise kernel

// values[j] = f(in[i + j]...) for n elements from i on.
template <int n, class W, class F, class... In, size_t... k>
MINIDL_DEVICE void evaluate(W (&values)[n], std::index_sequence<k...>, F f, int64_t i, In... in) {
  W x[sizeof...(In)][n];
  (fetch<n>(x[k], in, i), ...);
  MINIDL_UNROLL for (int j = 0; j < n; ++j) values[j] = f(x[k][j]...);
}

// Calls visit<n>(i) with the vectors, then with the single elements, that are this thread's share of [0, n).
struct ThreadShare {
  int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, step = int64_t(gridDim.x) * blockDim.x;

  template <int width, class Visit>
  MINIDL_DEVICE void each(int64_t n, bool vectors, Visit visit) const {
    int64_t done = 0;
    if (vectors) {
      done = n / width * width;
      for (int64_t i = first * width; i < done; i += step * width) {
        visit(i, std::integral_constant<int, width>{});
      }
    }
    for (int64_t i = done + first; i < n; i += step) visit(i, std::integral_constant<int, 1>{});
  }
};

constexpr int map_block = 256;

template <class T, class F, class... In>
__global__ void __launch_bounds__(map_block) map_kernel(T* out, int64_t n, bool vectors, F f, In... in) {
  ThreadShare{}.each<vec_width<T>>(n, vectors, [&](int64_t i, auto width) {
    Wide<T> y[width];
    evaluate<width>(y, std::index_sequence_for<In...>{}, f, i, in...);
    store<width>(out + i, y);
  });
}

// out[i] = f(in[i]...) for i < n. out may be one of the inputs.
template <class T, class F, class... In>
void map(T* out, int64_t n, const Context& ctx, F f, In... in) {
  const bool vectors = (aligned(out) && ... && aligned(in));
  const int64_t per_block = int64_t(map_block) * (vectors ? vec_width<T> : 1);
  launch(map_kernel<T, F, In...>, grid_stride_blocks(n, per_block, ctx), map_block, 0, ctx, out, n, vectors,
         f, in...);
}

}  // namespace
}  // namespace minidl::cuda
