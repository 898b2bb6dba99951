#include "kernels.h"
#include "parallel.h"
#include "philox.h"
#include "vec.h"

namespace minidl::MINIDL_ISA {
namespace {

constexpr int64_t grain =
    8192;  // elements with a random word each, of which a thread does one a cycle or two

template <class T>
struct Mask {
  DropoutParams p;
  uint64_t seed = static_cast<uint64_t>(p.state[0]), offset = static_cast<uint64_t>(p.state[1]);
  T scale = static_cast<T>(p.scale);

  // f(i, factors, lanes, tag) over the elements of blocks [begin, end) of 64, of n elements in all.
  template <class F>
  MINIDL_INLINE void each(int64_t begin, int64_t end, int64_t n, F f) const {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = block * philox_block;
      if (start + philox_block <= n) {
        each_of_block(block,
                      [&](int64_t i, Vec<T> factors) { f(start + i, factors, Vec<T>::width, Full{}); });
      } else {
        each_of_block(block, [&](int64_t i, Vec<T> factors) {
          const int64_t lanes = min_of(n - start - i, Vec<T>::width);
          if (lanes > 0) f(start + i, factors, lanes, Ragged{});
        });
      }
    }
  }

 private:
  template <class F>
  MINIDL_INLINE void each_of_block(int64_t block, F f) const {
    const uint64_t counter = static_cast<uint64_t>(block * philox_lanes);
    MINIDL_UNROLL for (int64_t lane = 0; lane < philox_lanes; lane += Words::width) {
      Words c[4] = {Words::count_from(static_cast<uint32_t>(counter) + static_cast<uint32_t>(lane)),
                    static_cast<uint32_t>(counter >> 32), static_cast<uint32_t>(offset),
                    static_cast<uint32_t>(offset >> 32)};
      philox4x32(c, seed);
      MINIDL_UNROLL for (int w = 0; w < 4; ++w) factors(c[w], w * philox_lanes + lane, f);
    }
  }
  template <class F>
  MINIDL_INLINE void factors(Words words, int64_t i, F f) const {
    const auto kept = at_least(words, Words(p.threshold));
    if constexpr (sizeof(T) == 4) {
      f(i, select(kept, Vec<T>(scale), T(0)));
    } else {  // for checking gradients, not for speed: lane by lane
      float ones[Words::width];
      select(kept, Vec<float>(1.0f), 0.0f).store(ones);
      T lanes[Words::width];
      for (int l = 0; l < Words::width; ++l) lanes[l] = ones[l] != 0 ? scale : T(0);
      for (int l = 0; l < Words::width; l += Vec<T>::width) f(i + l, Vec<T>::load(lanes + l));
    }
  }
};

template <class T>
MINIDL_INLINE void multiply_row(T* y, const T* x, int64_t n, T factor) {
  for_lanes<T>(0, n, [&](int64_t i, int64_t lanes, auto tag) {
    store_lanes(load_lanes(x + i, lanes, tag) * factor, y + i, lanes, tag);
  });
}

}  // namespace

template <class T>
void dropout(T* y, const T* x, DropoutShape s, DropoutParams p, Context ctx) {
  const Mask<T> mask{p};
  const int64_t n = s.images * s.channels, blocks = ceil_div(n, philox_block);
  if (s.inner == 1) {
    return parallel_for(blocks, grain / philox_block, [&](int64_t begin, int64_t end) {
      mask.each(begin, end, n, [&](int64_t i, Vec<T> factors, int64_t lanes, auto tag) {
        store_lanes(load_lanes(x + i, lanes, tag) * factors, y + i, lanes, tag);
      });
    });
  }
  if (n == 0) return;
  T* factors = static_cast<T*>(ctx.workspace(static_cast<size_t>(n) * sizeof(T)));
  mask.each(0, blocks, n,
            [&](int64_t i, Vec<T> v, int64_t lanes, auto tag) { store_lanes(v, factors + i, lanes, tag); });
  if (!s.channels_last) {
    return parallel_for(n, max_of(1, 4 * grain / max_of(1, s.inner)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        multiply_row(y + i * s.inner, x + i * s.inner, s.inner, factors[i]);
      }
    });
  }
  parallel_for(s.images * s.inner, max_of(1, 4 * grain / s.channels), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* of_image = factors + row / s.inner * s.channels;
      const int64_t at = row * s.channels;
      for_lanes<T>(0, s.channels, [&](int64_t c, int64_t lanes, auto tag) {
        const Vec<T> v = load_lanes(x + at + c, lanes, tag) * load_lanes(of_image + c, lanes, tag);
        store_lanes(v, y + at + c, lanes, tag);
      });
    }
  });
}

template void dropout(float*, const float*, DropoutShape, DropoutParams, Context);
template void dropout(double*, const double*, DropoutShape, DropoutParams, Context);

}  // namespace minidl::MINIDL_ISA
