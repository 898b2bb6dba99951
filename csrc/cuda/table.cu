// The table of the CUDA kernels.
#include "backend.h"

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

#ifdef MINIDL_FEW_TYPES  // as MINIDL_FOR_EACH_TYPE
const Kernels kernels = {.name = "cuda", .f32 = kernels_of<float>, .f16 = kernels_of<Half>};
#else
const Kernels kernels = {"cuda", kernels_of<float>, kernels_of<double>, kernels_of<Half>,
                         kernels_of<BFloat16>};
#endif

}  // namespace minidl::cuda
