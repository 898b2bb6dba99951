// From a tensor to the table that computes it. The only place of the project that asks which device a tensor
// is on and which instructions the machine has.
#pragma once
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include <string>
#include <vector>

#include "kernels.h"

namespace minidl {

// The tables this machine can run, slowest first, and the one in use. Set by MINIDL_ISA in the environment at
// import, or by set_isa; otherwise the fastest. set_isa throws ValueError for one that is not available.
std::vector<std::string> available_isas();
std::string isa();
void set_isa(const std::string& name);

// The table for tensors on x's device; NotImplementedError, naming op, where there is none.
const Kernels& kernels_for(const at::Tensor& x, const char* op);
// *error: where a kernel leaves the code of what failed.
Context context_for(const at::Tensor& x, int* error);
// After a kernel on another device than the CPU: gives its workspace back, and throws AcceleratorError,
// naming op and the shape of x, for an error.
void finish_launch(const at::Tensor& x, const char* op, const Context& ctx);

// Calls f(k, T{}, ctx) with k = KernelsOf<T>, the table of x's device for x's dtype, with x's device and
// current stream selected. Call it after every check and allocation, and not at all for meta tensors.
template <class F>
void launch(const char* op, const at::Tensor& x, F f) {
  const c10::OptionalDeviceGuard guard(x.device());
  const Kernels& table = kernels_for(x, op);
  int error = 0;
  const Context ctx = context_for(x, &error);
  switch (x.scalar_type()) {
    case at::kFloat:
      f(table.f32, float{}, ctx);
      break;
    case at::kHalf:
      f(table.f16, Half{}, ctx);
      break;
    case at::kBFloat16:
      f(table.bf16, BFloat16{}, ctx);
      break;
    default:
      f(table.f64, double{}, ctx);
  }
  if (!x.is_cpu()) finish_launch(x, op, ctx);
}

}  // namespace minidl
