// Rung 3, blocked: the same loops over one block of B at a time.
//
// What was slow: every row of C passes over the whole of B. Once B is larger than a cache, each of the m
// passes fetches it from the next one, or from memory, and two operations for every float of B are too few
// for that.
//
// What changes: two outer loops cut B into blocks of kc x nc, and all rows of C pass over one block before
// the next is begun.
//
// Why it helps: the block is fetched once and then stays in the second-level cache, the piece of C's row that
// is added to even in the first. What comes from further away is C, once for every kc rows of B.
#include "cpu/vec.h"
#include "rungs.h"

namespace minidl::MINIDL_ISA {

void blocked(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kc = 128, nc = 512;  // 256 KB: a share of the second-level cache
  for (int64_t i = 0; i < m * n; ++i) c[i] = 0;
  for (int64_t j0 = 0; j0 < n; j0 += nc) {
    for (int64_t p0 = 0; p0 < k; p0 += kc) {
      const int64_t j1 = min_of(j0 + nc, n), p1 = min_of(p0 + kc, k);
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t p = p0; p < p1; ++p) {
          for (int64_t j = j0; j < j1; ++j) c[i * n + j] += a[i * k + p] * b[p * n + j];
        }
      }
    }
  }
}

}  // namespace minidl::MINIDL_ISA
