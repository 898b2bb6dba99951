// Compiled with -fopenmp (at::parallel_for is silently serial without it) and never linked with an OpenMP
// runtime of its own: the GOMP symbols resolve to the one that torch has loaded.
#include "parallel.h"

#include <ATen/Parallel.h>
#include <sys/mman.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <thread>

#include "team.h"

namespace minidl {

void parallel_ranges(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* args) {
  if (n <= 0) return;
  // Small work never leaves its thread, nor pays for the region.
  if (n <= grain || in_team_range()) return body(args, 0, n);
  if (team_ranges(n, grain, body, args)) return;
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
  constexpr size_t huge_page = 2 << 20;
  if (bytes > capacity) {
    // Packed panels are read at every 4 KB page of them, so a large workspace is laid on huge pages.
    const size_t alignment = bytes < huge_page ? 64 : huge_page;
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;  // as aligned_alloc wants it
    memory.reset(std::aligned_alloc(alignment, rounded));
#ifdef MADV_HUGEPAGE
    if (memory && alignment == huge_page) madvise(memory.get(), rounded, MADV_HUGEPAGE);  // a hint: may fail
#endif
    capacity = memory ? rounded : 0;
    if (!memory) throw std::bad_alloc();
  }
  return memory.get();
}

}  // namespace minidl
