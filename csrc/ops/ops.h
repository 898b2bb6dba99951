// The operators as C++ functions: each goes through torch's dispatcher, so autograd, fake tensors and modes see it.
// Schemas, shapes and errors: csrc/ops/<stem>.cpp. This is what bindings.cpp offers to Python.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

namespace minidl::ops {

at::Tensor activation(const at::Tensor& x, std::string_view name, double alpha, double beta);

double fma_loop(at::ScalarType dtype, int64_t iterations);

}  // namespace minidl::ops
