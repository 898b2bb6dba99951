#include "step/training_plan.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "denormals.h"
#include "dispatch.h"
#include "team.h"

namespace minidl {

// ---- planning ---------------------------------------------------------------------------------------------

TrainingPlan::TrainingPlan(at::ScalarType dtype, std::vector<int64_t> offsets, int64_t bytes)
    : memory_(at::detail::empty_cpu({bytes}, at::kByte, /*pin_memory=*/false, std::nullopt)), dtype_(dtype) {
  char* base = static_cast<char*>(memory_.mutable_data_ptr());
  for (const int64_t offset : offsets) slots_.push_back(offset < 0 ? nullptr : base + offset);
}

void TrainingPlan::bind(int64_t slot, at::Tensor tensor, bool written) {
  const bool requires_grad = tensor.requires_grad();
  at::DimVector sizes(tensor.sizes()), strides(tensor.strides());
  bound_.push_back({slot, std::move(tensor), written, requires_grad, std::move(sizes), std::move(strides)});
}

void TrainingPlan::bind_batch(int64_t x_slot, const at::Tensor& x, int64_t y_slot, const at::Tensor& y,
                              int64_t loss_slot) {
  x_ = {x_slot, x.scalar_type(), at::DimVector(x.sizes())};
  y_ = {y_slot, y.scalar_type(), at::DimVector(y.sizes())};
  loss_slot_ = loss_slot;
}

// ---- running ----------------------------------------------------------------------------------------------

bool TrainingPlan::fits(const Input& planned, const at::Tensor& x, bool any_rows) {
  const size_t from = any_rows ? 1 : 0;
  return x.is_cpu() && x.scalar_type() == planned.dtype && x.dim() == std::ssize(planned.sizes) &&
         x.sizes().slice(from) == at::IntArrayRef(planned.sizes).slice(from) && x.is_contiguous() &&
         !x.requires_grad() && x.layout() == at::kStrided && !x.is_neg();
}

bool TrainingPlan::fits_bound() const {
  return std::all_of(bound_.begin(), bound_.end(), [this](const Bound& b) {
    const at::Tensor& x = b.tensor;
    return x.is_cpu() && x.scalar_type() == dtype_ && x.sizes() == at::IntArrayRef(b.sizes) &&
           x.strides() == at::IntArrayRef(b.strides) && x.requires_grad() == b.requires_grad;
  });
}

bool TrainingPlan::fits(const at::Tensor& x, const at::Tensor& y) const {
  return fits(x_, x, false) && fits(y_, y, false) && fits_bound();
}

bool TrainingPlan::fits_rows(const at::Tensor& x, const at::Tensor& y) const {
  return fits(x_, x, true) && fits(y_, y, true) && fits_bound();
}

bool TrainingPlan::has_batches(const Batches& b) const {
  const int64_t rows = b.count * x_.sizes[0];
  if (b.x.size(0) != b.y.size(0) || y_.sizes[0] != x_.sizes[0]) return false;
  if (!b.order) return b.x.size(0) >= rows;
  if (b.order->scalar_type() != at::kLong || !b.order->is_contiguous() || b.order->numel() < rows)
    return false;
  const auto* numbers = b.order->const_data_ptr<int64_t>();
  return std::all_of(numbers, numbers + rows, [&](int64_t i) { return i >= 0 && i < b.x.size(0); });
}

void TrainingPlan::begin() {
  for (const Bound& b : bound_)
    slots_[b.slot] = static_cast<char*>(const_cast<void*>(b.tensor.const_data_ptr()));
  resolve_updates();
}

// As csrc/ops/dropout.cpp draws them, one draw a dropout, in the order of the forward pass.
void TrainingPlan::draw() {
  if (drawn_.empty()) return;
  auto* source =
      at::get_generator_or_default<at::CPUGeneratorImpl>(std::nullopt, at::detail::getDefaultCPUGenerator());
  const std::lock_guard lock(source->mutex_);
  for (const int64_t slot : drawn_) {
    auto* words = reinterpret_cast<int64_t*>(slots_[slot]);
    for (const int i : {0, 1}) words[i] = static_cast<int64_t>(source->random64());
  }
}

void TrainingPlan::one_step() {
  const TeamScope team(threads());
  draw();
  run_step();
  for (const at::Tensor& counter : counters_) ++*counter.mutable_data_ptr<int64_t>();
  has_stepped_ = true;
}

// What the run has written has a new version, as after any operation in place.
void TrainingPlan::end() {
  for (c10::TensorImpl* x : written_) x->bump_version();
}

void TrainingPlan::finish() {
  const auto add = [this](const at::Tensor& x) {
    if (x.defined() && !x.is_inference()) written_.push_back(x.unsafeGetTensorImpl());
  };
  for (const Bound& b : bound_) {
    if (b.written) add(b.tensor);
  }
  for (const Update& u : updates) {
    for (const Update::Row& row : u.rows) {
      for (const at::Tensor& state : row.state) add(state);
      add(row.step);
    }
  }
  for (const at::Tensor& counter : counters_) add(counter);
}

int TrainingPlan::threads() const {
  constexpr int64_t worth_a_helper = 1 << 16;  // bytes
  return memory_.numel() > worth_a_helper ? at::get_num_threads() : 1;
}

void TrainingPlan::step(const at::Tensor& x, const at::Tensor& y, const at::Tensor& loss) {
  const FlushDenormals flush;
  begin();
  slots_[x_.slot] = static_cast<char*>(const_cast<void*>(x.const_data_ptr()));
  slots_[y_.slot] = static_cast<char*>(const_cast<void*>(y.const_data_ptr()));
  one_step();
  end();
  std::memcpy(loss.mutable_data_ptr(), slots_[loss_slot_], loss.itemsize());
}

namespace {

// Rows of x, by their numbers, one after the other.
void gather(char* to, const at::Tensor& x, const int64_t* rows, int64_t count) {
  const auto* from = static_cast<const char*>(x.const_data_ptr());
  const size_t bytes = x.nbytes() / static_cast<size_t>(std::max<int64_t>(x.size(0), 1));
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(to + static_cast<size_t>(i) * bytes, from + static_cast<size_t>(rows[i]) * bytes, bytes);
  }
}

}  // namespace

