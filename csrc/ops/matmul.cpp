#include <ATen/ExpandUtils.h>

#include "ops/activation.h"
#include "ops/autocast.h"

namespace minidl {
namespace {

using c10::SymInt;
using SymShape = c10::SymDimVector;

// ---- matmul ---------------------------------------------------------------------------------------

struct MatmulShape {
  SymShape batch;  // broadcast leading dimensions
  SymInt m, n, k;
  SymShape output(bool keep_row, bool keep_column) const {
    SymShape shape = batch;
    if (keep_row) shape.push_back(m);
    if (keep_column) shape.push_back(n);
    return shape;
  }
};

MatmulShape matmul_shape(const char* op, const Tensor& a, const Tensor& b) {
  check_dtype(op, a);
  check_same_dtype(op, "a", a, "b", b);
  TORCH_CHECK(a.dim() >= 1 && b.dim() >= 1, "minidl::", op,
              ": both arguments need to be at least 1D, but they are ", a.dim(), "D and ", b.dim(), "D");
  const auto a_size = a.sym_sizes(), b_size = b.sym_sizes();
  MatmulShape s;
  s.m = a.dim() == 1 ? SymInt(1) : a_size[a.dim() - 2];
  s.k = a_size.back();
  s.n = b.dim() == 1 ? SymInt(1) : b_size.back();
  const SymInt b_rows = b.dim() == 1 ? b_size[0] : b_size[b.dim() - 2];
  TORCH_CHECK(s.k == b_rows, "minidl::", op, ": mat1 and mat2 shapes cannot be multiplied (", a_size, " and ",
              b_size, ")");
  const auto a_batch = a_size.slice(0, a.dim() < 2 ? 0 : a.dim() - 2);
  const auto b_batch = b_size.slice(0, b.dim() < 2 ? 0 : b.dim() - 2);
  s.batch = at::infer_size_symdimvector(a_batch, b_batch);
  return s;
}

// A matrix, or a batch of them, as its strides say: x or its transpose, without making a view of it.
struct Operand {
  const Tensor& x;
  bool transposed = false;

  int64_t size(int64_t d) const { return x.size(transposed ? -3 - d : d); }
  template <class T>
  MatrixView<T> view() const {
    return {data<T>(x), x.stride(transposed ? -1 : -2), x.stride(transposed ? -2 : -1),
            x.dim() == 3 ? x.stride(0) : 0};
  }
};

// c = epilogue(a b) for matrices, or for batches of matrices; c is contiguous.
void run_gemm(const char* op, const Tensor& c, Operand a, Operand b, const OptionalTensor& bias = {},
              Activation activation = {}) {
  const int64_t batch = a.x.dim() == 3 ? a.x.size(0) : 1, m = a.size(-2), k = a.size(-1), n = b.size(-1);
  launch(op, c, [&](const auto& kernels, auto zero, const Context& ctx) {
    using T = decltype(zero);
    kernels.gemm(mutable_data<T>(c), n, m * n, a.view<T>(), b.view<T>(), batch, m, n, k,
                 Epilogue<T>{data<T>(bias), activation}, ctx);
  });
}

// x as a matrix whose rows are all the vectors of its last dimension.
Tensor as_rows(const Tensor& x) {
  if (x.dim() == 2) return x;
  return x.dim() == 1 ? x.unsqueeze(0) : x.flatten(0, -2);
}

// x as (batch, rows, columns), by view where its strides allow it.
Tensor as_batch(const Tensor& x, at::IntArrayRef batch) {
  at::DimVector shape(batch.begin(), batch.end());
  shape.push_back(x.size(-2));
  shape.push_back(x.size(-1));
  return x.expand(shape).reshape({c10::multiply_integers(batch), x.size(-2), x.size(-1)});
}

Tensor matmul(const Tensor& a_, const Tensor& b_) {
  const MatmulShape s = matmul_shape("matmul", a_, b_);
  Tensor y = output(s.output(a_.dim() > 1, b_.dim() > 1), a_);
  if (y.is_meta()) return y;
  const Tensor b = b_.dim() == 1 ? b_.unsqueeze(1) : b_;
  if (b.dim() == 2 && (a_.dim() <= 2 || a_.is_contiguous())) {  // one b for all: the batch is more rows of a
    run_gemm("matmul", y, {as_rows(a_)}, {b});
  } else {
    const Tensor a = a_.dim() == 1 ? a_.unsqueeze(0) : a_;
    const auto batch = C10_AS_INTARRAYREF_SLOW(s.batch);
    run_gemm("matmul", y, {as_batch(a, batch)}, {as_batch(b, batch)});
  }
  return y;
}

class MatmulNode final : public Node {
 public:
  MatmulNode() : Node("MatmulBackward") {}

