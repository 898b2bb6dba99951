#include "step/training_plan.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "denormals.h"
#include "dispatch.h"
#include "parallel.h"
#include "team.h"

namespace minidl {

// ---- planning ---------------------------------------------------------------------------------------------

TrainingPlan::TrainingPlan(at::ScalarType dtype, at::Device device, std::vector<int64_t> offsets,
                           int64_t bytes)
    : memory_(at::empty({bytes}, at::device(device).dtype(at::kByte))), dtype_(dtype) {
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

bool TrainingPlan::fits(const Input& planned, const at::Tensor& x, bool any_rows) const {
  const size_t from = any_rows ? 1 : 0;
  return x.device() == memory_.device() && x.scalar_type() == planned.dtype &&
         x.dim() == std::ssize(planned.sizes) &&
         x.sizes().slice(from) == at::IntArrayRef(planned.sizes).slice(from) && x.is_contiguous() &&
         !x.requires_grad() && x.layout() == at::kStrided && !x.is_neg();
}

bool TrainingPlan::fits_bound() const {
  return std::all_of(bound_.begin(), bound_.end(), [this](const Bound& b) {
    const at::Tensor& x = b.tensor;
    return x.device() == memory_.device() && x.scalar_type() == dtype_ &&
           x.sizes() == at::IntArrayRef(b.sizes) && x.strides() == at::IntArrayRef(b.strides) &&
           x.requires_grad() == b.requires_grad;
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
  if (on_cpu()) {
    for (Update& u : updates) {  // a rate on a GPU, of parameters here
      if (u.rate) std::visit([&](auto& options) { options.lr = u.rate->item().toDouble(); }, u.options);
    }
  } else {
    write_scalars();
  }
  resolve_updates();
}

at::Tensor TrainingPlan::in_memory(int64_t slot, at::IntArrayRef sizes, at::ScalarType dtype) const {
  const int64_t offset = slots_[slot] - static_cast<const char*>(memory_.const_data_ptr());
  const auto bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(c10::elementSize(dtype));
  return memory_.narrow(0, offset, bytes).view(dtype).view(sizes);
}

// As csrc/ops/dropout.cpp draws them, one draw a dropout, in the order of the forward pass.
void TrainingPlan::draw() {
  if (drawn_.empty()) return;
  if (!on_cpu()) {
    for (const int64_t slot : drawn_) in_memory(slot, {2}, at::kLong).random_();
    return;
  }
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
  for (at::Tensor& counter : counters_) {
    if (on_cpu()) {
      ++*counter.mutable_data_ptr<int64_t>();
    } else {
      counter.add_(1);
    }
  }
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
  if (on_cpu()) return;
  const at::NoGradGuard no_grad;
  for (const Update& u : updates) steps_there_.resize(steps_there_.size() + u.rows.size());
  rates_there_.resize(updates.size());
  const auto zeros = [&](size_t n, at::ScalarType dtype) {
    return at::zeros({static_cast<int64_t>(n)}, at::device(memory_.device()).dtype(dtype));
  };
  rates_ = zeros(rates_there_.size(), at::kDouble), steps_ = zeros(steps_there_.size(), at::kFloat);
}

int TrainingPlan::threads() const {
  constexpr int64_t worth_a_helper = 1 << 16;  // bytes
  return memory_.numel() > worth_a_helper ? at::get_num_threads() : 1;
}

void TrainingPlan::step(const at::Tensor& x, const at::Tensor& y, const at::Tensor& loss) {
  begin();
  enqueue(x, y, loss);
  replayed();
}

void TrainingPlan::enqueue(const at::Tensor& x, const at::Tensor& y, const at::Tensor& loss) {
  slots_[x_.slot] = static_cast<char*>(const_cast<void*>(x.const_data_ptr()));
  slots_[y_.slot] = static_cast<char*>(const_cast<void*>(y.const_data_ptr()));
  if (on_cpu()) {
    const FlushDenormals flush;
    one_step();
    std::memcpy(loss.mutable_data_ptr(), slots_[loss_slot_], loss.itemsize());
  } else {
    const c10::DeviceGuard device(memory_.device());
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    one_step();
    loss.copy_(in_memory(loss_slot_, {}, dtype_));
  }
}

// ---- as a CUDA graph --------------------------------------------------------------------------------------

// Learning rates and the numbers of updates, where they are not what they were.
void TrainingPlan::write_scalars() {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  for (size_t i = 0, row = 0; i < updates.size(); ++i) {
    Update& u = updates[i];
    std::visit(
        [&](auto& options) {
          const auto group = static_cast<int64_t>(i);
          if (u.rate) {
            rates_.select(0, group).copy_(u.rate->reshape({}));
            rates_there_[i] = NAN;  // nobody here knows it: a number that comes after is written in any case
          } else if (!options.lr.device && options.lr.value != rates_there_[i]) {
            rates_.select(0, group).fill_(rates_there_[i] = options.lr.value);
          }
          options.lr = {0, rates_.const_data_ptr<double>() + i};
        },
        u.options);
    for (const Update::Row& r : u.rows) {
      const bool counted_here = r.step.defined() && r.step.is_cpu();
      const double step = counted_here ? r.step.item().toDouble() : 0;
      if (counted_here && step != steps_there_[row]) {
        steps_.select(0, static_cast<int64_t>(row)).fill_(steps_there_[row] = step);
      }
      ++row;
    }
  }
}

TrainingPlan::Fixed TrainingPlan::fixed() const {
  Fixed result{{slots_.begin(), slots_.end()}, {}, false, false};
  const auto add = [&](const at::Tensor& x) {
    result.addresses.push_back(x.defined() ? x.const_data_ptr() : nullptr);
  };
  for (const Update& u : updates) {
    result.options.push_back(u.options);
    for (const Update::Row& row : u.rows) {
      add(row.param);
      add(row.step);
      for (const at::Tensor& state : row.state) add(state);
    }
  }
  const Context ctx = context_for(memory_, nullptr);
  result.allow_tf32 = ctx.allow_tf32, result.allow_conv_tf32 = ctx.allow_conv_tf32;
  return result;
}

bool TrainingPlan::prepare() {
  begin();
  Fixed now = fixed();
  if (captured_ == now) return false;
  captured_ = std::move(now);
  return true;
}

// What a captured graph cannot do: the numbers of updates that lie on the CPU, and versions.
void TrainingPlan::replayed(int64_t steps) {
  if (!on_cpu()) {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    size_t row = 0;
    for (Update& u : updates) {
      for (Update::Row& r : u.rows) {
        if (r.step.defined() && r.step.is_cpu()) r.step.add_(steps), steps_there_[row] += steps;
        ++row;
      }
    }
  }
  end();
}

void TrainingPlan::run_block(const Batches& batches, int64_t first, const at::Tensor& losses,
                             const at::Tensor& batch_x, const at::Tensor& batch_y) {
  const c10::DeviceGuard device(memory_.device());
  begin();
  slots_[x_.slot] = static_cast<char*>(batch_x.mutable_data_ptr());
  slots_[y_.slot] = static_cast<char*>(batch_y.mutable_data_ptr());
  launch_block(batches, first, losses);
  has_stepped_ = true;
  replayed(losses.numel());
}

namespace {

// Rows of x, by their numbers, one after the other. They mostly come from memory, of which two cores get more than one.
void gather(char* to, const at::Tensor& x, const int64_t* rows, int64_t count) {
  constexpr size_t worth_a_helper = 1 << 16;  // bytes
  const auto* from = static_cast<const char*>(x.const_data_ptr());
  const size_t bytes = x.nbytes() / static_cast<size_t>(std::max<int64_t>(x.size(0), 1));
  const auto grain = static_cast<int64_t>(worth_a_helper / std::max<size_t>(bytes, 1)) + 1;
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(to + static_cast<size_t>(i) * bytes, from + static_cast<size_t>(rows[i]) * bytes, bytes);
    }
  });
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
  const auto x_bytes = static_cast<size_t>(size * x_.row_bytes()),
             y_bytes = static_cast<size_t>(size * y_.row_bytes());
  if (b.order) gathered_.resize(x_bytes + y_bytes + 64);
  auto polled = Clock::now();
  int steps = 0;
  for (int64_t epoch = 0; epoch < epochs; ++epoch) {
    for (int64_t batch = 0; batch < b.count; ++batch) {
      const TeamScope team(threads());
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

}  // namespace minidl
