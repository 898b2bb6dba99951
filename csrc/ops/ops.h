// The operators as C++ functions: each goes through torch's dispatcher, so autograd, fake tensors and modes see it.
// Schemas, shapes and errors: csrc/ops/<stem>.cpp. This is what bindings.cpp offers to Python.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

namespace minidl::ops {

at::Tensor activation(const at::Tensor& x, std::string_view name, double alpha, double beta);

// Updates in place; `first` holds the positions of the parameters whose momentum buffer is still to be
// initialised.
void sgd_step(at::TensorList params, at::TensorList grads, at::TensorList momentum_buffers,
              at::IntArrayRef first, double lr, double momentum, double dampening, double weight_decay,
              bool nesterov, bool maximize);
void rmsprop_step(at::TensorList params, at::TensorList grads, at::TensorList square_avgs,
                  at::TensorList momentum_buffers, at::TensorList grad_avgs, at::TensorList steps, double lr,
                  double alpha, double eps, double weight_decay, double momentum, bool centered,
                  bool maximize);
void adam_step(at::TensorList params, at::TensorList grads, at::TensorList exp_avgs,
               at::TensorList exp_avg_sqs, at::TensorList max_exp_avg_sqs, at::TensorList steps, double lr,
               double beta1, double beta2, double eps, double weight_decay, bool amsgrad,
               bool decoupled_weight_decay, bool maximize);

double fma_loop(at::ScalarType dtype, int64_t iterations);

}  // namespace minidl::ops