 private:
  // With y = a b: da = dy b^T, db = a^T dy. 1-D operands are a row and a column; a b that many a share gets
  // its gradient from one product over all rows.
  variable_list backward(const Tensor& dy_) override {
    const Tensor a_ = saved(0), b_ = saved(1);
    const Tensor a = a_.dim() == 1 ? a_.unsqueeze(0) : a_;
    const Tensor b = b_.dim() == 1 ? b_.unsqueeze(1) : b_;
    Tensor dy = dy_;
    if (b_.dim() == 1) dy = dy.unsqueeze(-1);
    if (a_.dim() == 1) dy = dy.unsqueeze(-2);
    Tensor da, db;
    if (wanted(0)) {
      da = at::sum_to(ops::matmul(dy, b.mT()), a.sym_sizes()).view_symint(a_.sym_sizes());
    }
    if (wanted(1)) {
      db = b.dim() == 2 && a.dim() > 2 ? ops::matmul(as_rows(a).t(), as_rows(dy))
                                       : at::sum_to(ops::matmul(a.mT(), dy), b.sym_sizes());
      db = db.view_symint(b_.sym_sizes());
    }
    return {da, db};
  }
};

Tensor matmul_autograd(const Tensor& a, const Tensor& b) {
  Tensor y = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return ops::matmul(a, b);
  }();
  if (!needs_graph(a) && !needs_graph(b)) return y;
  const auto node = make_node<MatmulNode>();
  link(y, node, a, b);
  node->save_input(a);
  node->save_input(b);
  return y;
}

// ---- linear ---------------------------------------------------------------------------------------

Tensor linear(const Tensor& x, const Tensor& w, const OptionalTensor& b_, std::string_view activation_name) {
  const Activation activation = fused_activation("linear", activation_name);
  check_dtype("linear", x);
  check_same_dtype("linear", "input", x, "weight", w);
  TORCH_CHECK(w.dim() == 2, "minidl::linear: expected weight of shape (out_features, in_features), but got ",
              w.sym_sizes());
  TORCH_CHECK(x.dim() >= 1 && x.sym_sizes().back() == w.sym_size(1),
              "minidl::linear: mat1 and mat2 shapes cannot be multiplied (input ", x.sym_sizes(),
              " and transposed weight ", w.sym_sizes(), ")");
  if (b_.has_value()) {
    check_same_dtype("linear", "input", x, "bias", *b_);
    TORCH_CHECK(b_->dim() == 1 && b_->sym_size(0) == w.sym_size(0),
                "minidl::linear: expected bias of shape (", w.sym_size(0), "), but got ", b_->sym_sizes());
  }
  SymShape shape(x.sym_sizes().begin(), x.sym_sizes().end());
  shape.back() = w.sym_size(0);
  Tensor y = output(shape, x);
  if (y.is_meta()) return y;
  const OptionalTensor b = b_.has_value() ? OptionalTensor(b_->contiguous()) : b_;
  run_gemm("linear", y, {as_rows(x)}, {w, /*transposed=*/true}, b, activation);
  return y;
}

// What linear's gradients are computed from, and which of dx, dw and db are wanted.
using Wanted = std::array<bool, 3>;

// dz = dy * f'(z); dx = dz w, dw = dz^T x, db = column sums of dz. A gradient that is not wanted is left
// empty, of shape (0). y: the output, where there is an activation.
std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& dy_, const Tensor& x_, const Tensor& w,
                                                   const OptionalTensor& y_, std::string_view activation_name,
                                                   Wanted wanted) {
  const char* op = "linear_backward";
  const Activation activation = fused_activation(op, activation_name);
  const bool activated = activation.kind != ActivationKind::none;
  check_dtype(op, dy_);
  check_same_dtype(op, "dy", dy_, "input", x_);
  check_same_dtype(op, "dy", dy_, "weight", w);
  TORCH_CHECK(w.dim() == 2 && x_.dim() >= 1 && dy_.dim() == x_.dim() &&
                  dy_.sym_sizes().slice(0, dy_.dim() - 1) == x_.sym_sizes().slice(0, x_.dim() - 1) &&
                  dy_.sym_sizes().back() == w.sym_size(0) && x_.sym_sizes().back() == w.sym_size(1),
              "minidl::", op, ": dy of shape ", dy_.sym_sizes(), " does not fit input ", x_.sym_sizes(),
              " and weight ", w.sym_sizes());
  TORCH_CHECK(y_.has_value() == activated && (!activated || saves_output(activation.kind)), "minidl::", op,
              ": an output is needed for the activations relu, sigmoid and tanh, and for no other");
  if (activated) {
    check_same_dtype(op, "dy", dy_, "output", *y_);
    check_same_shape(op, "dy", dy_, "output", *y_);
  }
  const auto if_wanted = [&](bool is_wanted, c10::SymIntArrayRef shape) {
    return output(is_wanted ? shape : c10::SymIntArrayRef({0}), dy_);
  };
  Tensor dx = if_wanted(wanted[0], x_.sym_sizes()), dw = if_wanted(wanted[1], w.sym_sizes());
  Tensor db = if_wanted(wanted[2], {w.sym_size(0)});
  if (dx.is_meta()) return {dx, dw, db};

  const Tensor x = as_rows(x_);
  Tensor dz = as_rows(dy_);
  if (activated || wanted[2]) {
    const Tensor dy = dz.contiguous(), y = activated ? y_->contiguous() : Tensor();
    dz = activated ? output(dy.sym_sizes(), dy) : dy;
    launch(op, dy, [&](const auto& k, auto zero, const Context& ctx) {
      using T = decltype(zero);
      k.epilogue_backward(activated ? mutable_data<T>(dz) : nullptr,
                          wanted[2] ? mutable_data<T>(db) : nullptr, data<T>(dy),
                          activated ? data<T>(y) : nullptr, dy.size(0), dy.size(1), activation, ctx);
    });
  }
  if (wanted[0]) run_gemm(op, dx, {dz}, {w});
  if (wanted[1]) run_gemm(op, dw, {dz, /*transposed=*/true}, {x});
  return {dx, dw, db};
}

