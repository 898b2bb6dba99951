// The operators as C++ functions: each goes through torch's dispatcher, so autograd, fake tensors and modes see it.
// Schemas, shapes and errors: csrc/ops/<stem>.cpp. This is what bindings.cpp offers to Python.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

namespace minidl::ops {

at::Tensor activation(const at::Tensor& x, std::string_view name, double alpha, double beta);
at::Tensor activation_backward(const at::Tensor& dy, const at::Tensor& saved, std::string_view name, double alpha,
                               double beta);

at::Tensor matmul(const at::Tensor& a, const at::Tensor& b);
at::Tensor linear(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& b,
                  std::string_view activation);

double fma_loop(at::ScalarType dtype, int64_t iterations);

}  // namespace minidl::ops
