// The nodes of the graph that minidl's operators build. They derive from torch's Node, as those of torch's
// own operators do, and not from torch::autograd::Function: its context, dictionary and bookkeeping of
// outputs take 2 to 3 us a call, which is a small operator's whole time.
#pragma once
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include "checks.h"

namespace minidl {
namespace {

using at::Tensor;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

inline bool has_tangent(const Tensor& x) { return x.defined() && x._fw_grad(/*level=*/0).defined(); }
inline bool has_tangent(const OptionalTensor& x) { return x.has_value() && has_tangent(*x); }

inline bool needs_graph(const Tensor& x) {
  return (x.defined() && at::GradMode::is_enabled() && x.requires_grad()) || has_tangent(x);
}
inline bool needs_graph(const OptionalTensor& x) { return x.has_value() && needs_graph(*x); }

// backward(dy) returns one gradient for each input that link() was given, undefined where it is not
// wanted(i). Where GradMode is on, it computes them from differentiable operators. Else it calls its backward
// operator below autograd: the boxed kernel there, which would refuse a graph, takes 2 us. But it unpacks all
// that is saved first: that may run a forward pass, under torch.utils.checkpoint.
class Node : public torch::autograd::Node {
 public:
  explicit Node(const char* name) : name_(name) {}
  std::string name() const override { return name_; }

  void save_input(const Tensor& x) { saved_.emplace_back(x, /*is_output=*/false); }
  void save_input(const OptionalTensor& x) { saved_.emplace_back(x, /*is_output=*/false); }
  void save_output(const Tensor& y) { saved_.emplace_back(y, /*is_output=*/true); }  // after link()

  variable_list apply(variable_list&& grads) final {
    const std::lock_guard lock(mutex_);
    return grads[0].defined() ? backward(grads[0]) : variable_list(num_outputs());
  }
  void release_variables() override {
    const std::lock_guard lock(mutex_);
    for (auto& saved : saved_) saved.reset_data();
  }

 protected:
  virtual variable_list backward(const Tensor& dy) = 0;
  Tensor saved(size_t i) { return saved_[i].unpack(getptr()); }
  OptionalTensor saved_optional(size_t i) {
    Tensor x = saved(i);
    return x.defined() ? OptionalTensor(std::move(x)) : std::nullopt;
  }
  bool wanted(size_t i) const { return task_should_compute_output(i); }

 private:
  const char* name_;
  std::vector<torch::autograd::SavedVariable> saved_;
};

// A pointer of the kind that this version of torch has: a shared_ptr, before 2.13.
template <class N, class... Args>
auto make_node(Args&&... args) {
  using Pointer = decltype(torch::autograd::Edge::function);
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>) {
    return std::shared_ptr<N>(new N(std::forward<Args>(args)...), [](N* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<N>(std::forward<Args>(args)...);
  }
}

// Makes `node` the origin of y, with an edge to the origin of each of the inputs.
template <class Pointer, class... Inputs>
void link(const Tensor& y, const Pointer& node, const Inputs&... inputs) {
  TORCH_CHECK_NOT_IMPLEMENTED(!(has_tangent(inputs) || ...), "minidl: ", node->name(),
                              " has no forward-mode derivative (jvp)");
  node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  torch::autograd::set_history(y, node);
}

}  // namespace
}  // namespace minidl