class LinearNode final : public Node {
 public:
  LinearNode(std::string_view activation, bool has_bias)
      : Node("LinearBackward"), activation_(activation), has_bias_(has_bias) {}

 private:
  variable_list backward(const Tensor& dy) override {
    const Tensor x = saved(0), w = saved(1);
    const OptionalTensor y = saved_optional(2);
    const Wanted want = {wanted(0), wanted(1), has_bias_ && wanted(2)};
    if (at::GradMode::is_enabled()) return differentiable_backward(dy, x, w, y, want);
    static const auto op = find_op<decltype(linear_backward)>("minidl::linear_backward");
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [dx, dw, db] = op.call(dy, x, w, y, activation_, want);
    return {want[0] ? dx : Tensor(), want[1] ? dw : Tensor(), want[2] ? db : Tensor()};
  }

  variable_list differentiable_backward(const Tensor& dy, const Tensor& x, const Tensor& w,
                                        const OptionalTensor& y, Wanted want) const {
    const Activation f = fused_activation("linear", activation_);
    const Tensor dz = y.has_value() ? differentiable_activation_backward(dy, *y, f) : dy;
    const Tensor rows = as_rows(dz);
    return {want[0] ? ops::matmul(dz, w) : Tensor(), want[1] ? ops::matmul(rows.t(), as_rows(x)) : Tensor(),
            want[2] ? rows.sum(0) : Tensor()};
  }

  std::string activation_;
  bool has_bias_;
};

Tensor linear_autograd(const Tensor& x, const Tensor& w, const OptionalTensor& b,
                       std::string_view activation) {
  const bool graph = needs_graph(x) || needs_graph(w) || needs_graph(b);
  const bool activated = activation != "none";
  // Where the derivative needs the input z of the activation, z must exist: two nodes instead of one.
  if (graph && activated && !saves_output(fused_activation("linear", activation).kind)) {
    return ops::activation(linear_autograd(x, w, b, "none"), activation, 0, 0);
  }
  Tensor y = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return ops::linear(x, w, b, activation);
  }();
  if (!graph) return y;
  const auto node = make_node<LinearNode>(activation, b.has_value());
  link(y, node, x, w, b);
  node->save_input(x);
  node->save_input(w);
  activated ? node->save_output(y) : node->save_input(Tensor());
  return y;
}

}  // namespace

Tensor ops::matmul(const Tensor& a, const Tensor& b) {
  static const auto op = find_op<decltype(ops::matmul)>("minidl::matmul");
  return op.call(a, b);
}

Tensor ops::linear(const Tensor& x, const Tensor& w, const OptionalTensor& b, std::string_view activation) {
  static const auto op = find_op<decltype(ops::linear)>("minidl::linear");
  return op.call(x, w, b, activation);
}

TORCH_LIBRARY_FRAGMENT(minidl, m) {
  define_op(m, "matmul", "(Tensor a, Tensor b) -> Tensor", matmul, matmul_autograd);
  define_op(m, "linear", "(Tensor input, Tensor weight, Tensor? bias=None, str activation='none') -> Tensor",
            linear, linear_autograd);
  define_autocast<matmul, Cast::lower>(m, "matmul");
  define_autocast<linear, Cast::lower>(m, "linear");
  define_backward_op(
      m, "linear_backward",
      "(Tensor dy, Tensor input, Tensor weight, Tensor? output, str activation, bool[3] wanted) "
      "-> (Tensor dx, Tensor dw, Tensor db)",
      linear_backward);
}

}  // namespace minidl
