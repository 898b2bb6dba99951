// What the normalisations share: checks, and the node of the graph. x, w and b are the inputs of all of them,
// and stats, in double, is what the forward pass leaves for the backward pass.
#pragma once
#include <ATen/ExpandUtils.h>

#include "ops/op.h"

namespace minidl {
namespace {

using c10::SymInt;
using SymShape = c10::SymDimVector;

// relu is the one activation whose pass costs nothing within another, either way.
bool fused_relu(const char* op, std::string_view activation) {
  TORCH_CHECK_VALUE(activation == "relu" || activation == "none", "minidl::", op, ": activation '",
                    std::string(activation), "' is not fused; expected none or relu");
  return activation == "relu";
}

// One weight, bias, mean or variance for each channel.
void check_per_channel(const char* op, const char* name, const OptionalTensor& p, const Tensor& x,
                       c10::SymIntArrayRef shape) {
  if (!p.has_value()) return;
  check_same_dtype(op, "input", x, name, *p);
  TORCH_CHECK(p->sym_sizes() == shape, "minidl::", op, ": expected ", name, " of shape ", shape,
              " for input ", x.sym_sizes(), ", but got ", p->sym_sizes());
}

OptionalTensor contiguous(const OptionalTensor& x) {
  return x.has_value() ? OptionalTensor(x->contiguous()) : x;
}

SymInt product(c10::SymIntArrayRef sizes) {
  SymInt n = 1;
  for (const SymInt& size : sizes) n = n * size;
  return n;
}

// dx, dw and db; one that is not wanted is of shape (0).
using Wanted = std::array<bool, 3>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

Gradients gradients_like(const Tensor& x, c10::SymIntArrayRef weight_shape, Wanted wanted) {
  const SymShape none = {0};
  return {wanted[0] ? output_like(x) : output(none, x), output(wanted[1] ? weight_shape : none, x),
          output(wanted[2] ? weight_shape : none, x)};
}

// The kernel's pointers to the gradients.
template <class T>
std::array<T*, 3> wanted_data(const Gradients& g, Wanted wanted) {
  const auto& [dx, dw, db] = g;
  return {wanted[0] ? mutable_data<T>(dx) : nullptr, wanted[1] ? mutable_data<T>(dw) : nullptr,
          wanted[2] ? mutable_data<T>(db) : nullptr};
}

// What a backward operator is given beside the gradient; dy is checked against x.
void check_backward(const char* op, const Tensor& dy, const Tensor& x, const Tensor& stats,
                    c10::SymIntArrayRef stats_shape) {
  check_dtype(op, x);
  check_same_dtype(op, "dy", dy, "input", x);
  check_same_shape(op, "dy", dy, "input", x);
  TORCH_CHECK(stats.scalar_type() == at::kDouble && stats.sym_sizes() == stats_shape, "minidl::", op,
              ": expected float64 stats of shape ", stats_shape, " for input ", x.sym_sizes(), ", but got ",
              stats.scalar_type(), " ", stats.sym_sizes());
}

// The gradients from differentiable operators, for x, w and b in shapes that broadcast, with means over
// `dims` of x. With `stats` mean and rstd do not depend on x.
struct Differentiable {
  Tensor dy, x;
  OptionalTensor w, b;
  at::DimVector dims;
  double eps;
  bool relu;
  std::optional<std::pair<Tensor, Tensor>> stats = {};

  Gradients gradients(Wanted wanted) const {
    const auto mean_of = [&](const Tensor& t) { return t.mean(dims, /*keepdim=*/true); };
    const Tensor centered = x - (stats ? stats->first : mean_of(x));
    const Tensor rstd = stats ? stats->second : (mean_of(centered * centered) + eps).rsqrt();
    const Tensor normalised = centered * rstd;
    Tensor dz = dy;
    if (relu) {
      const Tensor scaled = w ? normalised * *w : normalised;
      dz = dy.masked_fill((b ? scaled + *b : scaled).le(0), 0);
    }
    Gradients result;
    auto& [dx, dw, db] = result;
    if (wanted[0]) {
      const Tensor g = w ? dz * *w : dz;
      dx = stats ? g * rstd : (g - mean_of(g) - normalised * mean_of(g * normalised)) * rstd;
    }
    if (wanted[1]) dw = at::sum_to(dz * normalised, w->sym_sizes());
    if (wanted[2]) db = at::sum_to(dz, b->sym_sizes());
    return result;
  }
};

// What the nodes have in common: the inputs x, w and b, and stats.
class NormNode : public Node {
 public:
  NormNode(const char* name, double eps, std::string_view activation)
      : Node(name), eps_(eps), activation_(activation) {}

  void save(const Tensor& x, const OptionalTensor& w, const OptionalTensor& b, const Tensor& stats) {
    save_input(x);
    save_input(w);
    save_input(b);
    save_input(stats);
    has_weight_ = w.has_value(), has_bias_ = b.has_value();
  }

 protected:
  struct Saved {
    Tensor x, stats;
    OptionalTensor w, b;
  };

  variable_list backward(const Tensor& dy) final {
    const Saved s{saved(0), saved(3), saved_optional(1), saved_optional(2)};
    const Wanted want = {wanted(0), has_weight_ && wanted(1), has_bias_ && wanted(2)};
    if (at::GradMode::is_enabled()) {
      auto [dx, dw, db] = differentiable(dy, s).gradients(want);
      return {want[0] ? dx.view_symint(s.x.sym_sizes()) : Tensor(),
              want[1] ? dw.view_symint(s.w->sym_sizes()) : Tensor(),
              want[2] ? db.view_symint(s.b->sym_sizes()) : Tensor()};
    }
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [dx, dw, db] = call(dy, s, want);
    return {want[0] ? dx : Tensor(), want[1] ? dw : Tensor(), want[2] ? db : Tensor()};
  }
  virtual Gradients call(const Tensor& dy, const Saved& s, Wanted want) const = 0;
  virtual Differentiable differentiable(const Tensor& dy, const Saved& s) const = 0;
  bool relu() const { return activation_ == "relu"; }

  double eps_;
  std::string activation_;

 private:
  bool has_weight_ = false, has_bias_ = false;
};

// Calls the operator below autograd and puts a node on top of its first result, where a graph is wanted.
template <class N, class Call, class... Options>
std::tuple<Tensor, Tensor> with_node(Call call, const Tensor& x, const OptionalTensor& w,
                                     const OptionalTensor& b, Options... options) {
  auto result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call();
  }();
  if (!needs_graph(x) && !needs_graph(w) && !needs_graph(b)) return result;
  const auto& [y, stats] = result;
  const auto node = make_node<N>(options...);
  link(y, node, x, w, b);
  node->save(x, w, b, stats);
  return result;
}

}  // namespace
}  // namespace minidl
