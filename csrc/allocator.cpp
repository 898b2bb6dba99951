#include "allocator.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <pthread.h>

#include <bit>
#include <cstdlib>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace minidl {
namespace {

constexpr size_t alignment = 64;
// Smaller blocks stay with malloc, which keeps them itself and is as quick.
constexpr size_t smallest = 32 << 10;
// Enough for the activations and gradients of a model that trains well on a CPU, little on a machine that
// does so.
constexpr size_t default_limit = size_t{1} << 30;

// What stands before every block, in a slot that keeps the block aligned.
struct alignas(alignment) Header {
  size_t capacity;
};

// Eight sizes an octave: at most an eighth of a block is unused, and outputs of nearly equal size share
// blocks.
size_t round_to_class(size_t bytes) {
  const size_t step = std::bit_floor(bytes) / 8;
  return (bytes + step - 1) / step * step;
}

Header* header_of(void* block) { return static_cast<Header*>(block) - 1; }

void release_block(void* block);

class OutputAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < smallest) return c10::GetCPUAllocator()->allocate(bytes);
    const size_t capacity = round_to_class(bytes);
    void* block = take(capacity);
    if (!block) block = fetch(capacity);
    c10::profiledCPUMemoryReporter().New(block, bytes);
    return {block, block, release_block, c10::Device(c10::DeviceType::CPU)};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

  void release(void* block) {
    c10::profiledCPUMemoryReporter().Delete(block);
    const size_t capacity = header_of(block)->capacity;
    std::vector<void*> surplus;
    {
      const std::lock_guard lock(mutex_);
      stats_.in_use -= capacity;
      if (capacity > stats_.limit) {
        surplus.push_back(block);
      } else {
        // The sizes in demand have changed: what is kept makes room, and what is in demand of it comes back.
        if (stats_.kept + capacity > stats_.limit) surplus = drop_all();
        kept_[capacity].push_back(block);
        stats_.kept += capacity;
      }
    }
    give_back(surplus);
  }

  void empty() {
    std::vector<void*> surplus;
    {
      const std::lock_guard lock(mutex_);
      surplus = drop_all();
    }
    give_back(surplus);
  }

  void set_limit(size_t bytes) {
    std::vector<void*> surplus;
    {
      const std::lock_guard lock(mutex_);
      stats_.limit = bytes;
      if (stats_.kept > bytes) surplus = drop_all();
    }
    give_back(surplus);
  }

  MemoryStats stats() {
    const std::lock_guard lock(mutex_);
    return stats_;
  }

  std::mutex& mutex() { return mutex_; }

 private:
  void* take(size_t capacity) {
    const std::lock_guard lock(mutex_);
    const auto found = kept_.find(capacity);
    const bool reuse = found != kept_.end() && !found->second.empty();
    stats_.in_use += capacity;
    ++(reuse ? stats_.reused : stats_.fetched);
    if (!reuse) return nullptr;
    void* block =
        found->second.back();  // the last one freed is the likeliest to be in a cache of the processor
    found->second.pop_back();
    stats_.kept -= capacity;
    return block;
  }

  void* fetch(size_t capacity) {
    void* memory = std::aligned_alloc(alignment, capacity + sizeof(Header));
    if (!memory) {
      empty();  // what is kept may be what is missing
      memory = std::aligned_alloc(alignment, capacity + sizeof(Header));
    }
    if (!memory) {
      const std::lock_guard lock(mutex_);
      stats_.in_use -= capacity;
      --stats_.fetched;
    }
    TORCH_CHECK_WITH(OutOfMemoryError, memory, "minidl: out of memory: cannot allocate ", capacity, " bytes");
    auto* header = static_cast<Header*>(memory);
    header->capacity = capacity;
    return header + 1;
  }

  std::vector<void*> drop_all() {
    std::vector<void*> blocks;
    for (auto& [capacity, kept] : kept_) blocks.insert(blocks.end(), kept.begin(), kept.end());
    kept_.clear();
    stats_.kept = 0;
    return blocks;
  }

  static void give_back(const std::vector<void*>& blocks) {  // without the lock: the system may take its time
    for (void* block : blocks) std::free(header_of(block));
  }

  std::mutex mutex_;
  MemoryStats stats_{.limit = default_limit};
  std::unordered_map<size_t, std::vector<void*>> kept_;
};

// Never destroyed: tensors may outlive every static object. A fork waits until no thread is inside, so that
// the child, which has only the forking thread, finds the cache in order.
OutputAllocator& allocator() {
  static OutputAllocator* const instance = [] {
    auto* made = new OutputAllocator;
    pthread_atfork([] { allocator().mutex().lock(); }, [] { allocator().mutex().unlock(); },
                   [] { allocator().mutex().unlock(); });
    return made;
  }();
  return *instance;
}

void release_block(void* block) { allocator().release(block); }

}  // namespace

c10::Allocator* output_allocator() { return &allocator(); }
MemoryStats memory_stats() { return allocator().stats(); }
void empty_memory_cache() { allocator().empty(); }
void set_memory_limit(size_t bytes) { allocator().set_limit(bytes); }

}  // namespace minidl
