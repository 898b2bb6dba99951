// The only way a CPU kernel gets threads: torch's own pool and thread count. Torch-free header.
#pragma once
#include <cstddef>
#include <cstdint>

namespace minidl {

// Calls body(args, begin, end) on disjoint ranges that cover [0, n), on at most torch's number of threads,
// and serially when n <= grain or inside another parallel region.
void parallel_ranges(int64_t n, int64_t grain, void (*body)(void* args, int64_t begin, int64_t end),
                     void* args);

// How many threads a region of torch's thread count really runs on: 1 would mean that this build has lost
// OpenMP.
int threads_used();

// Scratch of the calling thread, 64-byte aligned; the same memory on every call, so valid until the next one.
void* thread_workspace(size_t bytes);

namespace {

template <class F>
inline void parallel_for(int64_t n, int64_t grain, F f) {
  parallel_ranges(
      n, grain, [](void* args, int64_t begin, int64_t end) { (*static_cast<F*>(args))(begin, end); }, &f);
}

}  // namespace
}  // namespace minidl
