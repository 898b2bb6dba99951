// The scheduler behind cuda_sim.h. Never compiled with sanitizers: one object serves every build. One launch at
// a time, from one thread.
//
// Races: under ThreadSanitizer each fiber is a thread, switched to without synchronisation. Only barriers,
// __syncwarp, fences, and the begin and end of a launch order accesses; shuffles and votes do not.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda_sim.h"
#include "native/sanitizers.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

extern "C" {
void minidl_switch_stack(void** from, void* to);  // switch_stack.cpp
void minidl_fiber_entry();
extern const size_t minidl_entry_word, minidl_frame_words;
void minidl_fiber_main();
}

namespace sim {
namespace {

enum class State { ready, at_barrier, at_meeting, returned };

struct Fiber {
  char* stack = nullptr;
  void* pointer = nullptr;  // into the stack, while it is not running
  void* fake_stack = nullptr;
  void* tsan = nullptr;
};

// A ring, so that no fiber asks for memory: ThreadSanitizer would take its giving back for a race.
struct Copies {
  static constexpr unsigned most = 64;
  Copy pending[most];
  unsigned begun, landed;
  int group;
};

struct Thread {
  State state;
  Site site;
  unsigned mask;
  void* payload;
  Resolve* resolve;
  size_t fiber;
  uint3 index;
  Copies copies;
};

constexpr size_t guard_bytes = 4096;
size_t stack_bytes = 64 << 10;
std::vector<Fiber> fibers;
std::vector<Thread> threads;
size_t current;
void* scheduler_stack;
void* scheduler_fake;
const void* scheduler_bottom;
size_t scheduler_size;
void* scheduler_tsan;
void (*kernel_body)(void*);
void* kernel_closure;
std::string error;
unsigned order_seed;

// Blocks take turns with two sets of fibers: a fiber of the block before would carry that block's accesses through
// the next barrier, and order them before everything.
size_t blocks_run;
size_t fiber_sets() { return __tsan_create_fiber ? 2 : 1; }
size_t turn() { return blocks_run % 2; }

// Addresses that ThreadSanitizer's happens-before hangs on. Two a barrier and a warp take turns, so that a
// barrier does not order what lies beyond the next one; and no two blocks in a row share one.
char launched, finished, fenced, barrier_tag[2][2], warp_tag[2][32][2];
unsigned barriers_passed, meetings_passed[32];

struct Allocation {
  const void* key;
  void* memory;
};
std::vector<Allocation> allocations;  // of the running block
size_t static_bytes, dynamic_bytes;
const char dynamic_key = 0;

void fail(const std::string& why) {
  if (!error.empty()) return;
  error = why + " in block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
          std::to_string(blockIdx.z) + ")";
}
std::string at(Site site) { return std::string(site.file) + ":" + std::to_string(site.line); }

// From a fiber to the scheduler; returns when the scheduler resumes it.
void yield() {
  Fiber& f = fibers[threads[current].fiber];
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(&f.fake_stack, scheduler_bottom, scheduler_size);
  }
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(scheduler_tsan, 1);
  minidl_switch_stack(&f.pointer, scheduler_stack);
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(f.fake_stack, &scheduler_bottom, &scheduler_size);
  }
}

void resume(size_t t) {
  current = t;
  threadIdx = threads[t].index;
  Fiber& f = fibers[threads[t].fiber];
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&scheduler_fake, f.stack, stack_bytes);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(f.tsan, 1);
  minidl_switch_stack(&scheduler_stack, f.pointer);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
}

Fiber new_fiber() {
  Fiber f;
  void* mapped = mmap(nullptr, stack_bytes + guard_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) std::abort();
  mprotect(mapped, guard_bytes, PROT_NONE);
  f.stack = static_cast<char*>(mapped) + guard_bytes;
  void** frame = reinterpret_cast<void**>(f.stack + stack_bytes) - minidl_frame_words;
  std::fill_n(frame, minidl_frame_words, nullptr);
  frame[minidl_entry_word] = reinterpret_cast<void*>(&minidl_fiber_entry);
  f.pointer = frame;
  if (__tsan_create_fiber) f.tsan = __tsan_create_fiber(0);
  return f;
}

// After an error: fibers that stand somewhere inside a kernel.
void abandon_fibers() {
  for (const Fiber& f : fibers) {
    munmap(f.stack - guard_bytes, stack_bytes + guard_bytes);
    if (f.tsan) __tsan_destroy_fiber(f.tsan);
  }
  fibers.clear();
}

