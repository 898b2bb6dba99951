// The part of a training plan that knows its dtype.
#include <algorithm>
#include <cmath>

#include "cuda/backend.h"
#include "dispatch.h"
#include "step/training_plan.h"

namespace minidl {

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
  float* step_there = on_cpu() ? nullptr : steps_.mutable_data_ptr<float>();
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
      if (!on_cpu()) {
        t.step = row.step.defined() && !row.step.is_cpu() ? row.step.mutable_data_ptr<float>() : step_there;
        ++step_there;
      } else if (!row.step.defined()) {
        continue;
      } else if (row.step.scalar_type() == at::kDouble) {
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
    if (!adam || r.rows[i].step) continue;
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
  int error = 0;
  const Context ctx = context_for(memory_, &error);
  const KernelsOf<T>* k;
  if constexpr (std::is_same_v<T, float>) {
    k = &table.f32;
  } else {
    k = &table.f64;
  }
  plan_.run(*k, slots_.data(), ctx);
  commit_.run(*k, slots_.data(), ctx);
  for (size_t i = 0; i < updates.size(); ++i) update(updates[i], resolved_[i], *k, ctx);
  if (!on_cpu()) finish_launch(memory_, "TrainStep", ctx);
}

// ---- as a loop in one block -------------------------------------------------------------------------------

namespace {

template <class T>
int64_t multiply_adds(const BlockCall<T>& call) {
  const auto* gemm = std::get_if<static_cast<size_t>(BlockKernel::gemm)>(&call);
  if (!gemm) return 0;
  const auto& [c, ldc, c_batch_stride, a, b, batch, m, n, k, epilogue, ctx] = *gemm;
  return batch * m * n * k;
}

}  // namespace

// A graph takes some microseconds for each of its ten kernels or more; in that time 256 threads do a hundred thousand
// multiply-adds.
template <class T>
bool TrainingPlanOf<T>::fits_block() const {
  constexpr int64_t most_multiply_adds = 1 << 17, most_bytes = 1 << 17;
  if (on_cpu() || x_.sizes.empty() || y_.sizes.empty() || x_.row_bytes() % 4 || y_.row_bytes() % 4)
    return false;
  if (!commit_.empty() || !drawn_.empty() || !counters_.empty() || memory_.numel() > most_bytes) return false;
  const auto& calls = plan_.block_calls();
  int64_t work = 0;
  size_t rows = 0;
  for (const BlockCall<T>& call : calls) {
    if (call.index() == static_cast<size_t>(BlockKernel::none)) return false;
    work += multiply_adds<T>(call);
  }
  for (const Update& u : updates) rows += u.rows.size();
  return work <= most_multiply_adds && calls.size() <= BlockLoop<T>::most_calls &&
         rows <= BlockLoop<T>::most_rows && updates.size() <= BlockLoop<T>::most_groups;
}

template <class T>
void TrainingPlanOf<T>::launch_block(const Batches& b, int64_t first, const at::Tensor& losses) {
  BlockLoop<T> loop{};
  const auto calls = plan_.block_calls(slots_.data());
  std::copy(calls.begin(), calls.end(), loop.calls);
  loop.call_count = static_cast<int>(calls.size());
  for (size_t i = 0; i < updates.size(); ++i) {
    loop.groups[i] = updates[i].options;
    for (const OptimizerTensor<T>& row : resolved_[i].rows) {
      loop.group_of[loop.row_count] = static_cast<int>(i);
      loop.rows[loop.row_count++] = row;
    }
    for (Update::Row& row : updates[i].rows) row.first = false;
  }
  loop.parts[0] = {slots_[x_.slot], static_cast<const char*>(b.x.const_data_ptr()), x_.row_bytes()};
  loop.parts[1] = {slots_[y_.slot], static_cast<const char*>(b.y.const_data_ptr()), y_.row_bytes()};
  loop.order = b.order ? b.order->const_data_ptr<int64_t>() : nullptr;
  loop.batch_rows = x_.sizes[0], loop.batches = b.count;
  loop.first = first, loop.steps = losses.numel();
  loop.loss = reinterpret_cast<const T*>(slots_[loss_slot_]);
  loop.losses = static_cast<T*>(losses.mutable_data_ptr());
  int error = 0;
  const Context ctx = context_for(memory_, &error);
  cuda::block_loop(loop, ctx);
  finish_launch(memory_, "TrainStep", ctx);
}

template class TrainingPlanOf<float>;
template class TrainingPlanOf<double>;

}  // namespace minidl
