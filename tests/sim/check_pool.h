// Pooling of 16-bit types, and of what takes 64 bits to number.
#pragma once
#include "sim/narrow.h"

namespace {

template <class T>
void check_narrow_pool() {
  const PoolAxis two{9, 4, 2, 2, 0, 1, false}, three{9, 5, 3, 2, 1, 1, false}, apart{9, 7, 2, 1, 0, 2, false};
  const PoolAxis all{9, 1, 9, 9, 0, 1, false}, parts{9, 4, 4, 1, 0, 1, true};
  for (const PoolAxis& axis : {two, three, apart, all, parts}) {
    for (const bool last : {false, true}) {
      const PoolShape s{2, 9, axis, axis, last};
      const int64_t in = 18 * s.h.in * s.w.in, out = 18 * s.h.out * s.w.out;
      const Both<T> x(in), dy(out);
      const Buffer<uint8_t> place(out);
      const Buffer<int64_t> index(out);
      for (const bool bytes : {true, false}) {
        const PoolPosition position{bytes ? place.data() : nullptr, bytes ? nullptr : index.data()};
        const std::string size =
            sizes("out %ld, kernel %ld, channels_last %ld, bytes %ld", s.w.out, s.w.kernel, last, bytes);
        check_narrow<T>(
            "max_pool_forward", size, {out}, {out}, RUN_NARROW {
              k.max_pool_forward(o[0], position, x.template as<U>(), s, ctx);
              for (int64_t i = 0; i < out; ++i)
                w[0][i] = static_cast<float>(bytes ? place.data()[i] : index.data()[i]);
            });
        workspaces_now = 0;
        of<float>(*tables[0])
            .max_pool_forward(Buffer<float>(out).data(), position, x.wide.data(), s,
                              {.workspace = thread_workspace});
        check_narrow<T>(
            "max_pool_backward", size, {in}, {},
            RUN_NARROW { k.max_pool_backward(o[0], dy.template as<U>(), position, s, ctx); });
        if (axis.dilation > 1) continue;
        const PoolDivisor divisor{0, bytes};
        check_narrow<T>(
            "avg_pool_forward", size, {out}, {},
            RUN_NARROW { k.avg_pool_forward(o[0], x.template as<U>(), s, divisor, ctx); });
        check_narrow<T>(
            "avg_pool_backward", size, {in}, {},
            RUN_NARROW { k.avg_pool_backward(o[0], dy.template as<U>(), s, divisor, ctx); });
      }
    }
  }
}

// The borders of adaptive windows are quotients of products beyond 32 bits.
void check_pool_wide_index() {
  constexpr int64_t in = 50000, out = 49999;
  const PoolShape s{1, 1, {1, 1, 1, 1, 0, 1, false}, {in, out, 3, 1, 0, 1, true}, false};
  const auto x = random<float>(in), dy = random<float>(out);
  const Buffer<int64_t> index(out);
  const PoolPosition position{nullptr, index.data()};
  check<float>(
      "max_pool_forward", "of 50000", {{out}, {out}}, RUN {
        k.max_pool_forward(o[0], position, x.data(), s, ctx);
        for (int64_t i = 0; i < out; ++i) o[1][i] = static_cast<float>(index.data()[i]);
      });
  workspaces_now = 0;
  of<float>(*tables[0])
      .max_pool_forward(Buffer<float>(out).data(), position, x.data(), s, {.workspace = thread_workspace});
  check<float>(
      "max_pool_backward", "of 50000", {{in}},
      RUN { k.max_pool_backward(o[0], dy.data(), position, s, ctx); });
  const PoolDivisor divisor{0, false};
  check<float>(
      "avg_pool_forward", "of 50000", {{out}}, RUN { k.avg_pool_forward(o[0], x.data(), s, divisor, ctx); });
  check<float>(
      "avg_pool_backward", "of 50000", {{in}},
      RUN { k.avg_pool_backward(o[0], dy.data(), s, divisor, ctx); });
}

}  // namespace