void* allocate(const void* key, size_t bytes) {
  for (const Allocation& a : allocations) {
    if (a.key == key) return a.memory;
  }
  void* memory = nullptr;
  unwatched([&] {
    memory = std::aligned_alloc(128, std::max<size_t>(128, (bytes + 127) / 128 * 128));
    std::memset(memory, 0xff, bytes);
  });
  allocations.push_back({key, memory});
  return memory;
}

void end_block() {
  for (const Allocation& a : allocations) unwatched([&] { std::free(a.memory); });
  allocations.clear();
  static_bytes = 0;
  for (const Thread& t : threads) {
    if (t.copies.begun != t.copies.landed)
      fail("a thread returned before its asynchronous copies had landed");
  }
}

// The meeting that thread t waits at, if all are there.
bool resolve_meeting(size_t t) {
  const size_t warp = t / 32 * 32, lanes = std::min<size_t>(32, threads.size() - warp);
  const unsigned here = lanes == 32 ? full_mask : (1u << lanes) - 1, mask = threads[t].mask & here;
  if (!(mask >> (t - warp) & 1))
    return fail("a lane is not in its own mask at " + at(threads[t].site)), false;
  void* payloads[32] = {};
  for (size_t lane = 0; lane < lanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const Thread& other = threads[warp + lane];
    if (other.state != State::at_meeting) return false;
    if (!(other.site == threads[t].site) || other.mask != threads[t].mask) {
      fail("lanes of a warp meet at " + at(threads[t].site) + " and at " + at(other.site));
      return false;
    }
    payloads[lane] = other.payload;
  }
  const char* wrong = nullptr;
  unwatched([&] { wrong = threads[t].resolve(payloads); });
  if (wrong) {
    fail(std::string(wrong) + " at " + at(threads[t].site));
    return false;
  }
  for (size_t lane = 0; lane < lanes; ++lane) {
    if (mask >> lane & 1) threads[warp + lane].state = State::ready;
  }
  ++meetings_passed[warp / 32];
  return true;
}

// Runs one warp until each of its threads waits for the block, or has returned.
void run_warp(size_t warp, std::mt19937& random) {
  const size_t lanes = std::min<size_t>(32, threads.size() - warp);
  std::array<size_t, 32> order;
  for (bool progress = true; progress && error.empty();) {
    progress = false;
    for (size_t i = 0; i < lanes; ++i) order[i] = warp + i;
    if (order_seed == 1) std::reverse(order.begin(), order.begin() + lanes);
    if (order_seed > 1) std::shuffle(order.begin(), order.begin() + lanes, random);
    for (size_t i = 0; i < lanes && error.empty(); ++i) {
      if (threads[order[i]].state != State::ready) continue;
      resume(order[i]);
      progress = true;
    }
    for (size_t i = 0; i < lanes && error.empty(); ++i) {
      if (threads[warp + i].state == State::at_meeting) progress |= resolve_meeting(warp + i);
    }
  }
}

std::string who_waits() {
  size_t at_barrier = 0, at_meeting = 0, returned = 0;
  std::string where;
  for (const Thread& t : threads) {
    at_barrier += t.state == State::at_barrier;
    at_meeting += t.state == State::at_meeting;
    returned += t.state == State::returned;
    if (where.empty() && t.state != State::returned) where = at(t.site);
  }
  return std::to_string(at_barrier) + " threads wait at a barrier, " + std::to_string(at_meeting) +
         " for lanes of their warp, " + std::to_string(returned) + " have returned; first at " + where;
}

// All threads are at one barrier (true), have all returned (false), or something is wrong (false).
bool pass_barrier() {
  size_t waiting = 0, returned = 0;
  for (const Thread& t : threads) {
    waiting += t.state == State::at_barrier;
    returned += t.state == State::returned;
  }
  if (returned == threads.size()) return false;
  if (waiting != threads.size()) return fail("divergence: " + who_waits()), false;
  for (const Thread& t : threads) {
    if (t.site == threads[0].site) continue;
    fail("divergence: threads wait at the barriers at " + at(threads[0].site) + " and at " + at(t.site));
    return false;
  }
  for (Thread& t : threads) t.state = State::ready;
  ++barriers_passed;
  return true;
}

