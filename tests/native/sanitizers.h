// What the sanitizers' runtimes offer, as weak symbols: nullptr in a program that is not linked with that runtime.
// So one object serves every build, and need not be compiled with a sanitizer itself.
#pragma once
#include <cstddef>

extern "C" {
#define WEAK __attribute__((weak))
WEAK void __sanitizer_set_death_callback(void (*)());
WEAK void __asan_poison_memory_region(const volatile void*, size_t);
WEAK void __asan_unpoison_memory_region(const volatile void*, size_t);
WEAK void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
WEAK void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* size);
WEAK void* __tsan_get_current_fiber();
WEAK void* __tsan_create_fiber(unsigned);
WEAK void __tsan_destroy_fiber(void*);
WEAK void __tsan_switch_to_fiber(void*, unsigned);
WEAK void __tsan_acquire(void*);
WEAK void __tsan_release(void*);
WEAK void AnnotateIgnoreReadsBegin(const char*, int);
WEAK void AnnotateIgnoreReadsEnd(const char*, int);
WEAK void AnnotateIgnoreWritesBegin(const char*, int);
WEAK void AnnotateIgnoreWritesEnd(const char*, int);
#undef WEAK
}

namespace {

// May [p, p + n) be touched? AddressSanitizer's answer.
[[maybe_unused]] void forbid(const void* p, size_t n) {
  if (__asan_poison_memory_region) __asan_poison_memory_region(p, n);
}
[[maybe_unused]] void allow(const void* p, size_t n) {
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(p, n);
}

// The calling thread's accesses before release(tag) are ordered before those after acquire(tag).
[[maybe_unused]] void acquire(void* tag) {
  if (__tsan_acquire) __tsan_acquire(tag);
}
[[maybe_unused]] void release(void* tag) {
  if (__tsan_release) __tsan_release(tag);
}

// Not seen by ThreadSanitizer: what a scheduler does for the device, not a thread of a kernel.
template <class F>
void unwatched(F f) {
  if (AnnotateIgnoreReadsBegin) AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  if (AnnotateIgnoreWritesBegin) AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  f();
  if (AnnotateIgnoreWritesEnd) AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  if (AnnotateIgnoreReadsEnd) AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}

}  // namespace
