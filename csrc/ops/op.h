// What every torch-facing file needs to define an operator. One operator foo is
//   foo            the backend function: check, allocate, stop if meta, launch the kernel. Registered for
//   CPU, CUDA
//                  and Meta, so that fake tensors see the same checks and shapes as real ones.
//   foo_backward   likewise. It is an operator of its own, so that torch.compile can trace it.
//   FooFunction    saves, and calls foo_backward. Under create_graph it computes the same formula from
//                  differentiable operators instead, which makes derivatives of every order right.
//   foo_autograd   what the Autograd key calls: FooFunction if a graph is wanted, else straight on.
#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "checks.h"
#include "dispatch.h"
#include "ops/ops.h"

namespace minidl {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

template <class Signature>
auto find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Defines `schema` with its backend function, and what the Autograd key calls; without the latter,
// differentiating through the operator raises.
template <class Backend>
void define_op(torch::Library& m, const char* name, const std::string& signature, Backend* backend) {
  m.def((name + signature).c_str(), {at::Tag::pt2_compliant_tag});
  for (auto key : {c10::DispatchKey::CPU, c10::DispatchKey::CUDA, c10::DispatchKey::Meta}) {
    m.impl(name, torch::dispatch(key, backend));
  }
}
template <class Backend>
void define_op(torch::Library& m, const char* name, const std::string& signature, Backend* backend,
               Backend* autograd) {
  define_op(m, name, signature, backend);
  m.impl(name, torch::dispatch(c10::DispatchKey::Autograd, autograd));
}
template <class Backend>
void define_backward_op(torch::Library& m, const char* name, const std::string& signature, Backend* backend) {
  define_op(m, name, signature, backend);
  m.impl(name,
         torch::dispatch(c10::DispatchKey::Autograd, torch::autograd::autogradNotImplementedFallback()));
}

inline bool needs_graph(const Tensor& x) {
  return x.defined() && ((at::GradMode::is_enabled() && x.requires_grad()) || x._fw_grad(0).defined());
}
inline bool needs_graph(const OptionalTensor& x) { return x.has_value() && needs_graph(*x); }

// x itself where its elements lie in one block in some order, else a contiguous copy: what a flat loop can
// walk.
inline Tensor dense(const Tensor& x) { return x.is_non_overlapping_and_dense() ? x : x.contiguous(); }

// x with the memory order of y, which has the same shape.
inline Tensor laid_out_as(const Tensor& x, const Tensor& y) {
  if (x.sym_strides() == y.sym_strides()) return x;
  return at::empty_like(y, x.options()).copy_(x);
}

template <class T>
const T* data(const Tensor& x) {
  return x.const_data_ptr<T>();
}
template <class T>
const T* data(const OptionalTensor& x) {
  return x.has_value() ? x->const_data_ptr<T>() : nullptr;
}
template <class T>
T* mutable_data(const Tensor& x) {
  return x.defined() ? x.mutable_data_ptr<T>() : nullptr;
}

}  // namespace
}  // namespace minidl
