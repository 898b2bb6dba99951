// The table of this instruction set: the only symbol of it that the rest of the project names.
#include "kernels.h"

namespace minidl::MINIDL_ISA {

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

#define MINIDL_STRING_(x) #x
#define MINIDL_STRING(x) MINIDL_STRING_(x)
extern const Kernels kernels;
const Kernels kernels = {MINIDL_STRING(MINIDL_ISA), kernels_of<float>, kernels_of<double>};

}  // namespace minidl::MINIDL_ISA
