// In-place updates of lists of parameters, and clipping of lists of gradients. Unlike the other operators
// these have no derivative: under grad mode they raise for tensors that require one.
#include <cmath>

#include "ops/tensor_list.h"

namespace minidl {
namespace {

// One tensor a parameter, if the options at hand use it.
struct StateList {
  const char* name;
  TensorList tensors;
  bool used = false;
};

// The lists of one update: row i of each belongs to parameter i.
struct Update {
  const char* op;
  TensorList params, grads;
  std::array<StateList, 3> state;  // in the order of OptimizerTensor::state
  StateList steps = {};            // 0-d tensors that count the updates, on the CPU or on the params' device
  OptionalTensor device_lr = {};   // in place of the number, where it is on the params' device
};

void check_written(const char* op, const Tensor& param, const char* name, const Tensor& x) {
  check_same_dtype(op, "param", param, name, x);
  check_same_shape(op, "param", param, name, x);
  check_writable(x);
}

void check_gradient(const char* op, const Tensor& param, const Tensor& grad) {
  check_dtype(op, param);
  check_same_dtype(op, "param", param, "grad", grad);
  check_same_shape(op, "param", param, "grad", grad);
}

void check_scalar(const char* op, const char* name, const Tensor& x, at::Device device) {
  TORCH_CHECK(x.numel() == 1 && (x.is_cpu() || x.is_meta() || x.device() == device) &&
                  (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble),
              "minidl::", op, ": expected ", name,
              " to be a float32 or float64 CPU tensor of one element, or one on the params' device, but got ",
              x.scalar_type(), " of shape ", x.sizes(), " on ", x.device());
}

void check_length(const Update& u, const StateList& list) {
  TORCH_CHECK(!list.used || list.tensors.size() == u.params.size(), "minidl::", u.op, ": expected one ",
              list.name, " for each of the ", u.params.size(), " params, but got ", list.tensors.size());
}

// Everything that can be wrong, before anything is written.
void check(const Update& u) {
  check_length(u, {"grad", u.grads, true});
  for (const StateList& s : u.state) check_length(u, s);
  check_length(u, u.steps);
  check_one_device(u.op, "params", u.params);
  for (size_t i = 0; i < u.params.size(); ++i) {
    check_gradient(u.op, u.params[i], u.grads[i]);
    check_writable(u.params[i]);
    for (const StateList& s : u.state) {
      if (s.used) check_written(u.op, u.params[i], s.name, s.tensors[i]);
    }
  }
  if (u.params.empty()) return;
  for (const Tensor& step : u.steps.tensors) check_scalar(u.op, "step", step, u.params[0].device());
  if (u.device_lr) check_scalar(u.op, "device_lr", *u.device_lr, u.params[0].device());
}

// The step number of this update, counted in place on the CPU.
double count_step(const Tensor& step) {
  if (step.scalar_type() == at::kDouble) return *step.mutable_data_ptr<double>() += 1;
  return *step.mutable_data_ptr<float>() += 1;
}

// The row of pointers of parameter i.
template <class T>
OptimizerTensor<T> row(const Update& u, size_t i, Walkable& walkable) {
  const Tensor& p = walkable.written(u.params[i]);
  OptimizerTensor<T> row = {
      .p = mutable_data<T>(p), .g = data<T>(walkable.read(u.grads[i], p)), .n = p.numel()};
  for (size_t k = 0; k < u.state.size(); ++k) {
    if (u.state[k].used) row.state[k] = mutable_data<T>(walkable.written(u.state[k].tensors[i], p));
  }
  if (u.steps.used && !u.steps.tensors[i].is_cpu()) {
    row.step = mutable_data<float>(walkable.as_float(u.steps.tensors[i]));
  }
  return row;
}

// Checks, then calls prepare(row, i) for each parameter and step(k, rows, count, lr, ctx) for each batch.
template <class Prepare, class Step>
void update(const Update& u, double lr, Prepare prepare, Step step) {
  check(u);
  if (u.params.empty() || u.params[0].is_meta()) return;
  const bool lr_there = u.device_lr && !u.device_lr->is_cpu();
  const OptionalTensor in_double = lr_there ? OptionalTensor(u.device_lr->to(at::kDouble)) : std::nullopt;
  const LearningRate rate(u.device_lr && !lr_there ? u.device_lr->item().toDouble() : lr,
                          data<double>(in_double));
  launch_batches(u.op, u.params, [&](const auto& batch, const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    Walkable walkable;
    ShortList<OptimizerTensor<T>> rows;
    for (const size_t i : batch) {
      rows.push_back(row<T>(u, i, walkable));
      prepare(rows.back(), i);
    }
    step(k, rows.data(), std::ssize(rows), rate, ctx);
    walkable.finish();
  });
  bump_versions(u.params);
  for (const StateList& s : u.state) {
    if (s.used) bump_versions(s.tensors);
  }
  bump_versions(u.steps.tensors);
}

void sgd_step(TensorList params, TensorList grads, TensorList momentum_buffers, at::IntArrayRef first,
              double lr, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
              const OptionalTensor& device_lr) {
  const Update u = {.op = "sgd_step",
                    .params = params,
                    .grads = grads,
                    .state = {{{"momentum_buffer", momentum_buffers, momentum != 0}}},
                    .device_lr = device_lr};
  update(
      u, lr,
      [&](auto& row, size_t i) {
        row.first = std::find(first.begin(), first.end(), static_cast<int64_t>(i)) != first.end();
      },
      [&](const auto& k, auto* rows, int64_t count, LearningRate rate, const Context& ctx) {
        k.sgd_step(rows, count, {rate, momentum, dampening, weight_decay, nesterov, maximize}, ctx);
      });
}

void rmsprop_step(TensorList params, TensorList grads, TensorList square_avgs, TensorList momentum_buffers,
                  TensorList grad_avgs, TensorList steps, double lr, double alpha, double eps,
                  double weight_decay, double momentum, bool centered, bool maximize,
                  const OptionalTensor& device_lr) {
  const Update u = {"rmsprop_step",
                    params,
                    grads,
                    {{{"square_avg", square_avgs, true},
                      {"momentum_buffer", momentum_buffers, momentum > 0},
                      {"grad_avg", grad_avgs, centered}}},
                    {"step", steps, true},
                    device_lr};
  update(
      u, lr,
      [&](auto& row, size_t i) {
        if (!row.step) count_step(steps[i]);
      },
      [&](const auto& k, auto* rows, int64_t count, LearningRate rate, const Context& ctx) {
        k.rmsprop_step(rows, count, {rate, alpha, eps, weight_decay, momentum, maximize}, ctx);
      });
}

void adam_step(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
               TensorList max_exp_avg_sqs, TensorList steps, double lr, double beta1, double beta2,
               double eps, double weight_decay, bool amsgrad, bool decoupled_weight_decay, bool maximize,
               const OptionalTensor& device_lr) {
  const Update u = {"adam_step",
                    params,
                    grads,
                    {{{"exp_avg", exp_avgs, true},
                      {"exp_avg_sq", exp_avg_sqs, true},
                      {"max_exp_avg_sq", max_exp_avg_sqs, amsgrad}}},
                    {"step", steps, true},
                    device_lr};
  double step = 0, correction1 = 0, correction2 = 0;  // nearly always the same for all
  update(
      u, lr,
      [&](auto& row, size_t i) {
        if (row.step) return;
        if (const double counted = count_step(steps[i]); counted != step) {
          step = counted;
          correction1 = 1 - std::pow(beta1, step);
          correction2 = std::sqrt(1 - std::pow(beta2, step));
        }
        row.correction1 = correction1;
        row.correction2 = correction2;
      },
      [&](const auto& k, auto* rows, int64_t count, LearningRate rate, const Context& ctx) {
        k.adam_step(rows, count, {rate, beta1, beta2, eps, weight_decay, decoupled_weight_decay, maximize},
                    ctx);
      });
}

// ---- clipping ---------------------------------------------------------------------------------------------

void check_gradients(const char* op, TensorList grads) {
  check_one_device(op, "gradients", grads);
  for (const Tensor& g : grads) check_dtype(op, g);
}

// Of the dtype of all, else float64 if one of them is, else float32: those of another are walked as copies.
Tensor total_norm(TensorList grads, double p) {
  const char* op = "total_norm";
  check_gradients(op, grads);
  const bool has_identity = p >= 0 && !std::isinf(p);
  bool any_double = false, one_dtype = true;
  for (const Tensor& g : grads) {
    TORCH_CHECK(p != p || has_identity || g.sym_numel() > 0, "minidl::", op, " cannot compute the ", p,
                " norm on an empty tensor because the operation does not have an identity");
    any_double |= g.scalar_type() == at::kDouble;
    one_dtype &= g.scalar_type() == grads[0].scalar_type();
  }
  const at::ScalarType dtype = one_dtype ? grads[0].scalar_type() : any_double ? at::kDouble : at::kFloat;
  const Tensor y = at::empty({}, grads[0].options().dtype(dtype));
  if (y.is_meta()) return y;
  launch(op, y, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    Walkable walkable;
    ShortList<Span<const T>> spans;
    for (const Tensor& g : grads) {
      const bool as_it_is = g.scalar_type() == y.scalar_type() && g.is_non_overlapping_and_dense();
      const Tensor& x = as_it_is ? g : walkable.keep(g.to(y.scalar_type()).contiguous());
      spans.push_back({data<T>(x), x.numel()});
    }
    k.total_norm(mutable_data<T>(y), spans.data(), std::ssize(spans), p, ctx);
  });
  return y;
}

// Checks, then calls f(k, spans, count, ctx) for each batch.
template <class F>
void clip(const char* op, TensorList grads, F f) {
  check_gradients(op, grads);
  for (const Tensor& g : grads) check_writable(g);
  if (grads.empty() || grads[0].is_meta()) return;
  launch_batches(op, grads, [&](const auto& batch, const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    Walkable walkable;
    ShortList<Span<T>> spans;
    for (const size_t i : batch) {
      const Tensor& x = walkable.written(grads[i]);
      spans.push_back({mutable_data<T>(x), x.numel()});
    }
    f(k, spans.data(), std::ssize(spans), ctx);
    walkable.finish();
  });
  bump_versions(grads);
}

void clip_norm(TensorList grads, const Tensor& norm, double max_norm) {
  TORCH_CHECK(norm.dim() == 0, "minidl::clip_norm: expected total_norm to have 0 dimensions, but it has ",
              norm.dim());
  if (grads.empty()) return;
  const Tensor in_double = norm.to(grads[0].device(), at::kDouble);
  clip("clip_norm", grads, [&](const auto& k, const auto* spans, int64_t count, const Context& ctx) {
    k.clip_norm(spans, count, data<double>(in_double), max_norm, ctx);
  });
}

void clip_value(TensorList grads, double bound) {
  clip("clip_value", grads, [&](const auto& k, const auto* spans, int64_t count, const Context& ctx) {
    k.clip_value(spans, count, bound, ctx);
  });
}

}  // namespace

