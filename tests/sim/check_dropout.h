// Dropout of 16-bit types.
#pragma once
#include "sim/narrow.h"

namespace {

template <class T>
void check_narrow_dropout() {
  const int64_t state[2] = {3, 4};
  const DropoutParams p{state, 0x40000000u, 1 / 0.75};
  for (const DropoutShape s : {DropoutShape{1, 1, 1, false},
                               {1, 8, 1, false},
                               {1, 3, 15, false},
                               {2, 5, 16, false},
                               {2, 9, 3, true},
                               {2, 16, 5, true},
                               {1, 71, 1, false},
                               {1, 8200, 1, false}}) {
    const int64_t n = s.images * s.channels * s.inner;
    const Both<T> x(n);
    const std::string size = sizes("images %ld, channels %ld, inner %ld, channels_last %ld", s.images,
                                   s.channels, s.inner, s.channels_last);
    check_narrow<T>("dropout", size, {n}, {}, RUN_NARROW { k.dropout(o[0], x.template as<U>(), s, p, ctx); });
  }
}

}  // namespace
