// Loops of training steps in one block, against the same plan on the scalar table: two layers with activations, fused
// and not, a sum, each kind of loss, every optimizer, batches in order and shuffled, in one launch and in several.
#pragma once
#include <utility>

#include "cuda/backend.h"
#include "native/check.h"
#include "step/plan.h"

namespace {

struct LoopCase {
  ActivationKind hidden;
  bool fused;
  int loss;  // a LossKind, or 6: cross entropy of indices, 7: of probabilities
  Reduction reduction;
  OptimizerOptions optimizer;
  bool shuffled, device_lr;
  int state;  // bits: which state there is
};

template <class T>
struct LoopModel {
  static constexpr int64_t m = 5, in = 7, hidden = 9, classes = 4, batches = 3, steps = 8, layers = 4;
  // clang-format off
  enum Slot { x_, t_, w1_, b1_, w2_, b2_, z1_, h_, h2_, z_, dz_, dh_, dh2_, loss_, stats_, total_, one_,
              dw1_, db1_, dw2_, db2_, weight_, slots };
  static constexpr int64_t sizes[slots] = {m * in,     m * classes, hidden * in, hidden, classes * hidden, classes,
                                           m * hidden, m * hidden,  m * hidden,  m * classes, m * classes,
                                           m * hidden, m * hidden,  m * classes, 2 * m,  1,  m * classes,
                                           hidden * in, hidden,     classes * hidden, classes, classes};
  // clang-format on

