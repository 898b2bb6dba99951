// Rung 1, naive: the definition. C[i][j] is the sum over p of A[i][p] * B[p][j].
//
// What is slow: the inner loop walks down a column of B. Each step touches another cache line, to use one of
// its sixteen floats, and from n = 1024 on another page of memory too. And the sum is one chain of additions,
// in which each waits about 4 cycles for the one before it: the compiler may not split the chain over the
// lanes of a register, because in floating point (x + y) + z is not x + (y + z).
#include "rungs.h"

namespace minidl::MINIDL_ISA {

void naive(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      float sum = 0;
      for (int64_t p = 0; p < k; ++p) sum += a[i * k + p] * b[p * n + j];
      c[i * n + j] = sum;
    }
  }
}

}  // namespace minidl::MINIDL_ISA
