// Memory for the outputs of minidl's operators. A fresh page costs a page fault (2 us for 4 KB), and above
// some size malloc gives every freed block back to the system: a large output is then all faults, however
// fast its kernel. So freed blocks are kept, up to a limit, and given out again.
//
// The cache shows in nothing but speed and resident memory: tensors own their blocks as usual, on any thread,
// and a block returns when the last tensor on it dies.
#pragma once
#include <c10/core/Allocator.h>

#include <cstddef>
#include <cstdint>

namespace minidl {

// What outputs on the CPU are allocated with. Thread-safe, fork-safe; 64-byte aligned.
c10::Allocator* output_allocator();

struct MemoryStats {
  size_t limit;     // bytes that may be kept
  size_t kept;      // bytes kept now, in no tensor
  size_t in_use;    // bytes in tensors, of blocks that will be kept
  int64_t reused;   // allocations served from the cache
  int64_t fetched;  // allocations served by the system
};
MemoryStats memory_stats();

// Gives all kept blocks back to the system.
void empty_memory_cache();

// Sets the limit; what is kept beyond it is given back. 0 turns the cache off.
void set_memory_limit(size_t bytes);

}  // namespace minidl
