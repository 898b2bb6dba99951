// The operators as C++ functions: each goes through torch's dispatcher, so autograd, fake tensors and modes
// see it. Schemas, shapes and errors: csrc/ops/<stem>.cpp. This is what bindings.cpp offers to Python.
#pragma once
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace minidl::ops {

at::Tensor activation(const at::Tensor& x, std::string_view name, double alpha, double beta);
at::Tensor activation_backward(const at::Tensor& dy, const at::Tensor& saved, std::string_view name,
                               double alpha, double beta);

at::Tensor matmul(const at::Tensor& a, const at::Tensor& b);
at::Tensor linear(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& b,
                  std::string_view activation);

at::Tensor convolution(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& b,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                       bool transposed, at::IntArrayRef output_padding, int64_t groups,
                       std::string_view activation);

at::Tensor loss(const at::Tensor& x, const at::Tensor& t, std::string_view kind, int64_t reduction,
                const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& pos_weight,
                double beta);

at::Tensor softmax(const at::Tensor& x, int64_t dim, bool log);
at::Tensor cross_entropy(const at::Tensor& x, const at::Tensor& target,
                         const std::optional<at::Tensor>& weight, int64_t reduction, int64_t ignore_index,
                         double label_smoothing);
at::Tensor nll_loss(const at::Tensor& x, const at::Tensor& target, const std::optional<at::Tensor>& weight,
                    int64_t reduction, int64_t ignore_index);

at::Tensor batch_norm(const at::Tensor& x, const std::optional<at::Tensor>& w,
                      const std::optional<at::Tensor>& b, const std::optional<at::Tensor>& running_mean,
                      const std::optional<at::Tensor>& running_var, bool training, double momentum,
                      double eps, std::string_view activation);
at::Tensor layer_norm(const at::Tensor& x, c10::SymIntArrayRef normalized_shape,
                      const std::optional<at::Tensor>& w, const std::optional<at::Tensor>& b, double eps,
                      std::string_view activation);
at::Tensor group_norm(const at::Tensor& x, int64_t groups, const std::optional<at::Tensor>& w,
                      const std::optional<at::Tensor>& b, double eps, std::string_view activation);
at::Tensor dropout(const at::Tensor& x, double p, bool channels, std::optional<at::Generator> generator);

at::Tensor max_pool2d(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                      at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode);
std::tuple<at::Tensor, at::Tensor> max_pool2d_with_indices(const at::Tensor& x, at::IntArrayRef kernel_size,
                                                           at::IntArrayRef stride, at::IntArrayRef padding,
                                                           at::IntArrayRef dilation, bool ceil_mode);
at::Tensor avg_pool2d(const at::Tensor& x, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                      at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                      std::optional<int64_t> divisor_override);
at::Tensor adaptive_max_pool2d(const at::Tensor& x, c10::SymIntArrayRef output_size);
std::tuple<at::Tensor, at::Tensor> adaptive_max_pool2d_with_indices(const at::Tensor& x,
                                                                    c10::SymIntArrayRef output_size);
at::Tensor adaptive_avg_pool2d(const at::Tensor& x, c10::SymIntArrayRef output_size);

// Updates in place; `first` holds the positions of the parameters whose momentum buffer is still to be
// initialised.
void sgd_step(at::TensorList params, at::TensorList grads, at::TensorList momentum_buffers,
              at::IntArrayRef first, double lr, double momentum, double dampening, double weight_decay,
              bool nesterov, bool maximize, const std::optional<at::Tensor>& device_lr);
void rmsprop_step(at::TensorList params, at::TensorList grads, at::TensorList square_avgs,
                  at::TensorList momentum_buffers, at::TensorList grad_avgs, at::TensorList steps, double lr,
                  double alpha, double eps, double weight_decay, double momentum, bool centered,
                  bool maximize, const std::optional<at::Tensor>& device_lr);
void adam_step(at::TensorList params, at::TensorList grads, at::TensorList exp_avgs,
               at::TensorList exp_avg_sqs, at::TensorList max_exp_avg_sqs, at::TensorList steps, double lr,
               double beta1, double beta2, double eps, double weight_decay, bool amsgrad,
               bool decoupled_weight_decay, bool maximize, const std::optional<at::Tensor>& device_lr);

// The norm of order p of the list as of one vector, and in-place clipping by it or by value.
at::Tensor total_norm(at::TensorList grads, double p);
void clip_norm(at::TensorList grads, const at::Tensor& norm, double max_norm);
void clip_value(at::TensorList grads, double bound);

double fma_loop(at::ScalarType dtype, int64_t iterations);

}  // namespace minidl::ops
