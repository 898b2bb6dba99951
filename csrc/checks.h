// One wording for every error, raised before anything is written, with the exception type that torch raises.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>

namespace minidl {

// Half precision is CUDA's; a fake tensor does not say here which device it stands for.
inline void check_dtype(const char* op, const at::Tensor& x) {
  const at::ScalarType dtype = x.scalar_type();
  const bool half = dtype == at::kHalf || dtype == at::kBFloat16;
  TORCH_CHECK_NOT_IMPLEMENTED(
      dtype == at::kFloat || dtype == at::kDouble || (half && !x.is_cpu()), "minidl::", op,
      " is implemented for float32 and float64, and on CUDA for float16 and bfloat16, ", "not for ", dtype,
      " on ", x.device());
  TORCH_CHECK_NOT_IMPLEMENTED(x.layout() == at::kStrided, "minidl::", op,
                              " needs a dense tensor, got layout ", x.layout());
}

inline void check_same_dtype(const char* op, const char* x_name, const at::Tensor& x, const char* y_name,
                             const at::Tensor& y) {
  TORCH_CHECK(x.scalar_type() == y.scalar_type(), "minidl::", op, ": expected ", x_name, " and ", y_name,
              " to have the same dtype, but got ", x.scalar_type(), " and ", y.scalar_type());
  TORCH_CHECK(x.device() == y.device(), "minidl::", op, ": expected ", x_name, " and ", y_name,
              " to be on the same device, but got ", x.device(), " and ", y.device());
}

inline bool same_shape(const at::Tensor& x, const at::Tensor& y) {
  const bool symbolic = x.unsafeGetTensorImpl()->has_symbolic_sizes_strides() ||
                        y.unsafeGetTensorImpl()->has_symbolic_sizes_strides();
  return symbolic ? x.sym_sizes() == y.sym_sizes() : x.sizes() == y.sizes();  // the latter takes a tenth
}

inline void check_same_shape(const char* op, const char* x_name, const at::Tensor& x, const char* y_name,
                             const at::Tensor& y) {
  TORCH_CHECK(same_shape(x, y), "minidl::", op, ": expected ", x_name, " and ", y_name,
              " to have the same shape, but got ", x.sym_sizes(), " and ", y.sym_sizes());
}

}  // namespace minidl
