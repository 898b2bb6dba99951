// What the losses share: the reduction, and the shape of what it leaves.
#pragma once
#include "ops/op.h"

namespace minidl {
namespace {

// reduction: torch's numbers, 0 none, 1 mean, 2 sum.
inline Reduction parse_reduction(const char* op, int64_t reduction) {
  TORCH_CHECK_VALUE(reduction >= 0 && reduction <= 2, "minidl::", op,
                    ": reduction must be 0 (none), 1 (mean) or 2 ", "(sum), got ", reduction);
  return static_cast<Reduction>(reduction);
}

// Weights are constants to every loss: a gradient with respect to one is refused, not silently left out.
inline void check_constant(const char* op, const char* argument, const OptionalTensor& x) {
  TORCH_CHECK(!needs_graph(x), "The function 'minidl::", op,
              "' is not differentiable with respect to argument '", argument,
              "'. This input cannot have requires_grad True.");
}

}  // namespace
}  // namespace minidl
