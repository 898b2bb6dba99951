// Group norm where inner == 1, layer norm being that of one group: a mean is that of contiguous values, each of
// which has a weight of its own. A block takes a row.
#pragma once
#include "norm.cuh"

namespace minidl::cuda {
namespace {

// Row r has the weights from r % groups * size on.
struct Rows {
  int64_t count, groups, size;
};

// f(row) for the rows of this block.
template <class F>
MINIDL_DEVICE void each_row(const Rows& rows, F f) {
  for (int64_t r = blockIdx.x; r < rows.count; r += gridDim.x) f(r);
}
// visit(i) for this thread's share of a row.
template <int width, class Visit>
MINIDL_DEVICE void each_of_row(const Rows& rows, Visit visit) {
  const int64_t step = int64_t(blockDim.x) * width;
  for (int64_t i = int64_t(threadIdx.x) * width; i < rows.size; i += step) visit(i);
}

template <class T, int width>
MINIDL_DEVICE void load_weights(Wide<T> (&w)[width], Wide<T> (&b)[width], const NormAffine<T>& a, int64_t i) {
  MINIDL_UNROLL for (int j = 0; j < width; ++j) w[j] = 1, b[j] = 0;
  if (a.w) load<width>(w, a.w + i);
  if (a.b) load<width>(b, a.b + i);
}

template <class T, int width>
__global__ void __launch_bounds__(norm_block)
    rows_forward_kernel(T* y, double* mean, double* rstd, const T* x, Rows rows, NormAffine<T> a,
                        double eps) {
  each_row(rows, [&](int64_t r) {
    const T* const from = x + r * rows.size;
    const Moments m = moments_of<Wide<T>>(WholeBlock{}, rows.size, [&](auto add) {
      each_of_row<width>(rows, [&](int64_t i) {
        Wide<T> v[width];
        load<width>(v, from + i);
        MINIDL_UNROLL for (int j = 0; j < width; ++j) add(v[j]);
      });
    });
    const double root = reciprocal_root(m.variance(), eps);
    if (threadIdx.x == 0) mean[r] = m.mean, rstd[r] = root;
    const Normal<Wide<T>> normal(m.mean, root);
    each_of_row<width>(rows, [&](int64_t i) {
      Wide<T> v[width], w[width], b[width];
      load<width>(v, from + i);
      load_weights<T, width>(w, b, a, r % rows.groups * rows.size + i);
      MINIDL_UNROLL for (int j = 0; j < width; ++j) {
        v[j] = normal.of(v[j]) * w[j] + b[j];
        if (a.relu) v[j] = Relu<Wide<T>>{}.forward(v[j]);
      }
      store<width>(y + r * rows.size + i, v);
    });
  });
}

template <class T, int width>
__global__ void __launch_bounds__(norm_block)
    rows_backward_kernel(T* dx, const T* dy, const T* x, const double* mean, const double* rstd, Rows rows,
                         NormAffine<T> a) {
  each_row(rows, [&](int64_t r) {
    const int64_t start = r * rows.size;
    const Normal<Wide<T>> normal(mean[r], rstd[r]);
    // f(i, x, g), g being the gradient of the normalised x.
    const auto each = [&](auto f) {
      each_of_row<width>(rows, [&](int64_t i) {
        Wide<T> v[width], g[width], w[width], b[width];
        load<width>(v, x + start + i);
        load<width>(g, dy + start + i);
        load_weights<T, width>(w, b, a, r % rows.groups * rows.size + i);
        MINIDL_UNROLL for (int j = 0; j < width; ++j) {
          g[j] = through_relu(a, g[j], normal.of(v[j]), w[j], b[j]) * w[j];
        }
        f(i, v, g);
      });
    };
    Wide<T> sum = 0, x_sum = 0;
    each([&](int64_t, const auto& v, const auto& g) {
      MINIDL_UNROLL for (int j = 0; j < width; ++j) sum += g[j], x_sum += g[j] * normal.of(v[j]);
    });
    const GradientSums sums{static_cast<double>(block_sum(sum)), static_cast<double>(block_sum(x_sum))};
    const Slope<Wide<T>> slope(mean[r], rstd[r], sums, static_cast<double>(rows.size));
    each([&](int64_t i, const auto& v, auto& g) {
      MINIDL_UNROLL for (int j = 0; j < width; ++j) g[j] = slope.dx(g[j], v[j], normal);
      store<width>(dx + start + i, g);
    });
  });
}

template <class T, class... P>
bool vectors_in_rows(const Rows& rows, NormAffine<T> a, P... tensors) {
  return rows.size % vec_width<T> == 0 && aligned(a.w) && aligned(a.b) && (aligned(tensors) && ...);
}
inline int64_t row_blocks(const Rows& rows, const Context& ctx) {
  return min_of(rows.count, int64_t(sm_count(ctx)) * 32);
}

}  // namespace
}  // namespace minidl::cuda
