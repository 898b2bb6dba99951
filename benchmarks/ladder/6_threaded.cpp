// Rung 6, threaded: each thread computes some rows of C by rung 5.
//
// What was slow: one core worked, the others waited.
//
// What changes: the rows of C are split evenly, in whole tiles. No element of C is written by two threads, so
// there is nothing to lock, and every sum has the same order, thus the same bits, for any number of threads.
//
// Why it helps: as many multiply-add units and private caches as there are cores. Two costs remain: each
// thread packs all of B for itself, and waking a thread takes microseconds, which a small product does not
// earn back.
#include "cpu/vec.h"
#include "parallel.h"
#include "rungs.h"

LADDER_RUNGS(DECLARE_RUNG, MINIDL_ISA)

namespace minidl::MINIDL_ISA {

void threaded(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k) {
  constexpr int64_t worth_a_thread = 1 << 19;  // multiply-adds: some 10 us on one core
  constexpr int64_t mr = 6;                    // whole tiles of rung 5
  const int64_t grain = ceil_div(worth_a_thread, max_of(mr * n * k, 1));
  parallel_for(ceil_div(m, mr), grain, [&](int64_t begin, int64_t end) {
    const int64_t i0 = begin * mr, i1 = min_of(end * mr, m);
    simd(a + i0 * k, b, c + i0 * n, i1 - i0, n, k);
  });
}

}  // namespace minidl::MINIDL_ISA
