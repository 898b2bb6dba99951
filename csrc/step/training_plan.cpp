#include "step/training_plan.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>

#include <chrono>
#include <cmath>
#include <cstring>

#include "checks.h"
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

void TrainingPlan::begin() {
  for (const Bound& b : bound_) slots_[b.slot] = static_cast<char*>(const_cast<void*>(b.tensor.const_data_ptr()));
}

// As csrc/ops/dropout.cpp draws them, one draw a dropout, in the order of the forward pass.
void TrainingPlan::draw() {
  if (drawn_.empty()) return;
  auto* source = at::get_generator_or_default<at::CPUGeneratorImpl>(std::nullopt,
                                                                    at::detail::getDefaultCPUGenerator());
  const std::lock_guard lock(source->mutex_);
  for (const int64_t slot : drawn_) {
    auto* words = reinterpret_cast<int64_t*>(slots_[slot]);
    for (const int i : {0, 1}) words[i] = static_cast<int64_t>(source->random64());
  }
}

void TrainingPlan::one_step() {
  draw();
  run_step();
  for (const at::Tensor& counter : counters_) ++*counter.mutable_data_ptr<int64_t>();
}

void TrainingPlan::end() {
  const auto bump = [](const at::Tensor& x) {
    if (x.defined() && !x.is_inference()) x.unsafeGetTensorImpl()->bump_version();
  };
  for (const Bound& b : bound_) {
    if (b.written) bump(b.tensor);
  }
  for (const Update& u : updates) {
    for (const Update::Row& row : u.rows) {
      for (const at::Tensor& state : row.state) bump(state);
      bump(row.step);
    }
  }
  for (const at::Tensor& counter : counters_) bump(counter);
}

int TrainingPlan::threads() const {
  constexpr int64_t worth_a_helper = 1 << 16;  // bytes
  return memory_.numel() > worth_a_helper ? at::get_num_threads() : 1;
}

at::Tensor TrainingPlan::step(const at::Tensor& x, const at::Tensor& y) {
  const TeamScope team(threads());
  begin();
  slots_[x_.slot] = static_cast<char*>(const_cast<void*>(x.const_data_ptr()));
  slots_[y_.slot] = static_cast<char*>(const_cast<void*>(y.const_data_ptr()));
  one_step();
  end();
  at::Tensor& result = results_[next_result_++ % results_.size()];
  // A loop that keeps no losses gets the same few tensors in turn: to make one takes as long as a small step.
  if (!result.defined() || result.use_count() > 1 || result.storage().use_count() > 1) {
    result = at::detail::empty_cpu({}, dtype_, /*pin_memory=*/false, std::nullopt);
  }
  std::memcpy(result.mutable_data_ptr(), slots_[loss_slot_], result.itemsize());
  return result;
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
  const TeamScope team(threads());
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
          return static_cast<char*>(const_cast<void*>(x.const_data_ptr())) + static_cast<size_t>(batch) * bytes;
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
  end();
}

// ---- of one dtype -----------------------------------------------------------------------------------------

template <class T>
double TrainingPlanOf<T>::loss() const {
  return static_cast<double>(*reinterpret_cast<const T*>(slots_[loss_slot_]));
}

namespace {

// The step number of this update, counted in place: ops/optimizer.cpp's.
double count_step(const at::Tensor& step) {
  if (step.scalar_type() == at::kDouble) return *step.mutable_data_ptr<double>() += 1;
  return *step.mutable_data_ptr<float>() += 1;
}

}  // namespace

template <class T>
void TrainingPlanOf<T>::Corrections::advance(double to, const AdamParams& p) {
  if (to == step + 1 && beta1 == p.beta1 && beta2 == p.beta2) {
    power1 *= beta1, power2 *= beta2;
  } else {
    beta1 = p.beta1, beta2 = p.beta2;
    power1 = std::pow(beta1, to), power2 = std::pow(beta2, to);
  }
  step = to;
  correction1 = 1 - power1, correction2 = std::sqrt(1 - power2);
}

template <class T>
void TrainingPlanOf<T>::update(Update& u, const KernelsOf<T>& k, const Context& ctx) {
  rows_.clear();
  const auto* adam = std::get_if<AdamParams>(&u.options);
  for (Update::Row& row : u.rows) {
    OptimizerTensor<T> t = {.p = row.param.mutable_data_ptr<T>(),
                            .g = reinterpret_cast<const T*>(slots_[row.grad]),
                            .state = {},
                            .n = row.param.numel(),
                            .correction1 = 0,
                            .correction2 = 0,
                            .first = row.first};
    for (size_t i = 0; i < row.state.size(); ++i) {
      if (row.state[i].defined()) t.state[i] = row.state[i].template mutable_data_ptr<T>();
    }
    row.first = false;
    if (row.step.defined()) {
      const double step = count_step(row.step);
      if (adam) {
        if (step != corrections_.step) corrections_.advance(step, *adam);
        t.correction1 = corrections_.correction1;
        t.correction2 = corrections_.correction2;
      }
    }
    rows_.push_back(t);
  }
  const auto count = static_cast<int64_t>(rows_.size());
  if (adam) return k.adam_step(rows_.data(), count, *adam, ctx);
  if (const auto* sgd = std::get_if<SgdParams>(&u.options)) return k.sgd_step(rows_.data(), count, *sgd, ctx);
  k.rmsprop_step(rows_.data(), count, std::get<RmspropParams>(u.options), ctx);
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
  for (Update& u : updates) update(u, *k, ctx);
}

template class TrainingPlanOf<float>;
template class TrainingPlanOf<double>;

}  // namespace minidl
