// Rung 5, SIMD microkernel: the tile of C stays in registers while the two panels pass.
//
// What was slow: the tile is in the first-level cache, so every multiply-add loads a piece of it and stores
// it again. A processor can store one register a cycle (some two) but multiply two, and has to wait for both.
//
// What changes: the tile is small enough for the registers, and written as such: with vector instructions
// (Vec, of minidl's cpu/vec.h) and unrolled in full, since registers cannot be indexed. A step loads one row
// of B's panel and broadcasts the elements of A: mr * vectors fused multiply-adds for mr + vectors loads and
// no store.
//
// Why it helps: the multiply-add units now work in almost every cycle. For that they need independent sums:
// each takes about 4 cycles, and 2 can begin in every cycle, so at least 8. This tile has 12 or 24.
#include "packing.h"
#include "rungs.h"

namespace minidl::MINIDL_ISA {

void simd(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k) {
// 24 sums of 32 registers, or 12 of 16: the others are for B and A.
#if defined(MINIDL_ISA_avx512) || defined(MINIDL_ISA_neon)
  constexpr int mr = 6, vectors = 4;
#else
  constexpr int mr = 6, vectors = 2;
#endif
  constexpr int width = Vec<float>::width, nr = vectors * width;
  multiply_panels<mr, nr>(
      a, b, c, m, n, k, [](auto& tile, const float* a_panel, const float* b_panel, int64_t depth, int64_t) {
        Vec<float> sum[mr][vectors];  // zeros
        for (int64_t p = 0; p < depth; ++p) {
          Vec<float> row[vectors];
          unroll<vectors>([&](auto j) { row[j] = Vec<float>::load(b_panel + p * nr + j * width); });
          unroll<mr>([&](auto i) {
            const Vec<float> element(a_panel[p * mr + i]);
            unroll<vectors>([&](auto j) { sum[i][j] = fmadd(element, row[j], sum[i][j]); });
          });
        }
        unroll<mr>([&](auto i) { unroll<vectors>([&](auto j) { sum[i][j].store(&tile[i][j * width]); }); });
      });
}

}  // namespace minidl::MINIDL_ISA
