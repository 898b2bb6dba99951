// In place of the .cu files, in a build without CUDA.
#include "backend.h"

namespace minidl::cuda {

const Kernels kernels = {};

const char* error_name(int) { return ""; }
const char* error_text(int) { return ""; }
template <class T>
void block_loop(const BlockLoop<T>&, Context) {}
template void block_loop(const BlockLoop<float>&, Context);
template void block_loop(const BlockLoop<double>&, Context);
int synchronize(int, void*) { return 0; }

}  // namespace minidl::cuda
