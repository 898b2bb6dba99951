// What csrc/dispatch needs of the CUDA backend. backend.cu says it; in a build without CUDA, missing.cpp.
#pragma once
#include "step/block_step.h"

namespace minidl::cuda {

// kernels.name is nullptr where this build has no CUDA kernels.
extern const Kernels kernels;

// The name and meaning of an error code of a Context.
const char* error_name(int code);
const char* error_text(int code);

// Training steps of a small model in one launch of one block; for T = float and double.
template <class T>
void block_loop(const BlockLoop<T>& loop, Context ctx);

// Waits for all that was launched, unless the stream is being captured into a graph. An error code or 0.
int synchronize(int device, void* stream);

}  // namespace minidl::cuda
