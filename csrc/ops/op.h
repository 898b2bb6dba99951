// What every torch-facing file needs to define an operator. One operator foo is
//   foo            the backend function: check, allocate, stop if meta, launch the kernel. Registered for CPU, CUDA
//                  and Meta, so that fake tensors see the same checks and shapes as real ones.
//   foo_backward   likewise. It is an operator of its own, so that torch.compile can trace it.
//   FooNode        the node of the graph: saves, and calls foo_backward. Under create_graph it computes the same
//                  formula from differentiable operators instead, which makes derivatives of every order right.
//   foo_autograd   what the Autograd key calls: straight on, and if a graph is wanted, a FooNode on top.
#pragma once
#include <ATen/EmptyTensor.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "allocator.h"
#include "checks.h"
#include "dispatch.h"
#include "ops/node.h"
#include "ops/ops.h"

namespace minidl {
namespace {

template <class Signature>
auto find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Defines `schema` with its backend function, and what the Autograd key calls; without the latter,
// differentiating through the operator raises.
template <class Backend>
void define_op(torch::Library& m, const char* name, const std::string& signature, Backend* backend,
               const std::vector<at::Tag>& more_tags = {}) {
  std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  tags.insert(tags.end(), more_tags.begin(), more_tags.end());
  m.def((name + signature).c_str(), std::as_const(tags));
  for (auto key : {c10::DispatchKey::CPU, c10::DispatchKey::CUDA, c10::DispatchKey::Meta}) {
    m.impl(name, torch::dispatch(key, backend));
  }
}
template <class Backend>
void define_op(torch::Library& m, const char* name, const std::string& signature, Backend* backend,
               Backend* autograd, const std::vector<at::Tag>& more_tags = {}) {
  define_op(m, name, signature, backend, more_tags);
  m.impl(name, torch::dispatch(c10::DispatchKey::Autograd, autograd));
}
template <class Backend>
void define_backward_op(torch::Library& m, const char* name, const std::string& signature, Backend* backend) {
  define_op(m, name, signature, backend);
  m.impl(name,
         torch::dispatch(c10::DispatchKey::Autograd, torch::autograd::autogradNotImplementedFallback()));
}

// Uninitialised outputs, in memory from the output allocator where the device is the CPU. Not through
// at::empty: that is an operator too, and its dispatch takes as long as a small kernel.
inline Tensor output(c10::SymIntArrayRef shape, const Tensor& like, at::ScalarType dtype,
                     at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  if (!like.is_cpu()) return at::empty_symint(shape, like.options().dtype(dtype), format);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(shape), output_allocator(),
                                   c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, format);
}
inline Tensor output(c10::SymIntArrayRef shape, const Tensor& like,
                     at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  return output(shape, like, like.scalar_type(), format);
}
// The dtype of Wide<T>, T being x's: of sums and statistics.
inline at::ScalarType wide_dtype(const Tensor& x) {
  const bool half = x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
  return half ? at::kFloat : x.scalar_type();
}
inline Tensor wide_output(c10::SymIntArrayRef shape, const Tensor& like) {
  return like.is_cpu() ? output(shape, like)
                       : at::empty_symint(shape, like.options().dtype(wide_dtype(like)));
}
// With the memory order of x, which must be dense.
inline Tensor output_like(const Tensor& x) {
  if (!x.is_cpu()) return at::empty_like(x);
  return at::detail::empty_strided_generic(x.sizes(), x.strides(), output_allocator(),
                                           c10::DispatchKeySet(c10::DispatchKey::CPU), x.scalar_type());
}

// x itself where its elements lie in one block in some order, else a contiguous copy: what a flat loop can
// walk.
inline Tensor dense(const Tensor& x) { return x.is_non_overlapping_and_dense() ? x : x.contiguous(); }

// x with the memory order of y, which has the same shape.
inline Tensor laid_out_as(const Tensor& x, const Tensor& y) {
  if (x.sym_strides() == y.sym_strides()) return x;
  return at::empty_like(y, x.options()).copy_(x);
}

// Torch's own 16-bit types are others than kernels.h's, with the same bits.
template <class T>
constexpr bool is_half = std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>;

template <class T>
const T* data(const Tensor& x) {
  if constexpr (is_half<T>) {
    return static_cast<const T*>(x.const_data_ptr());
  } else {
    return x.const_data_ptr<T>();
  }
}
template <class T>
const T* data(const OptionalTensor& x) {
  return x.has_value() ? data<T>(*x) : nullptr;
}
template <class T>
T* mutable_data(const Tensor& x) {
  if (!x.defined()) return nullptr;
  if constexpr (is_half<T>) {
    return static_cast<T*>(x.mutable_data_ptr());
  } else {
    return x.mutable_data_ptr<T>();
  }
}

}  // namespace
}  // namespace minidl
