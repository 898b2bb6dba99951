// A training step of a model so small that one thread block can run it, as data: calls of kernels with their
// arguments. The CUDA backend's block_loop() takes it and runs as many steps as it is told to in one launch. On the CPU
// products that are made in parts are such calls too.
#pragma once
#include <tuple>
#include <variant>

#include "kernels.h"

namespace minidl {

// What a parameter group of an optimizer says.
using OptimizerOptions = std::variant<SgdParams, RmspropParams, AdamParams>;
constexpr SgdParams no_options{0, 0, 0, 0, false, false};

// The kernels whose work a block can do: f(name).
#define MINIDL_BLOCK_KERNELS(f)                                                                    \
  f(gemm) f(epilogue_backward) f(activation_forward) f(activation_backward) f(add) f(loss_forward) \
      f(loss_backward) f(cross_entropy_forward) f(cross_entropy_backward)

#define MINIDL_NAME(name) , name
enum class BlockKernel { none MINIDL_BLOCK_KERNELS(MINIDL_NAME) };
#undef MINIDL_NAME

template <class Kernel>
struct ArgumentsOf;
template <class... P>
struct ArgumentsOf<void (*)(P...)> {
  using type = std::tuple<P...>;
};

// The arguments of a call, at the index of its BlockKernel; std::monostate for what is not among them.
#define MINIDL_ARGUMENTS(name) , typename ArgumentsOf<decltype(KernelsOf<T>::name)>::type
template <class T>
using BlockCall = std::variant<std::monostate MINIDL_BLOCK_KERNELS(MINIDL_ARGUMENTS)>;
#undef MINIDL_ARGUMENTS

// A call of `kernel`, if a block can do it.
template <class T, class... P>
BlockCall<T> block_call(void (*KernelsOf<T>::*kernel)(P...), std::type_identity_t<P>... arguments) {
#define MINIDL_TAKE(name)                                                                             \
  if constexpr (std::is_same_v<decltype(kernel), decltype(&KernelsOf<T>::name)>) {                    \
    if (kernel == &KernelsOf<T>::name) {                                                              \
      return BlockCall<T>(std::in_place_index<static_cast<size_t>(BlockKernel::name)>, arguments...); \
    }                                                                                                 \
  }
  MINIDL_BLOCK_KERNELS(MINIDL_TAKE)
#undef MINIDL_TAKE
  return {};
}

// All that a launch is told; it travels as an argument of the kernel, which has room for 32 KiB.
template <class T>
struct BlockLoop {
  static constexpr int most_calls = 64, most_groups = 4, most_rows = 64;

  BlockCall<T> calls[most_calls];
  OptimizerOptions groups[most_groups] = {no_options, no_options, no_options, no_options};
  OptimizerTensor<T> rows[most_rows];  // `first` holds in the first step
  int group_of[most_rows];
  int call_count, row_count;

  // Of x and of y: a batch of rows is copied from the data to where the calls expect it. In whole words.
  struct Part {
    char* batch;
    const char* data;
    int64_t row_bytes;
  };
  Part parts[2];
  const int64_t* order;  // numbers of rows, or nullptr for as they come
  int64_t batch_rows, batches;
  int64_t first, steps;  // step i takes batch i % batches
  const T* loss;
  T* losses;  // of each step from `first` on
};

}  // namespace minidl
