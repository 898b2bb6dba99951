// Rung 2, reordered: the same multiplications and additions, with the two inner loops exchanged.
//
// What was slow: a step down a column of B for every multiplication, and one chain of additions.
//
// What changes: i, p, j in place of i, j, p. The inner loop adds a multiple of row p of B to row i of C.
//
// Why it helps: B and C are read along their rows, so every byte of a cache line is used, and neighbouring
// additions belong to different elements of C, so the compiler does a register's lanes of them at a time.
#include "rungs.h"

namespace minidl::MINIDL_ISA {

void reordered(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) c[i * n + j] = 0;
    for (int64_t p = 0; p < k; ++p) {
      for (int64_t j = 0; j < n; ++j) c[i * n + j] += a[i * k + p] * b[p * n + j];
    }
  }
}

}  // namespace minidl::MINIDL_ISA
