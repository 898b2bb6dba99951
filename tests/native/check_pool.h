// Pooling, in both memory orders, and dropout.
#pragma once
#include "check.h"
#include "philox.h"

namespace {

PoolAxis windows(int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t room = in + 2 * padding - dilation * (kernel - 1) - 1;
  return {in, room < 0 ? 0 : room / stride + 1, kernel, stride, padding, dilation, false};
}
PoolAxis adaptive(int64_t in, int64_t out) { return {in, out, in, 1, 0, 1, true}; }

template <class T>
void check_pool_shape(PoolShape s, bool special) {
  const int64_t images = s.images * s.channels, in = images * s.h.in * s.w.in,
                out = images * s.h.out * s.w.out;
  const auto x = random<T>(in, -3, 3, special), dy = random<T>(out);
  const std::string size = sizes(
      "images %ld, channels %ld, in %ldx%ld, out %ldx%ld, kernel %ldx%ld, stride %ld, padding %ld, "
      "dilation %ld, channels_last %ld, special %ld",
      s.images, s.channels, s.h.in, s.w.in, s.h.out, s.w.out, s.h.kernel, s.w.kernel, s.w.stride, s.w.padding,
      s.w.dilation, s.channels_last, special);
  const Buffer<uint8_t> place(out);
  const Buffer<int64_t> index(out);
  for (const bool bytes : {true, false}) {
    if (bytes && s.h.kernel * s.w.kernel > 256) continue;
    const PoolPosition position{bytes ? place.data() : nullptr, bytes ? nullptr : index.data()};
    check<T>(
        "max_pool_forward", size, {{out}, {out}}, RUN {
          k.max_pool_forward(o[0], position, x.data(), s, ctx);
          for (int64_t i = 0; i < out; ++i) {
            o[1][i] = static_cast<T>(bytes ? place.data()[i] : index.data()[i]);
          }
        });
    workspaces_now = 0;
    of<T>(*tables[0])
        .max_pool_forward(Buffer<T>(out).data(), position, x.data(), s, {.workspace = thread_workspace});
    check<T>(
        "max_pool_backward", size, {{in}}, RUN { k.max_pool_backward(o[0], dy.data(), position, s, ctx); });
  }
  if (s.h.dilation > 1 || s.w.dilation > 1 || special) return;  // what infinities sum to is each table's own
  for (const PoolDivisor d : {PoolDivisor{0, true}, {0, false}, {-3, true}}) {
    check<T>("avg_pool_forward", size, {{out}}, RUN { k.avg_pool_forward(o[0], x.data(), s, d, ctx); });
    check<T>("avg_pool_backward", size, {{in}}, RUN { k.avg_pool_backward(o[0], dy.data(), s, d, ctx); });
  }
}

template <class T>
void check_pools() {
  const int64_t kernels[][4] = {{1, 1, 0, 1}, {2, 2, 0, 1}, {3, 2, 1, 1}, {3, 1, 1, 1}, {2, 3, 1, 1},
                                {5, 2, 2, 1}, {2, 1, 1, 2}, {3, 2, 1, 3}, {9, 4, 4, 1}};
  for (const int64_t channels : {0, 1, 3, 8, 17}) {
    for (const int64_t width : {1, 2, 9, 15, 16, 33, 70}) {
      for (const bool last : {false, true}) {
        for (const bool special : {false, true}) {
          for (const auto& a : kernels) {
            const PoolAxis h = windows(5, a[0] < 5 ? a[0] : 3, a[1], a[0] < 5 ? a[2] : 1, 1);
            check_pool_shape<T>({2, channels, h, windows(width, a[0], a[1], a[2], a[3]), last}, special);
          }
          check_pool_shape<T>({2, channels, adaptive(5, 3), adaptive(width, 4), last}, special);
          check_pool_shape<T>({2, channels, adaptive(5, 1), adaptive(width, 1), last}, special);
          check_pool_shape<T>({2, channels, adaptive(5, 0), adaptive(width, 3), last}, special);
        }
      }
    }
  }
}

template <class T>
void check_dropout() {
  const int64_t states[][2] = {{1, 2}, {INT64_MIN, int64_t{5} << 32}, {7, 7}};
  for (const DropoutParams p :
       {DropoutParams{states[0], 0x80000000u, 2}, {states[1], 0x10000000u, 1.5}, {states[2], 0, 0}}) {
    const uint64_t seed = static_cast<uint64_t>(p.state[0]), offset = static_cast<uint64_t>(p.state[1]);
    for (const int64_t channels : {0, 1, 5, 15, 16, 17, 63, 64, 65, 130, 1031}) {
      for (const int64_t inner : {1, 0, 3, 17}) {
        for (const bool last : {false, true}) {
          const DropoutShape s{2, channels, inner, last};
          const int64_t n = 2 * channels * inner;
          const auto x = random<T>(n, -3, 3, true);
          check<T>(
              "dropout", sizes("channels %ld, inner %ld, channels_last %ld", channels, inner, last),
              {{n, x.data()}}, RUN {
                k.dropout(o[0], o[0], s, p, ctx);
                for (int64_t i = 0; i < n; ++i) {
                  const int64_t image = i / (channels * inner), rest = i % (channels * inner);
                  const int64_t element = image * channels + (last ? rest % channels : rest / inner);
                  const bool kept = philox_word(seed, offset, element) >= p.threshold;
                  if (!same(o[0][i], x.data()[i] * static_cast<T>(kept ? p.scale : 0))) fail("wrong factor");
                }
              });
        }
      }
    }
  }
  const uint32_t known[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};  // Random123's kat_vectors
  for (int64_t w = 0; w < 4; ++w) {
    if (philox_word(0, 0, w * philox_lanes) != known[w]) fail("philox_word is not Philox4x32-10");
  }
}

}  // namespace