void TrainingPlan::run(const Batches& b, int64_t epochs, double* losses, const std::function<void()>& poll) {
  const FlushDenormals flush;
  struct End {  // also of a run that a bad target or an interrupt ends: its first steps have written
    TrainingPlan& plan;
    ~End() { plan.end(); }
  } const at_the_end{*this};
  using Clock = std::chrono::steady_clock;
  constexpr int between_looks = 64;  // steps between two looks at the clock
  constexpr auto between_polls = std::chrono::milliseconds(50);
  begin();
  const int64_t size = x_.sizes[0];
  const auto bytes = [](const Input& of_step, const at::Tensor& x) {
    return static_cast<size_t>(c10::multiply_integers(of_step.sizes)) * x.itemsize();
  };
  const size_t x_bytes = bytes(x_, b.x), y_bytes = bytes(y_, b.y);
  if (b.order) gathered_.resize(x_bytes + y_bytes + 64);
  auto polled = Clock::now();
  int steps = 0;
  for (int64_t epoch = 0; epoch < epochs; ++epoch) {
    for (int64_t batch = 0; batch < b.count; ++batch) {
      if (b.order) {
        const int64_t* rows = b.order->const_data_ptr<int64_t>() + batch * size;
        slots_[x_.slot] = gathered_.data();
        slots_[y_.slot] = gathered_.data() + (x_bytes + 63) / 64 * 64;
        gather(slots_[x_.slot], b.x, rows, size);
        gather(slots_[y_.slot], b.y, rows, size);
      } else {
        const auto at = [&](const at::Tensor& x, size_t bytes) {
          return static_cast<char*>(const_cast<void*>(x.const_data_ptr())) +
                 static_cast<size_t>(batch) * bytes;
        };
        slots_[x_.slot] = at(b.x, x_bytes);
        slots_[y_.slot] = at(b.y, y_bytes);
      }
      one_step();
      *losses++ = loss();
      if (++steps % between_looks == 0 && Clock::now() - polled > between_polls) {
        poll();
        polled = Clock::now();
      }
    }
  }
}

