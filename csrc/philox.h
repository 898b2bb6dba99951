// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as
// easy as 1, 2, 3" (SC'11): 128 random bits from a counter of 128 and a key of 64, without a state. For host
// and device code, one word or a register of them at a time.
//
// And how dropout numbers its elements, so that every backend drops the same ones.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define MINIDL_HOST_DEVICE __host__ __device__ inline
#else
#define MINIDL_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace minidl {
namespace {  // per instruction set: the linker must not merge the copies

// The low word of a * m, and the high one.
MINIDL_HOST_DEVICE uint32_t multiply(uint32_t a, uint32_t m, uint32_t& high) {
  const uint64_t product = static_cast<uint64_t>(a) * m;
  high = static_cast<uint32_t>(product >> 32);
  return static_cast<uint32_t>(product);
}

// Replaces the counter c by its random words. Word: uint32_t, or a register with the same operations.
template <class Word>
MINIDL_HOST_DEVICE void philox4x32(Word (&c)[4], uint64_t key) {
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
    Word high0, high2;
    const Word low0 = multiply(c[0], 0xD2511F53u, high0), low2 = multiply(c[2], 0xCD9E8D57u, high2);
    c[0] = high2 ^ c[1] ^ Word(key0);
    c[1] = low2;
    c[2] = high0 ^ c[3] ^ Word(key1);
    c[3] = low0;
  }
}

// Elements go by 64, for which 16 counters give four words each: element 16 w + l of the 64 has word w of
// counter l, so that a register of counters gives four registers of neighbours.
constexpr int64_t philox_lanes = 16, philox_block = 64;

// Sets c to the words of one counter.
MINIDL_HOST_DEVICE void philox_words(uint32_t (&c)[4], uint64_t seed, uint64_t offset, uint64_t counter) {
  c[0] = static_cast<uint32_t>(counter), c[1] = static_cast<uint32_t>(counter >> 32);
  c[2] = static_cast<uint32_t>(offset), c[3] = static_cast<uint32_t>(offset >> 32);
  philox4x32(c, seed);
}

MINIDL_HOST_DEVICE uint32_t philox_word(uint64_t seed, uint64_t offset, int64_t element) {
  uint32_t c[4];
  philox_words(c, seed, offset,
               static_cast<uint64_t>(element / philox_block * philox_lanes + element % philox_lanes));
  return c[element % philox_block / philox_lanes];
}

}  // namespace
}  // namespace minidl