void ops::sgd_step(TensorList params, TensorList grads, TensorList momentum_buffers, at::IntArrayRef first,
                   double lr, double momentum, double dampening, double weight_decay, bool nesterov,
                   bool maximize, const OptionalTensor& device_lr) {
  static const auto op = find_op<decltype(ops::sgd_step)>("minidl::sgd_step");
  op.call(params, grads, momentum_buffers, first, lr, momentum, dampening, weight_decay, nesterov, maximize,
          device_lr);
}

void ops::rmsprop_step(TensorList params, TensorList grads, TensorList square_avgs,
                       TensorList momentum_buffers, TensorList grad_avgs, TensorList steps, double lr,
                       double alpha, double eps, double weight_decay, double momentum, bool centered,
                       bool maximize, const OptionalTensor& device_lr) {
  static const auto op = find_op<decltype(ops::rmsprop_step)>("minidl::rmsprop_step");
  op.call(params, grads, square_avgs, momentum_buffers, grad_avgs, steps, lr, alpha, eps, weight_decay,
          momentum, centered, maximize, device_lr);
}

void ops::adam_step(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                    TensorList max_exp_avg_sqs, TensorList steps, double lr, double beta1, double beta2,
                    double eps, double weight_decay, bool amsgrad, bool decoupled_weight_decay, bool maximize,
                    const OptionalTensor& device_lr) {
  static const auto op = find_op<decltype(ops::adam_step)>("minidl::adam_step");
  op.call(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, lr, beta1, beta2, eps, weight_decay,
          amsgrad, decoupled_weight_decay, maximize, device_lr);
}

