// In-place updates of lists of parameters. Unlike the other operators these have no derivative: under grad
// mode they raise for tensors that require one.
#include <ATen/MemoryOverlap.h>

#include <algorithm>
#include <cmath>
#include <forward_list>
#include <vector>

#include "ops/op.h"

namespace minidl {
namespace {

using at::TensorList;

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
  StateList steps = {};            // 0-d CPU tensors that count the updates
};

void check_written(const char* op, const Tensor& param, const char* name, const Tensor& x) {
  check_same_dtype(op, "param", param, name, x);
  check_same_shape(op, "param", param, name, x);
  if (!x.is_non_overlapping_and_dense()) at::assert_no_internal_overlap(x);
}

void check_gradient(const char* op, const Tensor& param, const Tensor& grad) {
  check_dtype(op, param);
  check_same_dtype(op, "param", param, "grad", grad);
  check_same_shape(op, "param", param, "grad", grad);
}

void check_step(const char* op, const Tensor& step) {
  TORCH_CHECK(step.numel() == 1 && (step.is_cpu() || step.is_meta()) &&
                  (step.scalar_type() == at::kFloat || step.scalar_type() == at::kDouble),
              "minidl::", op,
              ": expected step to be a float32 or float64 CPU tensor of one element, but got ",
              step.scalar_type(), " of shape ", step.sizes(), " on ", step.device());
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
  for (size_t i = 0; i < u.params.size(); ++i) {
    check_gradient(u.op, u.params[i], u.grads[i]);
    TORCH_CHECK(u.params[i].device() == u.params[0].device(), "minidl::", u.op,
                ": expected all params of one call on one device, but got ", u.params[0].device(), " and ",
                u.params[i].device());
    check_written(u.op, u.params[i], "param", u.params[i]);
    for (const StateList& s : u.state) {
      if (s.used) check_written(u.op, u.params[i], s.name, s.tensors[i]);
    }
  }
  for (const Tensor& step : u.steps.tensors) check_step(u.op, step);
}

// The step number of this update, counted in place.
double count_step(const Tensor& step) {
  if (step.scalar_type() == at::kDouble) return *step.mutable_data_ptr<double>() += 1;
  return *step.mutable_data_ptr<float>() += 1;
}

// Equal order of elements in memory. Strides of one-element dimensions say nothing, hence the first test.
bool same_layout(const Tensor& x, const Tensor& y) {
  return (x.is_contiguous() && y.is_contiguous()) || x.strides() == y.strides();
}

// Rows of pointers for a kernel. What a flat loop cannot walk together with its parameter is copied, and the
// copy is written back by finish().
class Rows {
 public:
  explicit Rows(const Update& u) : u_(u) {}

  // References throughout: a copy of a Tensor that Python knows takes the GIL.
  template <class T>
  OptimizerTensor<T> row(size_t i) {
    const Tensor& param = u_.params[i];
    const Tensor& grad = u_.grads[i];
    const Tensor& p = param.is_non_overlapping_and_dense() ? param : staged(param, param);
    const Tensor& g = same_layout(grad, p) ? grad : copies_.emplace_front(laid_out_as(grad, p));
    OptimizerTensor<T> row = {.p = mutable_data<T>(p), .g = data<T>(g), .n = p.numel()};
    for (size_t k = 0; k < u_.state.size(); ++k) {
      if (!u_.state[k].used) continue;
      const Tensor& s = u_.state[k].tensors[i];
      row.state[k] = mutable_data<T>(same_layout(s, p) ? s : staged(s, p));
    }
    return row;
  }

  void finish() {
    for (const auto& [target, copy] : write_back_) target->copy_(*copy);
  }

 private:
  const Tensor& staged(const Tensor& x, const Tensor& like) {
    const Tensor& copy = copies_.emplace_front(at::empty_like(like).copy_(x));
    write_back_.emplace_back(&x, &copy);
    return copy;
  }

