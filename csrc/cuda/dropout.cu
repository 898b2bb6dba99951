#include "philox.h"
#include "vec.cuh"

namespace minidl::cuda {
namespace {

constexpr int dropout_block = 256;

// What an element is multiplied by, from its random word.
template <class W>
struct Mask {
  const int64_t* state;
  uint32_t threshold;
  W scale;
  explicit Mask(DropoutParams p) : state(p.state), threshold(p.threshold), scale(static_cast<W>(p.scale)) {}
  MINIDL_DEVICE W factor(uint32_t word) const { return word < threshold ? W(0) : scale; }
};

// y[i] = x[i] times the factor of element i. A thread takes as many counters as a vector has elements: their
// four words then are those of four vectors.
template <class T>
__global__ void __launch_bounds__(dropout_block)
    dropout_kernel(T* y, OrOne<T> x, int64_t n, bool vectors, Mask<Wide<T>> mask) {
  constexpr int width = vec_width<T>;
  constexpr int64_t threads = philox_lanes / width;  // for the counters of philox_block elements
  const uint64_t seed = static_cast<uint64_t>(mask.state[0]), offset = static_cast<uint64_t>(mask.state[1]);
  const ThreadShare share;
  for (int64_t t = share.first; t < ceil_div(n, philox_block) * threads; t += share.step) {
    uint32_t words[width][4];
    MINIDL_UNROLL for (int j = 0; j < width; ++j) {
      philox_words(words[j], seed, offset, static_cast<uint64_t>(t * width + j));
    }
    const int64_t first = t / threads * philox_block + t % threads * width;
    MINIDL_UNROLL for (int w = 0; w < 4; ++w) {
      const int64_t i = first + w * philox_lanes;
      if (vectors && i + width <= n) {
        Wide<T> v[width];
        fetch<width>(v, x, i);
        MINIDL_UNROLL for (int j = 0; j < width; ++j) v[j] *= mask.factor(words[j][w]);
        store<width>(y + i, v);
      } else {
        MINIDL_UNROLL for (int j = 0; j < width; ++j) {
          if (i + j >= n) continue;
          Wide<T> v[1];
          fetch<1>(v, x, i + j);
          v[0] *= mask.factor(words[j][w]);
          store<1>(y + i + j, v);
        }
      }
    }
  }
}

template <class T>
void multiply_elements(T* y, const T* x, int64_t n, DropoutParams p, const Context& ctx) {
  const int64_t blocks = grid_stride_blocks(n, int64_t(dropout_block) * 4 * vec_width<T>, ctx);
  launch(dropout_kernel<T>, blocks, dropout_block, 0, ctx, y, OrOne<T>{x}, n, aligned(y) && aligned(x),
         Mask<Wide<T>>(p));
}

// y = x times the factor of its channel.
template <class T>
__global__ void __launch_bounds__(map_block)
    dropout_channels_kernel(T* y, const T* x, const Wide<T>* factors, DropoutShape s, bool vectors) {
  const int64_t length = s.channels_last ? s.channels : s.inner;  // of a row of memory
  ThreadShare{}.each<vec_width<T>>(s.images * s.channels * s.inner, vectors, [&](int64_t i, auto width) {
    Wide<T> v[width];
    load<width>(v, x + i);
    int64_t row = i / length, column = i % length;
    const auto of_row = [&] { return s.channels_last ? row / s.inner * s.channels : row; };
    const Wide<T>* factor = factors + of_row();
    MINIDL_UNROLL for (int j = 0; j < width; ++j) {
      v[j] *= factor[s.channels_last ? column : 0];
      if (++column == length && j + 1 < width) {
        column = 0, ++row;
        factor = factors + of_row();
      }
    }
    store<width>(y + i, v);
  });
}

}  // namespace

template <class T>
void dropout(T* y, const T* x, DropoutShape s, DropoutParams p, Context ctx) {
  const int64_t features = s.images * s.channels, n = features * s.inner;
  if (n == 0) return;
  if (s.inner == 1) return multiply_elements(y, x, n, p, ctx);
  auto* factors = static_cast<Wide<T>*>(ctx.workspace(static_cast<size_t>(features) * sizeof(Wide<T>)));
  multiply_elements<Wide<T>>(factors, nullptr, features, p, ctx);
  const bool vectors = aligned(y) && aligned(x);
  const int64_t per_block = int64_t(map_block) * (vectors ? vec_width<T> : 1);
  launch(dropout_channels_kernel<T>, grid_stride_blocks(n, per_block, ctx), map_block, 0, ctx, y, x, factors,
         s, vectors);
}

#define INSTANTIATE(T) template void dropout(T*, const T*, DropoutShape, DropoutParams, Context);
MINIDL_FOR_EACH_TYPE(INSTANTIATE)

}  // namespace minidl::cuda
