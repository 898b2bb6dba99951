// The part of a training plan that knows its dtype.
#include <algorithm>
#include <cmath>

#include "cuda/backend.h"
#include "dispatch.h"
#include "parallel.h"
#include "step/training_plan.h"

namespace minidl {

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

namespace {

template <class T>
void apply(const OptimizerOptions& options, OptimizerTensor<T>* rows, int64_t count, const KernelsOf<T>& k,
           const Context& ctx) {
  if (const auto* adam = std::get_if<AdamParams>(&options)) return k.adam_step(rows, count, *adam, ctx);
  if (const auto* rmsprop = std::get_if<RmspropParams>(&options)) {
    return k.rmsprop_step(rows, count, *rmsprop, ctx);
  }
  k.sgd_step(rows, count, std::get<SgdParams>(options), ctx);
}

// A matrix's gradient, a product, and its update, some rows at a time: the gradient of those is still in the cache when
// it is read, and of a large matrix it is never written to memory.
template <class T, class Gemm>
void apply_by_rows(const OptimizerOptions& options, const OptimizerTensor<T>& whole, const Gemm& gemm,
                   const KernelsOf<T>& k, const Context& ctx) {
  constexpr int64_t most_rows = 24;
  const auto& c = std::get<0>(gemm);
  const auto& a = std::get<3>(gemm);
  const auto& b = std::get<4>(gemm);
  const int64_t m = std::get<6>(gemm), n = std::get<7>(gemm), depth = std::get<8>(gemm);
  parallel_for(m, (m + ctx.threads - 1) / ctx.threads, [&](int64_t begin, int64_t end) {
    Context serial = ctx;
    serial.threads = 1;
    const int64_t parts = (end - begin + most_rows - 1) / most_rows;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t from = begin + (end - begin) * part / parts,
                    to = begin + (end - begin) * (part + 1) / parts;
      MatrixView<T> rows_of_a = a;
      rows_of_a.data += from * a.row_stride;
      T* g = c + begin * n;  // the same for each part
      k.gemm(g, n, 0, rows_of_a, b, 1, to - from, n, depth, {}, serial);
      OptimizerTensor<T> rows = whole;
      rows.p += from * n, rows.g = g, rows.n = (to - from) * n;
      for (T*& state : rows.state) {
        if (state) state += from * n;
      }
      apply(options, &rows, 1, k, serial);
    }
  });
}

}  // namespace

template <class T>
void TrainingPlanOf<T>::update(Update& u, Resolved& r, const std::vector<BlockCall<T>>& products,
                               const KernelsOf<T>& k, const Context& ctx) {
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
  size_t there = 0;
  while (there < u.rows.size() && u.rows[there].product < 0) ++there;
  apply(u.options, r.rows.data(), static_cast<int64_t>(there), k, ctx);
  for (size_t i = there; i < u.rows.size(); ++i) {
    const auto& product = products[static_cast<size_t>(u.rows[i].product)];
    apply_by_rows(u.options, r.rows[i], std::get<static_cast<size_t>(BlockKernel::gemm)>(product), k, ctx);
  }
  if (!std::holds_alternative<SgdParams>(u.options)) return;
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
  std::vector<BlockCall<T>> products;
  if (!products_.empty()) products = products_.block_calls(slots_.data());
  for (size_t i = 0; i < updates.size(); ++i) update(updates[i], resolved_[i], products, *k, ctx);
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