  const Update& u_;
  std::forward_list<Tensor> copies_;  // a list: references into it stay valid
  std::vector<std::pair<const Tensor*, const Tensor*>> write_back_;
};

void bump_versions(const Update& u) {
  const auto bump = [](TensorList list) {
    for (const Tensor& x : list) {
      if (!x.is_inference()) x.unsafeGetTensorImpl()->bump_version();
    }
  };
  bump(u.params);
  for (const StateList& s : u.state) {
    if (s.used) bump(s.tensors);
  }
  bump(u.steps.tensors);
}

bool has_duplicates(TensorList list) {
  std::vector<const void*> sorted;
  for (const Tensor& x : list) sorted.push_back(x.unsafeGetTensorImpl());
  std::sort(sorted.begin(), sorted.end());
  return std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end();
}

// Checks, then calls prepare(row, i) for each parameter and step(k, rows, count, ctx) for those of each
// dtype.
template <class Prepare, class Step>
void update(const Update& u, Prepare prepare, Step step) {
  check(u);
  if (u.params.empty() || u.params[0].is_meta()) return;
  // A parameter that is listed twice is updated twice, one update after the other, as torch does.
  const size_t batch = has_duplicates(u.params) ? 1 : u.params.size();
  for (size_t begin = 0; begin < u.params.size(); begin += batch) {
    Rows rows(u);
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
      const auto is_dtype = [&](const Tensor& x) { return x.scalar_type() == dtype; };
      const auto end = u.params.begin() + begin + batch;
      const auto first = std::find_if(u.params.begin() + begin, end, is_dtype);
      if (first == end) continue;
      launch(u.op, *first, [&](const auto& k, auto zero, const Context& ctx) {
        using T = decltype(zero);
        std::vector<OptimizerTensor<T>> of_dtype;
        of_dtype.reserve(batch);
        for (auto p = first; p != end; ++p) {
          if (!is_dtype(*p)) continue;
          const size_t i = p - u.params.begin();
          of_dtype.push_back(rows.row<T>(i));
          prepare(of_dtype.back(), i);
        }
        step(k, of_dtype.data(), std::ssize(of_dtype), ctx);
      });
    }
    rows.finish();
  }
  bump_versions(u);
}

void sgd_step(TensorList params, TensorList grads, TensorList momentum_buffers, at::IntArrayRef first,
              double lr, double momentum, double dampening, double weight_decay, bool nesterov,
              bool maximize) {
  const Update u = {"sgd_step", params, grads, {{{"momentum_buffer", momentum_buffers, momentum != 0}}}};
  const SgdParams s = {lr, momentum, dampening, weight_decay, nesterov, maximize};
  update(
      u,
      [&](auto& row, size_t i) {
        row.first = std::find(first.begin(), first.end(), static_cast<int64_t>(i)) != first.end();
      },
      [&](const auto& k, auto* rows, int64_t count, const Context& ctx) { k.sgd_step(rows, count, s, ctx); });
}

void rmsprop_step(TensorList params, TensorList grads, TensorList square_avgs, TensorList momentum_buffers,
                  TensorList grad_avgs, TensorList steps, double lr, double alpha, double eps,
                  double weight_decay, double momentum, bool centered, bool maximize) {
  const Update u = {"rmsprop_step",
                    params,
                    grads,
                    {{{"square_avg", square_avgs, true},
                      {"momentum_buffer", momentum_buffers, momentum > 0},
                      {"grad_avg", grad_avgs, centered}}},
                    {"step", steps, true}};
  const RmspropParams s = {lr, alpha, eps, weight_decay, momentum, maximize};
  update(
      u, [&](auto&, size_t i) { count_step(steps[i]); },
      [&](const auto& k, auto* rows, int64_t count, const Context& ctx) {
        k.rmsprop_step(rows, count, s, ctx);
      });
}

void adam_step(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
               TensorList max_exp_avg_sqs, TensorList steps, double lr, double beta1, double beta2,
               double eps, double weight_decay, bool amsgrad, bool decoupled_weight_decay, bool maximize) {
  const Update u = {"adam_step",
                    params,
                    grads,
                    {{{"exp_avg", exp_avgs, true},
                      {"exp_avg_sq", exp_avg_sqs, true},
                      {"max_exp_avg_sq", max_exp_avg_sqs, amsgrad}}},
                    {"step", steps, true}};
  const AdamParams s = {lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay, maximize};
  double step = 0, correction1 = 0, correction2 = 0;  // nearly always the same for all
  update(
      u,
      [&](auto& row, size_t i) {
        if (const double counted = count_step(steps[i]); counted != step) {
          step = counted;
          correction1 = 1 - std::pow(beta1, step);
          correction2 = std::sqrt(1 - std::pow(beta2, step));
        }
        row.correction1 = correction1;
        row.correction2 = correction2;
      },
      [&](const auto& k, auto* rows, int64_t count, const Context& ctx) {
        k.adam_step(rows, count, s, ctx);
      });
}

