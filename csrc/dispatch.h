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
Context context_for(const at::Tensor& x);

// Calls f(k, T{}, ctx) with k = KernelsOf<T>, the table of x's device for x's dtype, with x's device and
// current stream selected. Call it after every check and allocation, and not at all for meta tensors.
template <class F>
void launch(const char* op, const at::Tensor& x, F f) {
  const c10::OptionalDeviceGuard guard(x.device());
  const Kernels& table = kernels_for(x, op);
  const Context ctx = context_for(x);
  if (x.scalar_type() == at::kFloat) return f(table.f32, float{}, ctx);
  f(table.f64, double{}, ctx);
}

}  // namespace minidl
