// Shared by the rungs from 4 on: blocks of A and B copied into panels, and the loops over tiles of C.
//
//   mr rows of A's block are a panel:                     nr columns of B's block are a panel:
//   a[0][0] a[1][0] .. a[mr-1][0]  a[0][1] a[1][1] ..     b[0][0] b[0][1] .. b[0][nr-1]  b[1][0] b[1][1] ..
//
// A tile of C, mr x nr, is the product of one panel of A and one of B, and each is read from its start to its
// end. Panels at the edges are filled up with zeros, so that their tiles are like all others until they are
// added to C.
#pragma once
#include "cpu/vec.h"
#include "parallel.h"

namespace minidl::MINIDL_ISA {
namespace {

// Blocks: A's, mc x kc, stays in the second-level cache while all panels of B's, kc x nc, take their turn.
constexpr int64_t mc = 96, kc = 256, nc = 1024;

// panel[p][i] = a[i][p] for i < rows, 0 beyond.
template <int mr>
void pack_a(float* panel, const float* a, int64_t row_stride, int64_t rows, int64_t depth) {
  for (int64_t i = 0; i < mr; ++i) {
    for (int64_t p = 0; p < depth; ++p) panel[p * mr + i] = i < rows ? a[i * row_stride + p] : 0;
  }
}

// panel[p][j] = b[p][j] for j < cols, 0 beyond.
template <int nr>
void pack_b(float* panel, const float* b, int64_t row_stride, int64_t cols, int64_t depth) {
  for (int64_t p = 0; p < depth; ++p) {
    for (int64_t j = 0; j < nr; ++j) panel[p * nr + j] = j < cols ? b[p * row_stride + j] : 0;
  }
}

// C = A B. multiply(tile, a_panel, b_panel, depth, cols) overwrites the first `cols` columns at least of
// tile[mr][nr] by the product of two panels.
template <int mr, int nr, class Multiply>
void multiply_panels(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k,
                     Multiply multiply) {
  static_assert(mc % mr == 0 && nc % nr == 0, "blocks are whole panels");
  float* packed_a = static_cast<float*>(thread_workspace(sizeof(float) * (mc * kc + kc * nc)));
  float* packed_b = packed_a + mc * kc;
  for (int64_t i = 0; i < m * n; ++i) c[i] = 0;
  for (int64_t j0 = 0; j0 < n; j0 += nc) {
    const int64_t j1 = min_of(j0 + nc, n);
    for (int64_t p0 = 0; p0 < k; p0 += kc) {
      const int64_t depth = min_of(kc, k - p0);
      for (int64_t j = j0; j < j1; j += nr) {
        pack_b<nr>(packed_b + (j - j0) * depth, b + p0 * n + j, n, j1 - j, depth);
      }
      for (int64_t i0 = 0; i0 < m; i0 += mc) {
        const int64_t i1 = min_of(i0 + mc, m);
        for (int64_t i = i0; i < i1; i += mr) {
          pack_a<mr>(packed_a + (i - i0) * depth, a + i * k + p0, k, i1 - i, depth);
        }
        for (int64_t j = j0; j < j1; j += nr) {
          for (int64_t i = i0; i < i1; i += mr) {
            const int64_t rows = min_of(mr, i1 - i), cols = min_of(nr, j1 - j);
            alignas(64) float tile[mr][nr];
            multiply(tile, packed_a + (i - i0) * depth, packed_b + (j - j0) * depth, depth, cols);
            for (int64_t q = 0; q < rows; ++q) {
              for (int64_t r = 0; r < cols; ++r) c[(i + q) * n + j + r] += tile[q][r];
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace minidl::MINIDL_ISA