void run_block(std::mt19937& random) {
  const size_t sets = fiber_sets();
  ++blocks_run;
  for (size_t t = 0; t < threads.size(); ++t) {
    const unsigned i = static_cast<unsigned>(t);
    threads[t].state = State::ready;
    threads[t].copies.begun = threads[t].copies.landed = 0;
    threads[t].copies.group = 0;
    threads[t].fiber = (t + blocks_run * 37) % threads.size() * sets + blocks_run % sets;
    threads[t].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
  }
  std::vector<size_t> warps;
  for (size_t warp = 0; warp < threads.size(); warp += 32) warps.push_back(warp);
  do {
    if (order_seed == 1) std::sort(warps.rbegin(), warps.rend());
    if (order_seed > 1) std::shuffle(warps.begin(), warps.end(), random);
    for (const size_t warp : warps) run_warp(warp, random);
  } while (error.empty() && pass_barrier());
  end_block();
}

}  // namespace

const char* message() { return error.c_str(); }
void set_order(unsigned seed) { order_seed = seed; }

void stop(const char* why) {
  fail(why);
  threads[current].state = State::returned;
  for (;;) yield();
}

void fence() {
  release(&fenced);
  acquire(&fenced);
}

void* shared(const void* key, size_t bytes) {
  const size_t before = allocations.size();
  void* memory = allocate(key, bytes);
  if (allocations.size() > before && (static_bytes += bytes) > 48 << 10) {
    stop("more than 48 KB of static shared memory");
  }
  return memory;
}
void* dynamic_shared() { return allocate(&dynamic_key, dynamic_bytes); }

void begin_copy(const Copy& copy) {
  Copies& mine = threads[current].copies;
  if (mine.begun - mine.landed == Copies::most) stop("more asynchronous copies in flight than are simulated");
  Copy& last = mine.pending[mine.begun++ % Copies::most];
  last = copy;
  last.group = mine.group;
}
void end_group() { ++threads[current].copies.group; }
bool next_landing(int groups_left, Copy& copy) {
  Copies& mine = threads[current].copies;
  if (mine.begun == mine.landed) return false;
  const Copy& next = mine.pending[mine.landed % Copies::most];
  if (next.group >= mine.group - groups_left) return false;
  copy = next;
  ++mine.landed;
  return true;
}

void barrier(Site site) {
  Thread& t = threads[current];
  char* tag = &barrier_tag[turn()][barriers_passed % 2];
  release(tag);
  t.state = State::at_barrier;
  t.site = site;
  yield();
  acquire(tag);
}

void meet(unsigned mask, void* payload, Resolve* resolve, bool orders, Site site) {
  Thread& t = threads[current];
  const size_t warp = current / 32;
  char* tag = &warp_tag[turn()][warp][meetings_passed[warp] % 2];
  if (orders) release(tag);
  t.state = State::at_meeting;
  t.site = site;
  t.mask = mask;
  t.payload = payload;
  t.resolve = resolve;
  yield();
  if (orders) acquire(tag);
}

int run(dim3 grid, dim3 block, size_t dynamic, void (*body)(void*), void* closure) {
  error.clear();
  const size_t count = static_cast<size_t>(block.x) * block.y * block.z;
  const size_t blocks = static_cast<size_t>(grid.x) * grid.y * grid.z;
  if (count < 1 || count > 1024 || block.z > 64 || blocks < 1 || grid.x > 0x7fffffff || grid.y > 65535 ||
      grid.z > 65535 || dynamic > 227 << 10) {
    error = "invalid launch configuration";
    return 9;
  }
  if (__sanitizer_start_switch_fiber) stack_bytes = 256 << 10;
  while (fibers.size() < count * fiber_sets()) fibers.push_back(new_fiber());
  threads.assign(count, {});
  gridDim = grid;
  blockDim = block;
  dynamic_bytes = dynamic;
  kernel_body = body;
  kernel_closure = closure;
  if (__tsan_get_current_fiber) scheduler_tsan = __tsan_get_current_fiber();
  std::mt19937 random(order_seed);
  std::vector<size_t> order(blocks);
  for (size_t b = 0; b < blocks; ++b) order[b] = order_seed == 1 ? blocks - 1 - b : b;
  if (order_seed > 1) std::shuffle(order.begin(), order.end(), random);
  release(&launched);
  for (const size_t b : order) {
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    run_block(random);
    if (!error.empty()) break;
  }
  acquire(&finished);
  if (error.empty()) return 0;
  abandon_fibers();
  return 719;
}

}  // namespace sim

// A fiber lives on for thread after thread.
void minidl_fiber_main() {
  using namespace sim;
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
  }
  for (;;) {
    acquire(&launched);
    kernel_body(kernel_closure);
    threads[current].state = State::returned;
    release(&finished);
    yield();
  }
}