// What the Autograd key calls: the update itself, unless a graph is wanted, or something is sparse: the
// dispatcher would say that in a page of keys.
template <auto op, class Signature>
struct WithoutGraph;
template <auto op, class... Args>
struct WithoutGraph<op, void(TensorList, TensorList, Args...)> {
  static void call(TensorList params, TensorList grads, Args... args) {
    for (const TensorList list : {params, grads}) {
      for (const Tensor& x : list) {
        TORCH_CHECK(!needs_graph(x),
                    "minidl: an optimizer step has no derivative; call it under torch.no_grad()");
        TORCH_CHECK(x.layout() == at::kStrided,
                    "minidl.optim does not support sparse gradients or parameters; "
                    "please consider an optimizer of torch.optim that does, such as SparseAdam");
      }
    }
    at::AutoDispatchBelowADInplaceOrView guard;
    op(params, grads, args...);
  }
};

}  // namespace

void ops::sgd_step(TensorList params, TensorList grads, TensorList momentum_buffers, at::IntArrayRef first,
                   double lr, double momentum, double dampening, double weight_decay, bool nesterov,
                   bool maximize) {
  static const auto op = find_op<decltype(ops::sgd_step)>("minidl::sgd_step");
  op.call(params, grads, momentum_buffers, first, lr, momentum, dampening, weight_decay, nesterov, maximize);
}

void ops::rmsprop_step(TensorList params, TensorList grads, TensorList square_avgs,
                       TensorList momentum_buffers, TensorList grad_avgs, TensorList steps, double lr,
                       double alpha, double eps, double weight_decay, double momentum, bool centered,
                       bool maximize) {
  static const auto op = find_op<decltype(ops::rmsprop_step)>("minidl::rmsprop_step");
  op.call(params, grads, square_avgs, momentum_buffers, grad_avgs, steps, lr, alpha, eps, weight_decay,
          momentum, centered, maximize);
}

void ops::adam_step(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                    TensorList max_exp_avg_sqs, TensorList steps, double lr, double beta1, double beta2,
                    double eps, double weight_decay, bool amsgrad, bool decoupled_weight_decay,
                    bool maximize) {
  static const auto op = find_op<decltype(ops::adam_step)>("minidl::adam_step");
  op.call(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, lr, beta1, beta2, eps, weight_decay,
          amsgrad, decoupled_weight_decay, maximize);
}

TORCH_LIBRARY_FRAGMENT(minidl, m) {
  define_op(
      m, "sgd_step",
      "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, int[] first=[], *, float lr, "
      "float momentum=0, float dampening=0, float weight_decay=0, bool nesterov=False, bool maximize=False) "
      "-> ()",
      sgd_step, WithoutGraph<ops::sgd_step, decltype(ops::sgd_step)>::call);
  define_op(m, "rmsprop_step",
            "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] square_avgs, Tensor(c!)[] momentum_buffers, "
            "Tensor(d!)[] grad_avgs, Tensor(e!)[] steps, *, float lr, float alpha, float eps, "
            "float weight_decay=0, float momentum=0, bool centered=False, bool maximize=False) -> ()",
            rmsprop_step, WithoutGraph<ops::rmsprop_step, decltype(ops::rmsprop_step)>::call);
  define_op(
      m, "adam_step",
      "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] steps, *, float lr, float beta1, float beta2, float eps, "
      "float weight_decay=0, bool amsgrad=False, bool decoupled_weight_decay=False, bool maximize=False) "
      "-> ()",
      adam_step, WithoutGraph<ops::adam_step, decltype(ops::adam_step)>::call);
}

}  // namespace minidl
