// The activations by name, as operators carry them: shared by ops/activation.cpp and the epilogue in
// ops/matmul.cpp.
#pragma once
#include <ATen/core/Tensor.h>

#include <string_view>

#include "kernels.h"

namespace minidl {

Activation parse_activation(const char* op, std::string_view name, double alpha = 0, double beta = 0);

// One that is computed in the pass of another operator: none that has parameters, for which there are no
// arguments.
Activation fused_activation(const char* op, std::string_view name);

// Whether the derivative is computed from the output (relu, sigmoid, tanh) or from the input (the others).
bool saves_output(ActivationKind kind);

// dy * f'(.) from differentiable operators, for derivatives of higher order. saved: as saves_output says.
at::Tensor differentiable_activation_backward(const at::Tensor& dy, const at::Tensor& saved, Activation f);

}  // namespace minidl
