// Every kernel of every table against the scalar table, without torch: so that kernels run under sanitizers,
// and the NEON table under an emulator.
//
// Every buffer ends where its last page ends, and the page after it may not be touched: a lane too far is a
// crash even where AddressSanitizer does not look, for it does not instrument masked loads and stores.
#pragma once
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "sanitizers.h"
#ifdef MINIDL_SIM
#include "cuda_sim.h"  // then one of the tables is CUDA's, on the simulator of tests/sim
#endif

using namespace minidl;

namespace {

std::vector<const Kernels*> tables;
int64_t comparisons = 0, one_in = 1;
std::map<std::string, int64_t> cases;  // of each kernel
std::string kernel_now, size_now, wanted;
const char *table_now = "", *dtype_now = "";
unsigned orders[2] = {0, 1};  // of the simulator's threads, for one range and for three
int ranges_now = 1, workspaces_now = 0, error_now = 0;

// Of a kernel's cases one in `one_in` is run: of few, the second, since the first is often empty.
bool passed_over(const std::string& kernel) { return cases[kernel]++ % one_in != 1 % one_in; }

void say_where() {
  std::fprintf(stderr, "kernel %s, table %s, %s, %s, in %d range(s)\n", kernel_now.c_str(), table_now,
               dtype_now, size_now.c_str(), ranges_now);
}
[[noreturn]] void fail(const std::string& why) {
  std::fprintf(stderr, "%s: ", why.c_str());
  say_where();
  std::_Exit(1);
}

class Memory {
 public:
  explicit Memory(size_t bytes, size_t alignment = 1) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    while (capacity_ < bytes + alignment) capacity_ = capacity_ ? 2 * capacity_ : page;
    if (std::vector<char*>& unused = pool()[capacity_]; !unused.empty()) {
      pages_ = unused.back();
      unused.pop_back();
    } else {
      void* mapped =
          mmap(nullptr, capacity_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (mapped == MAP_FAILED) fail("no memory");
      pages_ = static_cast<char*>(mapped);
      mprotect(pages_ + capacity_, page, PROT_NONE);
    }
    const size_t offset = (capacity_ - bytes) / alignment * alignment;
    data = pages_ + offset;
    forbid(pages_, offset);
    forbid(data + bytes, capacity_ - offset - bytes);
  }
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept { return swap(other), *this; }
  ~Memory() {
    if (!pages_) return;
    allow(pages_, capacity_);
    pool()[capacity_].push_back(pages_);
  }
  char* data = nullptr;

 private:
  void swap(Memory& other) {
    std::swap(pages_, other.pages_), std::swap(capacity_, other.capacity_), std::swap(data, other.data);
  }
  static std::map<size_t, std::vector<char*>>& pool() {
    static auto& all = *new std::map<size_t, std::vector<char*>>;  // outlives every Memory
    return all;
  }
  char* pages_ = nullptr;
  size_t capacity_ = 0;
};

template <class T>
struct Buffer {
  int64_t n;
  Memory memory;
  explicit Buffer(int64_t size) : n(size), memory(static_cast<size_t>(size) * sizeof(T)) {}
  T* data() const { return reinterpret_cast<T*>(memory.data); }
  T* begin() const { return data(); }
  T* end() const { return data() + n; }
};

double uniform() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(state >> 11) * 0x1p-53;
}
// Uniform in [low, high); with `special`, one in four is a number at which kernels take another path.
template <class T>
Buffer<T> random(int64_t n, double low = -3, double high = 3, bool special = false) {
  const double odd[] = {0, -0.0, INFINITY, -INFINITY, NAN, 1e-40, 1e-310, -1e30, 100, -100, 1, -1, 0.5};
  Buffer<T> x(n);
  for (T& v : x) v = static_cast<T>(low + (high - low) * uniform());
  for (T& v : x) {
    if (special && uniform() < 0.25) v = static_cast<T>(odd[static_cast<int>(13 * uniform())]);
  }
  return x;
}

bool on_cuda() { return table_now == std::string("cuda"); }