// ---- of one dtype -----------------------------------------------------------------------------------------

template <class T>
double TrainingPlanOf<T>::loss() const {
  return static_cast<double>(*reinterpret_cast<const T*>(slots_[loss_slot_]));
}

template <class T>
void TrainingPlanOf<T>::Corrections::advance(double to, const AdamParams& p) {
  const bool same = beta1 == p.beta1 && beta2 == p.beta2;
  if (to == step && same) return;
  if (to == step + 1 && same) {
    power1 *= beta1, power2 *= beta2;
  } else {
    beta1 = p.beta1, beta2 = p.beta2;
    power1 = std::pow(beta1, to), power2 = std::pow(beta2, to);
  }
  step = to;
  correction1 = 1 - power1, correction2 = std::sqrt(1 - power2);
}

template <class T>
void TrainingPlanOf<T>::resolve_updates() {
  resolved_.resize(updates.size());
  for (size_t i = 0; i < updates.size(); ++i) {
    Resolved& r = resolved_[i];
    r.rows.clear(), r.steps.clear();
    for (const Update::Row& row : updates[i].rows) {
      OptimizerTensor<T>& t = r.rows.emplace_back();
      t = {};
      t.p = static_cast<T*>(row.param.mutable_data_ptr());
      t.g = reinterpret_cast<const T*>(slots_[row.grad]);
      t.n = row.param.numel();
      t.first = row.first;
      for (size_t k = 0; k < row.state.size(); ++k) {
        if (row.state[k].defined()) t.state[k] = static_cast<T*>(row.state[k].mutable_data_ptr());
      }
      auto& step = r.steps.emplace_back();
      if (!row.step.defined()) continue;
      if (row.step.scalar_type() == at::kDouble) {
        step = row.step.mutable_data_ptr<double>();
      } else {
        step = row.step.mutable_data_ptr<float>();
      }
    }
  }
}

template <class T>
void TrainingPlanOf<T>::update(Update& u, Resolved& r, const KernelsOf<T>& k, const Context& ctx) {
  const auto* adam = std::get_if<AdamParams>(&u.options);
  for (size_t i = 0; i < r.rows.size(); ++i) {
    double step = 0;
    if (float** f = std::get_if<float*>(&r.steps[i])) {
      step = ** f += 1;
    } else if (double** d = std::get_if<double*>(&r.steps[i])) {
      step = ** d += 1;
    }
    if (!adam) continue;
    r.corrections.advance(step, *adam);
    r.rows[i].correction1 = r.corrections.correction1;
    r.rows[i].correction2 = r.corrections.correction2;
  }
  const auto count = static_cast<int64_t>(r.rows.size());
  if (adam) return k.adam_step(r.rows.data(), count, *adam, ctx);
  if (const auto* rmsprop = std::get_if<RmspropParams>(&u.options)) {
    return k.rmsprop_step(r.rows.data(), count, *rmsprop, ctx);
  }
  k.sgd_step(r.rows.data(), count, std::get<SgdParams>(u.options), ctx);
  for (size_t i = 0; i < r.rows.size(); ++i) u.rows[i].first = r.rows[i].first = false;
}

template <class T>
void TrainingPlanOf<T>::run_step() {
  const Kernels& table = kernels_for(memory_, "TrainStep");
  const Context ctx = context_for(memory_, nullptr);
  const KernelsOf<T>* k;
  if constexpr (std::is_same_v<T, float>) {
    k = &table.f32;
  } else {
    k = &table.f64;
  }
  plan_.run(*k, slots_.data(), ctx);
  commit_.run(*k, slots_.data(), ctx);
  for (size_t i = 0; i < updates.size(); ++i) update(updates[i], resolved_[i], *k, ctx);
}

template class TrainingPlanOf<float>;
template class TrainingPlanOf<double>;

}  // namespace minidl
