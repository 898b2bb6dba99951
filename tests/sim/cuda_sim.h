// What the language of CUDA gives a kernel, for g++: so that csrc/cuda runs on a CPU, in tests. One fiber for
// each CUDA thread, one block at a time; engine.cpp schedules them.
//
// A launch reports, as the failed launch it would be or should be: threads of a block at different barriers,
// or at a barrier that some never reach; lanes of a warp at different warp operations; a lane that reads from
// one outside the mask; asynchronous copies that nobody waits for; impossible launch configurations.
//
// Not modelled: the memory model beyond barriers, occupancy, coalescing, bank conflicts, the rounding of
// tensor cores, approximate instructions, blocks that wait for one another.
#pragma once
#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace sim {

// Where in the source an operation stands: lanes and threads that meet must meet at the same place.
struct Site {
  const char* file;
  int line;
  bool operator==(const Site&) const = default;
};

// Runs body(closure) once a thread. 0, or an error code as CUDA's; message() then says what was wrong.
int run(dim3 grid, dim3 block, size_t dynamic_bytes, void (*body)(void*), void* closure);
const char* message();

// 0: threads and blocks in ascending order, 1: in descending order, else shuffled.
void set_order(unsigned seed);

// Memory of the block, filled with NaN; the same for each thread that asks with the same key.
void* shared(const void* key, size_t bytes);
void* dynamic_shared();

void barrier(Site site);

// What lanes do together, once, with the payload of each (nullptr for the others): nullptr, or what is wrong.
using Resolve = const char*(void* const lanes[32]);

// Waits until all lanes of the mask are here, then resolves. `orders`: whether memory accesses before it are
// ordered before those after it.
void meet(unsigned mask, void* payload, Resolve* resolve, bool orders, Site site);
void fence();
[[noreturn]] void stop(const char* why);  // ends the launch with an error

// The asynchronous copies of the running thread: begun, closed into a group, and landing when it waits. The
// thread itself moves the bytes, so that sanitizers see whose access it is.
struct Copy {
  void* to;
  const void* from;
  unsigned bytes, filled;  // `filled` are copied, the rest are zeroed
  int group;
};
void begin_copy(const Copy& copy);
void end_group();
bool next_landing(int groups_left, Copy& copy);

inline constexpr unsigned full_mask = 0xffffffffu;

struct Shuffle {
  uint64_t bits, result;
  int source;  // lane
};

template <class T>
inline T shuffle(unsigned mask, T value, int source, Site site) {
  static_assert(sizeof(T) <= 8);
  Shuffle mine{0, 0, source};
  std::memcpy(&mine.bits, &value, sizeof value);
  meet(
      mask, &mine,
      [](void* const lanes[32]) -> const char* {
        for (int lane = 0; lane < 32; ++lane) {
          if (!lanes[lane]) continue;
          auto* s = static_cast<Shuffle*>(lanes[lane]);
          if (!lanes[s->source]) return "a shuffle reads from a lane outside its mask";
          s->result = static_cast<Shuffle*>(lanes[s->source])->bits;
        }
        return nullptr;
      },
      false, site);
  std::memcpy(&value, &mine.result, sizeof value);
  return value;
}

inline unsigned lane() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32; }

// As `lane` of [0, 32) sees it, in segments of `width`: itself where the source would lie outside.
inline int within(int source, int width) {
  const int begin = static_cast<int>(lane()) & ~(width - 1);
  return source >= begin && source < begin + width ? source : static_cast<int>(lane());
}

}  // namespace sim

#define MINIDL_SITE_ARGUMENT const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(MINIDL_SITE_ARGUMENT) { sim::barrier({file, line}); }
inline void __syncwarp(unsigned mask = sim::full_mask, MINIDL_SITE_ARGUMENT) {
  char nothing = 0;
  sim::meet(mask, &nothing, [](void* const*) -> const char* { return nullptr; }, true, {file, line});
}
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, MINIDL_SITE_ARGUMENT) {
  const int begin = static_cast<int>(sim::lane()) & ~(width - 1);
  return sim::shuffle(mask, value, begin + (source & (width - 1)), {file, line});
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, MINIDL_SITE_ARGUMENT) {
  return sim::shuffle(mask, value, sim::within(static_cast<int>(sim::lane()) ^ bits, width), {file, line});
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, int by, int width = 32, MINIDL_SITE_ARGUMENT) {
  return sim::shuffle(mask, value, sim::within(static_cast<int>(sim::lane()) - by, width), {file, line});
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, int by, int width = 32, MINIDL_SITE_ARGUMENT) {
  return sim::shuffle(mask, value, sim::within(static_cast<int>(sim::lane()) + by, width), {file, line});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, MINIDL_SITE_ARGUMENT) {
  struct Vote {
    bool mine;
    unsigned all;
  } vote{predicate != 0, 0};
  sim::meet(mask, &vote,
            [](void* const lanes[32]) -> const char* {
              unsigned all = 0;
              for (int i = 0; i < 32; ++i) {
                if (lanes[i] && static_cast<Vote*>(lanes[i])->mine) all |= 1u << i;
              }
              for (int i = 0; i < 32; ++i) {
                if (lanes[i]) static_cast<Vote*>(lanes[i])->all = all;
              }
              return nullptr;
            },
            false, {file, line});
  return vote.all;
}
inline int __any_sync(unsigned mask, int predicate, MINIDL_SITE_ARGUMENT) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, MINIDL_SITE_ARGUMENT) {
  return __ballot_sync(mask, !predicate, file, line) == 0;
}

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof x);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Integers only: the sum of floats would depend on the order.
inline int atomicAdd(int* p, int v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
inline unsigned atomicAdd(unsigned* p, unsigned v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
inline void __threadfence() { sim::fence(); }
