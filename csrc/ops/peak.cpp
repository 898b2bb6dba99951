#include <ATen/ops/empty.h>

#include "checks.h"
#include "dispatch.h"
#include "ops/ops.h"

namespace minidl {

double ops::fma_loop(at::ScalarType dtype, int64_t iterations) {
  const at::Tensor of_dtype = at::empty({0}, dtype);
  check_dtype("fma_loop", of_dtype);
  TORCH_CHECK_VALUE(iterations >= 0, "minidl::fma_loop: iterations must not be negative, got ", iterations);
  double operations = 0;
  launch("fma_loop", of_dtype,
         [&](const auto& k, auto, const Context& ctx) { k.fma_loop(&operations, iterations, ctx); });
  return operations;
}

}  // namespace minidl
