// How a fiber gives the processor to another. minidl_switch_stack(from, to) pushes the registers that a
// function must keep, stores the stack's pointer in *from, and goes on where `to` left off. A new stack
// begins with a frame that returns into minidl_fiber_entry.
#include <cstddef>

#if defined(__x86_64__)
asm(R"(
.text
.globl minidl_switch_stack, minidl_fiber_entry
minidl_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
minidl_fiber_entry:
  xorl %ebp, %ebp
  call minidl_fiber_main
  ud2
)");
#define ENTRY_WORD 6
#define FRAME_WORDS 9
#elif defined(__aarch64__)
asm(R"(
.text
.globl minidl_switch_stack, minidl_fiber_entry
minidl_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
minidl_fiber_entry:
  mov x29, #0
  bl minidl_fiber_main
  brk #1
)");
#define ENTRY_WORD 11
#define FRAME_WORDS 20
#else
#error "the simulator switches stacks on x86-64 and arm64 only"
#endif

// Of that first frame: where the address of minidl_fiber_entry stands, and how long it is.
extern "C" {
extern const size_t minidl_entry_word, minidl_frame_words;
const size_t minidl_entry_word = ENTRY_WORD, minidl_frame_words = FRAME_WORDS;
}