Tensor ops::total_norm(TensorList grads, double p) {
  static const auto op = find_op<decltype(ops::total_norm)>("minidl::total_norm");
  return op.call(grads, p);
}

void ops::clip_norm(TensorList grads, const Tensor& norm, double max_norm) {
  static const auto op = find_op<decltype(ops::clip_norm)>("minidl::clip_norm");
  op.call(grads, norm, max_norm);
}

void ops::clip_value(TensorList grads, double bound) {
  static const auto op = find_op<decltype(ops::clip_value)>("minidl::clip_value");
  op.call(grads, bound);
}

TORCH_LIBRARY_FRAGMENT(minidl, m) {
  define_op(
      m, "sgd_step",
      "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, int[] first=[], *, float lr, "
      "float momentum=0, float dampening=0, float weight_decay=0, bool nesterov=False, bool maximize=False, "
      "Tensor? device_lr=None) -> ()",
      sgd_step, WithoutGraph<ops::sgd_step>::call);
  define_op(m, "rmsprop_step",
            "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] square_avgs, Tensor(c!)[] momentum_buffers, "
            "Tensor(d!)[] grad_avgs, Tensor(e!)[] steps, *, float lr, float alpha, float eps, "
            "float weight_decay=0, float momentum=0, bool centered=False, bool maximize=False, "
            "Tensor? device_lr=None) -> ()",
            rmsprop_step, WithoutGraph<ops::rmsprop_step>::call);
  define_op(
      m, "adam_step",
      "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] steps, *, float lr, float beta1, float beta2, float eps, "
      "float weight_decay=0, bool amsgrad=False, bool decoupled_weight_decay=False, bool maximize=False, "
      "Tensor? device_lr=None) -> ()",
      adam_step, WithoutGraph<ops::adam_step>::call);
  define_op(m, "total_norm", "(Tensor[] grads, float p) -> Tensor", total_norm,
            WithoutGraph<ops::total_norm>::call);
  define_op(m, "clip_norm", "(Tensor(a!)[] grads, Tensor norm, float max_norm) -> ()", clip_norm,
            WithoutGraph<ops::clip_norm>::call);
  define_op(m, "clip_value", "(Tensor(a!)[] grads, float bound) -> ()", clip_value,
            WithoutGraph<ops::clip_value>::call);
}

}  // namespace minidl
