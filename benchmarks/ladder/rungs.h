// The rungs, bottom first. Each computes C = A B in float32: A is m x k, B is k x n, C is m x n, all
// row-major and dense, of any size, 0 included. C is overwritten, and overlaps neither A nor B. Compiled once
// per instruction set (ISA), each time with the same flags for all rungs.
#pragma once
#include <cstdint>

#define LADDER_RUNGS(R, isa) \
  R(isa, naive) R(isa, reordered) R(isa, blocked) R(isa, packed) R(isa, simd) R(isa, threaded)

#define DECLARE_RUNG(isa, name)                                                         \
  namespace minidl::isa {                                                               \
  void name(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k); \
  }
