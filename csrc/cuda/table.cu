// The table of the CUDA kernels: the only symbol of csrc/cuda, with backend.cu's, that the rest of the
// project names.
#include "kernels.h"

namespace minidl::cuda {

#define KERNEL(name, ...) \
  template <class T>      \
  void name(__VA_ARGS__);
#include "kernels.def"
#undef KERNEL

namespace {
template <class T>
constexpr KernelsOf<T> kernels_of = {
#define KERNEL(name, ...) .name = name<T>,
#include "kernels.def"
#undef KERNEL
};
}  // namespace

extern const Kernels kernels;
const Kernels kernels = {"cuda", kernels_of<float>, kernels_of<double>, kernels_of<Half>,
                         kernels_of<BFloat16>};

}  // namespace minidl::cuda