  static Plan<T> plan(const LoopCase& c) {
    using K = KernelsOf<T>;
    const auto p = [](Slot slot) { return address<T*>(slot, 0); };
    const Activation f{c.hidden, 0.1, 20}, none;
    Plan<T> plan;
    plan.call(&K::gemm, c.fused ? p(h_) : p(z1_), hidden, 0, {p(x_), in, 1}, {p(w1_), 1, in}, 1, m, hidden,
              in, {p(b1_), c.fused ? f : none}, {});
    if (!c.fused) plan.call(&K::activation_forward, p(h_), p(z1_), m * hidden, f, {});
    plan.call(&K::add, p(h2_), p(h_), p(h_), m * hidden, {});
    const bool bce = c.loss == static_cast<int>(LossKind::bce);
    const Activation last{bce ? ActivationKind::sigmoid : ActivationKind::none};
    plan.call(&K::gemm, p(z_), classes, 0, {p(h2_), hidden, 1}, {p(w2_), 1, hidden}, 1, m, classes, hidden,
              {p(b2_), last}, {});
    if (c.loss > 5) {
      ClassTarget<T> target{.weight = p(weight_), .ignore_index = 0, .label_smoothing = 0.1};
      c.loss == 6 ? void(target.index = address<const int64_t*>(t_, 0)) : void(target.probability = p(t_));
      plan.call(&K::cross_entropy_forward, p(loss_), p(stats_), p(total_), p(z_), target, {m, classes, 1},
                c.reduction, {});
      plan.call(&K::cross_entropy_backward, p(dz_), p(one_), p(z_), p(stats_), p(total_), target,
                {m, classes, 1}, c.reduction, {});
    } else {
      const LossParams loss{static_cast<LossKind>(c.loss), c.reduction, 0.7};
      plan.call(&K::loss_forward, p(loss_), p(z_), p(t_), p(one_), nullptr, m * classes, loss, {});
      plan.call(&K::loss_backward, p(dz_), p(one_), p(z_), p(t_), p(one_), nullptr, m * classes, loss, false,
                {});
    }
    plan.call(&K::epilogue_backward, bce ? p(dz_) : nullptr, p(db2_), p(dz_), bce ? p(z_) : nullptr, m,
              classes, last, {});
    plan.call(&K::gemm, p(dh2_), hidden, 0, {p(dz_), classes, 1}, {p(w2_), hidden, 1}, 1, m, hidden, classes,
              {}, {});
    plan.call(&K::gemm, p(dw2_), hidden, 0, {p(dz_), 1, classes}, {p(h2_), hidden, 1}, 1, classes, hidden, m,
              {}, {});
    plan.call(&K::add, p(dh_), p(dh2_), p(dh2_), m * hidden, {});
    if (!c.fused) plan.call(&K::activation_backward, p(dh_), p(dh_), p(z1_), m * hidden, f, {});
    plan.call(&K::epilogue_backward, c.fused ? p(dh_) : nullptr, p(db1_), p(dh_), c.fused ? p(h_) : nullptr,
              m, hidden, c.fused ? f : none, {});
    plan.call(&K::gemm, p(dw1_), in, 0, {p(dh_), 1, hidden}, {p(x_), in, 1}, 1, hidden, in, m, {}, {});
    return plan;
  }
};

// The steps one after another, as the host does them.
template <class T>
void loop_on_host(const Plan<T>& plan, const KernelsOf<T>& k, Context ctx, BlockLoop<T> loop,
                  char* const* at) {
  ctx.workspace = [](size_t bytes) {
    workspaces_now = 0;  // one for each call of the plan
    return thread_workspace(bytes);
  };
  for (int64_t step = 0; step < loop.steps; ++step) {
    for (int64_t i = 0; i < loop.batch_rows; ++i) {
      const int64_t n = step % loop.batches * loop.batch_rows + i, row = loop.order ? loop.order[n] : n;
      for (const auto& part : loop.parts)
        std::memcpy(part.batch + i * part.row_bytes, part.data + row * part.row_bytes, part.row_bytes);
    }
    plan.run(k, at, ctx);
    const auto update = [&]<class Params>(Params p) {
      if (p.lr.device) p.lr = *p.lr.device;
      for (OptimizerTensor<T>& row : loop.rows) {
        if constexpr (std::is_same_v<Params, AdamParams>) {
          row.correction1 = 1 - std::pow(p.beta1, double(step + 1));
          row.correction2 = std::sqrt(1 - std::pow(p.beta2, double(step + 1)));
        }
      }
      if constexpr (std::is_same_v<Params, SgdParams>) k.sgd_step(loop.rows, loop.row_count, p, ctx);
      if constexpr (std::is_same_v<Params, RmspropParams>) k.rmsprop_step(loop.rows, loop.row_count, p, ctx);
      if constexpr (std::is_same_v<Params, AdamParams>) k.adam_step(loop.rows, loop.row_count, p, ctx);
      for (OptimizerTensor<T>& row : loop.rows) row.first = false;
    };
    std::visit(update, loop.groups[0]);
    loop.losses[step] = *loop.loss;
  }
}

template <class T>
void check_block_loop(const LoopCase& c, const std::string& name) {
  using M = LoopModel<T>;
  const Plan<T> plan = M::plan(c);
  std::vector<Buffer<T>> start;
  for (int i = 0; i < M::layers; ++i) start.push_back(random<T>(M::sizes[M::w1_ + i], -0.5, 0.5));
  constexpr int64_t rows = M::batches * M::m;
  const auto x = random<T>(rows * M::in), t = random<T>(rows * M::classes, 0.1, 0.9);
  const Buffer<int64_t> index(rows), order(rows);
  for (int64_t i = 0; i < rows; ++i) index.data()[i] = i % M::classes, order.data()[i] = i * 7 % rows;
  std::vector<Output<T>> outputs;
  for (const Buffer<T>& p : start) outputs.push_back({p.n, p.data(), 10});
  outputs.push_back({M::steps, nullptr, 10});
  check<T>(
      "block_loop", name, outputs, RUN {
        std::vector<Buffer<T>> memory, state;
        char* at[M::slots];
        for (int i = 0; i < M::slots; ++i) {
          memory.emplace_back(M::sizes[i] * (i == M::t_ ? 8 / sizeof(T) : 1));
          std::fill(memory.back().begin(), memory.back().end(), T(i == M::weight_ ? 0.5 : 1));
          at[i] = reinterpret_cast<char*>(memory.back().data());
        }
        Buffer<float> counts(M::layers);
        const Buffer<double> lr(1);
        lr.data()[0] = 0.05;
        BlockLoop<T> loop{};
        loop.groups[0] = c.optimizer;
        if (c.device_lr) std::visit([&](auto& p) { p.lr = {0, lr.data()}; }, loop.groups[0]);
        for (int i = 0; i < M::layers; ++i) {
          at[M::w1_ + i] = reinterpret_cast<char*>(o[i]);
          counts.data()[i] = 0;
          OptimizerTensor<T>& row = loop.rows[loop.row_count++];
          row = {o[i], memory[M::dw1_ + i].data(), {}, M::sizes[M::w1_ + i], 0, 0, true, counts.data() + i};
          for (int s = 0; s < 3; ++s) {
            if (!(c.state >> s & 1)) continue;
            state.emplace_back(row.n);
            // SGD's begins unread.
            const bool unread = std::holds_alternative<SgdParams>(c.optimizer);
            std::fill(state.back().begin(), state.back().end(), T(unread ? NAN : 0));
            row.state[s] = state.back().data();
          }
        }
        loop.parts[0] = {at[M::x_], reinterpret_cast<const char*>(x.data()), M::in * sizeof(T)};
        loop.parts[1] = {at[M::t_], reinterpret_cast<const char*>(t.data()), M::classes * sizeof(T)};
        if (c.loss == 6) loop.parts[1] = {at[M::t_], reinterpret_cast<const char*>(index.data()), 8};
        loop.order = c.shuffled ? order.data() : nullptr;
        loop.batch_rows = M::m, loop.batches = M::batches, loop.steps = M::steps;
        loop.loss = memory[M::loss_].data(), loop.losses = o[M::layers];
        if (!on_cuda()) return loop_on_host(plan, k, ctx, loop, at);
        const auto calls = plan.block_calls(at);
        std::copy(calls.begin(), calls.end(), loop.calls);
        loop.call_count = static_cast<int>(calls.size());
        const int64_t cut = ctx.threads > 1 ? 3 : M::steps;  // in two launches, which give the same bits
        loop.steps = cut;
        cuda::block_loop(loop, ctx);
        loop.first = cut, loop.steps = M::steps - cut, loop.losses += cut;
        for (OptimizerTensor<T>& row : loop.rows) row.first = false;
        cuda::block_loop(loop, ctx);
        for (const float n : counts) {
          if (n != M::steps) fail("a step was not counted");
        }
      });
}

template <class T>
void check_block_loops() {
  const SgdParams sgd{0.05, 0, 0, 0, false, false}, nesterov{0.005, 0.9, 0, 0.01, true, false};
  const RmspropParams rmsprop{0.01, 0.9, 1e-3, 0.01, 0.9, false};
  const AdamParams adam{0.01, 0.9, 0.99, 1e-3, 0, false, false},
      adamw{0.01, 0.9, 0.99, 1e-3, 0.1, true, false};
  const LoopCase cases[] = {
      {ActivationKind::relu, true, 0, Reduction::mean, sgd, false, false, 0},
      {ActivationKind::tanh, true, 1, Reduction::sum, nesterov, true, false, 1},
      {ActivationKind::gelu, false, 2, Reduction::mean, rmsprop, false, true, 7},
      {ActivationKind::sigmoid, true, 3, Reduction::mean, adam, true, true, 3},
      {ActivationKind::leaky_relu, false, 4, Reduction::mean, adamw, false, false, 7},
      {ActivationKind::softplus, false, 5, Reduction::none, adam, true, false, 3},
      {ActivationKind::relu, true, 6, Reduction::mean, adam, true, false, 3},
      {ActivationKind::silu, false, 6, Reduction::sum, sgd, false, true, 0},
      {ActivationKind::gelu_tanh, false, 7, Reduction::mean, rmsprop, true, false, 1},
  };
  int number = 0;
  const int64_t sample = std::exchange(one_in, std::max<int64_t>(one_in / 8, 1));  // each is small
  for (const LoopCase& c : cases) check_block_loop<T>(c, sizes("case %ld", number++));
  one_in = sample;
  // What a block cannot do is said to be so.
  Plan<T> plan;
  plan.call(&KernelsOf<T>::softmax_forward, nullptr, nullptr, {1, 1, 1}, false, {});
  if (plan.block_calls().at(0).index() != 0) fail("softmax was taken for a call of a block");
}

}  // namespace
