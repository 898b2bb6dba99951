// While it lives, this thread's kernels take and give 0 for numbers too small to be normal. Moments of parameters
// that are seldom used decay into such numbers, and arithmetic on them takes a hundred times as long.
#pragma once
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace minidl {

class FlushDenormals {
 public:
  FlushDenormals() : before_(get()) { set(before_ | flush); }
  ~FlushDenormals() { set(before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr uint64_t flush = 0x8040;  // of MXCSR: flush to zero, denormals are zero
  static uint64_t get() { return _mm_getcsr(); }
  static void set(uint64_t bits) { _mm_setcsr(static_cast<unsigned>(bits)); }
#elif defined(__aarch64__)
  static constexpr uint64_t flush = uint64_t(1) << 24;  // of FPCR: flush to zero
  static uint64_t get() {
    uint64_t bits;
    asm volatile("mrs %0, fpcr" : "=r"(bits));
    return bits;
  }
  static void set(uint64_t bits) { asm volatile("msr fpcr, %0" : : "r"(bits)); }
#else
  static constexpr uint64_t flush = 0;
  static uint64_t get() { return 0; }
  static void set(uint64_t) {}
#endif
  uint64_t before_;
};

}  // namespace minidl
