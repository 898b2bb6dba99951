#include <ATen/ExpandUtils.h>

#include "ops/activation.h"
#include "ops/op.h"

namespace minidl {
namespace {

using c10::SymInt;
using SymShape = c10::SymDimVector;

// ---- matmul
// ---------------------------------------------------------------------------------------------------

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

template <class T>
MatrixView<T> view(const Tensor& x) {  // (rows, columns) or (batch, rows, columns)
  return {data<T>(x), x.stride(-2), x.stride(-1), x.dim() == 3 ? x.stride(0) : 0};
}

// c = epilogue(a b) for matrices, or for batches of matrices.
void run_gemm(const char* op, const Tensor& c, const Tensor& a, const Tensor& b, const OptionalTensor& bias,
              Activation activation) {
  const int64_t batch = a.dim() == 3 ? a.size(0) : 1, m = a.size(-2), k = a.size(-1), n = b.size(-1);
  launch(op, a, [&](const auto& kernels, auto zero, const Context& ctx) {
    using T = decltype(zero);
    kernels.gemm(mutable_data<T>(c), n, m * n, view<T>(a), view<T>(b), batch, m, n, k,
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
  const Tensor y = at::empty_symint(s.output(a_.dim() > 1, b_.dim() > 1), a_.options());
  if (y.is_meta()) return y;
  const Tensor b = b_.dim() == 1 ? b_.unsqueeze(1) : b_;
  if (b.dim() == 2 && (a_.dim() <= 2 || a_.is_contiguous())) {  // one b for all: the batch is more rows of a
    run_gemm("matmul", y, as_rows(a_), b, {}, {});
  } else {
    const Tensor a = a_.dim() == 1 ? a_.unsqueeze(0) : a_;
    const auto batch = C10_AS_INTARRAYREF_SLOW(s.batch);
    run_gemm("matmul", y, as_batch(a, batch), as_batch(b, batch), {}, {});
  }
  return y;
}

struct MatmulFunction : torch::autograd::Function<MatmulFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& a, const Tensor& b) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({a, b});
    return ops::matmul(a, b);
  }

  // With y = a b: da = dy b^T, db = a^T dy. 1-D operands are a row and a column; a b that many a share gets
  // its gradient from one product over all rows.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor a = saved[0].dim() == 1 ? saved[0].unsqueeze(0) : saved[0];
    const Tensor b = saved[1].dim() == 1 ? saved[1].unsqueeze(1) : saved[1];
    Tensor dy = grads[0];
    if (saved[1].dim() == 1) dy = dy.unsqueeze(-1);
    if (saved[0].dim() == 1) dy = dy.unsqueeze(-2);
    Tensor da, db;
    if (ctx->needs_input_grad(0)) {
      da = at::sum_to(ops::matmul(dy, b.mT()), a.sym_sizes()).view_symint(saved[0].sym_sizes());
    }
    if (ctx->needs_input_grad(1)) {
      db = b.dim() == 2 && a.dim() > 2 ? ops::matmul(as_rows(a).t(), as_rows(dy))
                                       : at::sum_to(ops::matmul(a.mT(), dy), b.sym_sizes());
      db = db.view_symint(saved[1].sym_sizes());
    }
    return {da, db};
  }
};

Tensor matmul_autograd(const Tensor& a, const Tensor& b) {
  if (needs_graph(a) || needs_graph(b)) return MatmulFunction::apply(a, b);
  at::AutoDispatchBelowADInplaceOrView guard;
  return ops::matmul(a, b);
}

// ---- column_sum
// -----------------------------------------------------------------------------------------------

Tensor column_sum(const Tensor& x_) {
  check_dtype("column_sum", x_);
  TORCH_CHECK(x_.dim() == 2, "minidl::column_sum: expected a matrix, but got shape ", x_.sym_sizes());
  const Tensor y = at::empty_symint({x_.sym_size(1)}, x_.options());
  if (y.is_meta()) return y;
  const Tensor x = x_.contiguous();
  launch("column_sum", x, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.column_sum(mutable_data<T>(y), data<T>(x), x.size(0), x.size(1), ctx);
  });
  return y;
}

Tensor call_column_sum(const Tensor& x) {
  static const auto op = find_op<decltype(column_sum)>("minidl::column_sum");
  return op.call(x);
}

// ---- linear
// ---------------------------------------------------------------------------------------------------

// Only activations without parameters: linear has no arguments for them.
Activation fused_activation(std::string_view name) {
  const Activation f = parse_activation("linear", name);
  TORCH_CHECK_VALUE(f.kind != ActivationKind::leaky_relu && f.kind != ActivationKind::softplus,
                    "minidl::linear: activation '", std::string(name),
                    "' has parameters and is not fused; apply it to the result");
  return f;
}

Tensor linear(const Tensor& x, const Tensor& w, const OptionalTensor& b_, std::string_view activation_name) {
  const Activation activation = fused_activation(activation_name);
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
  const Tensor y = at::empty_symint(shape, x.options());
  if (y.is_meta()) return y;
  const OptionalTensor b = b_.has_value() ? OptionalTensor(b_->contiguous()) : b_;
  run_gemm("linear", y, as_rows(x), w.t(), b, activation);
  return y;
}

struct LinearFunction : torch::autograd::Function<LinearFunction> {
  // Saves x, w, y if the activation's derivative needs it, and b only to remember that there is one.
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w, const OptionalTensor& b,
                        std::string_view activation) {
    at::AutoDispatchBelowADInplaceOrView guard;
    Tensor y = ops::linear(x, w, b, activation);
    variable_list saved = {x, w, activation == "none" ? Tensor() : y};
    if (b.has_value()) saved.push_back(*b);
    ctx->save_for_backward(std::move(saved));
    if (activation != "none") ctx->saved_data["activation"] = std::string(activation);
    return y;
  }

  // dz = dy * f'(z); dx = dz w, dw = dz^T x, db = column sums of dz: each only if it is wanted.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &w = saved[1], &y = saved[2];
    const bool has_bias = saved.size() == 4;  // without one, needs_input_grad has no third input to ask about
    const bool differentiable = at::GradMode::is_enabled();
    Tensor dz = grads[0];
    if (y.defined()) {
      const std::string name = ctx->saved_data["activation"].toStringRef();
      dz = differentiable ? differentiable_activation_backward(dz, y, parse_activation("linear", name))
                          : ops::activation_backward(dz, y, name, 0, 0);
    }
    const Tensor dz_rows = as_rows(dz);
    Tensor dx, dw, db;
    if (ctx->needs_input_grad(0)) dx = ops::matmul(dz, w);
    if (ctx->needs_input_grad(1)) dw = ops::matmul(dz_rows.t(), as_rows(x));
    if (has_bias && ctx->needs_input_grad(2)) db = differentiable ? dz_rows.sum(0) : call_column_sum(dz_rows);
    return {dx, dw, db, {}};
  }
};

Tensor linear_autograd(const Tensor& x, const Tensor& w, const OptionalTensor& b,
                       std::string_view activation) {
  if (needs_graph(x) || needs_graph(w) || needs_graph(b)) {
    // Where the derivative needs the input z of the activation, z must exist: two nodes instead of one.
    if (activation == "none" || saves_output(fused_activation(activation).kind)) {
      return LinearFunction::apply(x, w, b, activation);
    }
    return ops::activation(LinearFunction::apply(x, w, b, std::string_view("none")), activation, 0, 0);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return ops::linear(x, w, b, activation);
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
  define_backward_op(m, "column_sum", "(Tensor x) -> Tensor", column_sum);
}

}  // namespace minidl