// After a kernel: whether its launches went well.
void check_launches() {
#ifdef MINIDL_SIM
  if (error_now) fail(sim::message());
#endif
}

template <class T>
const KernelsOf<T>& of(const Kernels& table) {
  if constexpr (sizeof(T) == 4)
    return table.f32;
  else
    return table.f64;
}
template <class T>
bool same(T a, T b) {
  return a == b || (a != a && b != b);
}
template <class T>
bool close(T a, T b, double scale = 1) {
  return same(a, b) || std::abs(a - b) <= (sizeof(T) == 4 ? 2e-5 : 1e-13) * (scale + std::abs(b));
}
template <class... Numbers>
std::string sizes(const char* names, Numbers... numbers) {
  char text[200];
  std::snprintf(text, sizeof text, names, static_cast<long>(numbers)...);
  return text;
}

template <class T>
struct Output {
  int64_t n;
  const T* start = nullptr;  // what it holds before the call
  // Of the error, where the CPU's tables add up many numbers in T in one order, and CUDA in another or in
  // double.
  double cuda_scale = 1;
};

// run(kernels, context, outputs) on every table: the scalar table's numbers, and the same bits in one range
// and three.
template <class T, class F>
void check(const char* kernel, const std::string& size, const std::vector<Output<T>>& outputs, F run) {
  if (passed_over(kernel)) return;
  kernel_now = kernel, size_now = size, dtype_now = sizeof(T) == 4 ? "float" : "double";
  const auto on = [&](const Kernels& table, int ranges, T fill) {
    table_now = table.name, ranges_now = ranges, workspaces_now = 0;
    std::vector<Buffer<T>> buffers;
    std::vector<T*> out;
    for (const Output<T>& o : outputs) {
      buffers.emplace_back(o.n);
      out.push_back(buffers.back().data());
      o.start ? (void)std::copy_n(o.start, o.n, out.back()) : (void)std::fill_n(out.back(), o.n, fill);
    }
#ifdef MINIDL_SIM
    sim::set_order(orders[ranges > 1]);
    error_now = 0;
#endif
    run(of<T>(table), Context{.error = &error_now, .threads = ranges, .workspace = thread_workspace},
        out.data());
    check_launches();
    return buffers;
  };
  // Another filling each time, so that what no call writes is a disagreement.
  const auto expected = on(*tables[0], 1, T(7));
  for (const Kernels* table : tables) {
    const auto mine = table == tables[0] ? decltype(expected)() : on(*table, 1, T(-3));
    const auto &once = mine.empty() ? expected : mine, split = on(*table, 3, T(-5));
    for (size_t o = 0; o < outputs.size(); ++o) {
      for (int64_t i = 0; i < outputs[o].n; ++i) {
        const T a = once[o].data()[i], b = split[o].data()[i], e = expected[o].data()[i];
        if (same(a, b) && close(a, e, on_cuda() ? outputs[o].cuda_scale : 1)) continue;
        char what[200];
        std::snprintf(what, sizeof what,
                      "output %zu [%ld] is %.17g in one range, %.17g in three, %.17g by scalar", o,
                      static_cast<long>(i), double(a), double(b), double(e));
        fail(what);
      }
    }
    ++comparisons;
  }
}
#define RUN [&](const auto& k, Context ctx, auto* o)

}  // namespace

namespace minidl {

// One range after another, the last first: none may wait for another's result. Small work is cut as well.
void parallel_ranges(int64_t n, int64_t, void (*body)(void*, int64_t, int64_t), void* args) {
  for (int64_t r = ranges_now; r-- > 0;) {
    const int64_t begin = n * r / ranges_now, end = n * (r + 1) / ranges_now;
    if (begin < end) body(args, begin, end);
  }
}

void* thread_workspace(size_t bytes) {
  static Memory memory(0);
  if (++workspaces_now > 1) fail("a kernel asked for its workspace twice");
  memory = Memory(bytes, 64);
  std::memset(memory.data, 0xff, bytes);  // NaN: it is given uninitialised
  return memory.data;
}

}  // namespace minidl
