// Rung 4, packed: blocks of A and B are copied in the order in which they are then read (by packing.h).
//
// What was slow: the rows of a block are as far apart in memory as the rows of its matrix. Each lies on a
// page of its own, and the processor remembers where some dozens of pages are (the TLB); where n is a power
// of two, all compete for the same few places of a cache. And each row of C fetches the block from the
// second-level cache.
//
// What changes: blocks are copied into panels, and C is computed in tiles of mr x nr, each from one panel of
// A and one of B. A row of B's panel, once fetched, serves all mr rows of the tile.
//
// Why it helps: a panel is read from its first byte to its last, which caches, the TLB and the prefetcher are
// made for; the tile stays in the first-level cache until it is done. Copying an element once pays because it
// is then used hundreds of times: too few in a small product.
#include "packing.h"
#include "rungs.h"

namespace minidl::MINIDL_ISA {

void packed(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k) {
  constexpr int mr = 6, nr = 256;  // a tile of 6 KB
  multiply_panels<mr, nr>(
      a, b, c, m, n, k,
      [](auto& tile, const float* a_panel, const float* b_panel, int64_t depth, int64_t cols) {
        for (int64_t i = 0; i < mr; ++i) {
          for (int64_t j = 0; j < cols; ++j) tile[i][j] = 0;
        }
        for (int64_t p = 0; p < depth; ++p) {
          for (int64_t i = 0; i < mr; ++i) {
            for (int64_t j = 0; j < cols; ++j) tile[i][j] += a_panel[p * mr + i] * b_panel[p * nr + j];
          }
        }
      });
}

}  // namespace minidl::MINIDL_ISA
