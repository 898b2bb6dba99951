// The product for Hopper, which matmul.cu prefers to its own kernels where it applies.
#pragma once
#include "kernels.h"

namespace minidl::cuda {

// C = epilogue(A B), as gemm of kernels.def with a batch of one, if all of this holds; else false, and nothing is done:
// MINIDL_CUDA_WGMMA=1 in the environment (no GPU has run the kernel yet: tests/gpu/test_cuda.py), a device of
// capability 9.0, operands that are dense and aligned along either index, no activation but relu, and tiles enough to
// fill the device. T is Half or BFloat16.
template <class T>
bool gemm_wgmma(T* c, int64_t ldc, MatrixView<T> a, MatrixView<T> b, int64_t m, int64_t n, int64_t k,
                Epilogue<T> epilogue, const Context& ctx);

}  // namespace minidl::cuda
