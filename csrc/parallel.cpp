// Compiled with -fopenmp (at::parallel_for is silently serial without it) and never linked with an OpenMP
// runtime of its own: the GOMP symbols resolve to the one that torch has loaded.
#include "parallel.h"

#include <ATen/Parallel.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <thread>

namespace minidl {

void parallel_ranges(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* args) {
  if (n <= 0) return;
  if (n <= grain) return body(args, 0, n);  // small work never leaves its thread, nor pays for the region
  at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(args, begin, end); });
}

int threads_used() {
  struct Shared {
    std::mutex mutex;
    std::set<std::thread::id> seen;
  } shared;
  const int threads = at::get_num_threads();
  parallel_ranges(
      threads, 1,
      [](void* args, int64_t, int64_t) {
        auto* shared = static_cast<Shared*>(args);
        const std::lock_guard lock(shared->mutex);
        shared->seen.insert(std::this_thread::get_id());
      },
      &shared);
  return static_cast<int>(shared.seen.size());
}

void* thread_workspace(size_t bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local size_t capacity = 0;
  if (bytes > capacity) {
    const size_t rounded = (bytes + 4095) / 4096 * 4096;  // aligned_alloc wants a multiple of the alignment
    memory.reset(std::aligned_alloc(64, rounded));
    capacity = memory ? rounded : 0;
    if (!memory) throw std::bad_alloc();
  }
  return memory.get();
}

}  // namespace minidl
