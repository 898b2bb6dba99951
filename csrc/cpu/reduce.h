// Sums that have the same bits on any number of threads: fixed chunks, added up in their order. Within a
// chunk short runs are summed in T, over lanes, and the runs in double.
#pragma once
#include "kernels.h"
#include "parallel.h"
#include "vec.h"

namespace minidl::MINIDL_ISA {
namespace {

template <class T>
constexpr T lane_numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// v, but `fill` in the lanes from n on: they hold no data after a ragged load.
template <class T, class Tag>
MINIDL_INLINE Vec<T> keep_lanes(Vec<T> v, int64_t n, T fill, Tag) {
  static_assert(Vec<T>::width <= 16, "lane_numbers has 16 lanes");
  if constexpr (Tag::value) {
    return v;
  } else {
    return select(Vec<T>::load(lane_numbers<T>) < Vec<T>(static_cast<T>(n)), v, fill);
  }
}

// The sum of f(i, lanes, tag), as for_lanes calls it. Four independent chains hide the latency of the
// addition.
template <class T, class F>
MINIDL_INLINE double sum_lanes(int64_t begin, int64_t end, F f) {
  constexpr int64_t w = Vec<T>::width, chains = 4, run = 8 * chains * w;
  double sum = 0;
  int64_t i = begin;
  for (; i + run <= end; i += run) {
    Vec<T> chain[chains];
    for (int64_t j = i; j < i + run; j += chains * w) {
      MINIDL_UNROLL for (int64_t k = 0; k < chains; ++k) chain[k] = chain[k] + f(j + k * w, w, Full{});
    }
    sum += static_cast<double>(reduce_add((chain[0] + chain[1]) + (chain[2] + chain[3])));
  }
  Vec<T> rest;
  for_lanes<T>(i, end, [&](int64_t j, int64_t lanes, auto tag) {
    rest = rest + keep_lanes(f(j, lanes, tag), lanes, T(0), tag);
  });
  return sum + static_cast<double>(reduce_add(rest));
}

// The sum of f(begin, end) over the chunks of [0, n). Sum is a plain struct or number, whose Sum{} is zero.
template <class Sum, class F>
Sum chunked_sum(int64_t n, int64_t chunk, int64_t grain, Context ctx, F f) {
  if (n <= chunk) return n > 0 ? f(0, n) : Sum{};
  const int64_t chunks = ceil_div(n, chunk);
  Sum* partial = static_cast<Sum*>(ctx.workspace(static_cast<size_t>(chunks) * sizeof(Sum)));
  parallel_for(chunks, ceil_div(grain, chunk), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) partial[c] = f(c * chunk, min_of(n, (c + 1) * chunk));
  });
  Sum sum{};
  for (int64_t c = 0; c < chunks; ++c) sum += partial[c];
  return sum;
}

}  // namespace
}  // namespace minidl::MINIDL_ISA
