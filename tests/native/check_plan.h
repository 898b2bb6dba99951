// A planned training step (csrc/step/plan.h): a linear layer with its ReLU, another, cross entropy, their gradients,
// and Adam; twice, at other addresses the second time.
#pragma once
#include "check.h"
#include "step/plan.h"

namespace {

template <class T>
void check_plan() {
  constexpr int64_t m = 6, in = 33, hidden = 17, classes = 5;
  enum Slot {
    x_,
    t_,
    w1_,
    b1_,
    w2_,
    b2_,
    h_,
    z_,
    dz_,
    dh_,
    loss_,
    stats_,
    total_,
    one_,
    dw1_,
    db1_,
    dw2_,
    db2_,
    slots
  };
  const auto x = random<T>(2 * m * in), w1 = random<T>(hidden * in), b1 = random<T>(hidden);
  const auto w2 = random<T>(classes * hidden), b2 = random<T>(classes);
  const Buffer<int64_t> t(2 * m);
  for (int64_t& c : t) c = static_cast<int64_t>(uniform() * classes);
  const std::vector<Output<T>> outputs = {{hidden * in, w1.data()},
                                          {hidden, b1.data()},
                                          {classes * hidden, w2.data()},
                                          {classes, b2.data()},
                                          {2}};
  check<T>(
      "gemm", "a planned step", outputs, RUN {
        ctx.workspace = [](size_t bytes) {
          workspaces_now = 0;  // one for each call of the plan
          return thread_workspace(bytes);
        };
        const auto p = [](Slot slot) { return address<T*>(slot, 0); };
        const auto* target = address<const int64_t*>(t_, 0);
        const Activation relu{ActivationKind::relu}, none;
        Plan<T> plan;
        using K = KernelsOf<T>;
        plan.check_target(target, m, classes, -100);
        plan.call(&K::gemm, p(h_), hidden, 0, {p(x_), in, 1}, {p(w1_), 1, in}, 1, m, hidden, in,
                  {p(b1_), relu}, {});
        plan.call(&K::gemm, p(z_), classes, 0, {p(h_), hidden, 1}, {p(w2_), 1, hidden}, 1, m, classes, hidden,
                  {p(b2_), none}, {});
        plan.call(&K::cross_entropy_forward, p(loss_), p(stats_), p(total_), p(z_), {.index = target},
                  {m, classes, 1}, Reduction::mean, {});
        plan.call(&K::cross_entropy_backward, p(dz_), p(one_), p(z_), p(stats_), p(total_), {.index = target},
                  {m, classes, 1}, Reduction::mean, {});
        plan.call(&K::epilogue_backward, nullptr, p(db2_), p(dz_), nullptr, m, classes, none, {});
        plan.call(&K::gemm, p(dh_), hidden, 0, {p(dz_), classes, 1}, {p(w2_), hidden, 1}, 1, m, hidden,
                  classes, {}, {});
        plan.call(&K::gemm, p(dw2_), hidden, 0, {p(dz_), 1, classes}, {p(h_), hidden, 1}, 1, classes, hidden,
                  m, {}, {});
        plan.call(&K::epilogue_backward, p(dh_), p(db1_), p(dh_), p(h_), m, hidden, relu, {});
        plan.call(&K::gemm, p(dw1_), in, 0, {p(dh_), 1, hidden}, {p(x_), in, 1}, 1, hidden, in, m, {}, {});

        const int64_t sizes[slots] = {m * in,
                                      m,
                                      hidden * in,
                                      hidden,
                                      classes * hidden,
                                      classes,
                                      m * hidden,
                                      m * classes,
                                      m * classes,
                                      m * hidden,
                                      1,
                                      2 * m,
                                      1,
                                      1,
                                      hidden * in,
                                      hidden,
                                      classes * hidden,
                                      classes};
        std::vector<Buffer<T>> memory;
        for (const int64_t n : sizes) memory.emplace_back(n);
        char* at[slots];
        for (int i = 0; i < slots; ++i) at[i] = reinterpret_cast<char*>(memory[i].data());
        memory[one_].data()[0] = 1;
        std::vector<Buffer<T>> state;
        for (int i = 0; i < 4; ++i) {
          at[w1_ + i] = reinterpret_cast<char*>(o[i]);
          for (int k = 0; k < 2; ++k) {
            state.emplace_back(sizes[w1_ + i]);
            std::fill(state.back().begin(), state.back().end(), T(0));
          }
        }
        for (int step = 0; step < 2; ++step) {
          at[x_] = reinterpret_cast<char*>(const_cast<T*>(x.data()) + step * m * in);
          at[t_] = reinterpret_cast<char*>(const_cast<int64_t*>(t.data()) + step * m);
          plan.run(k, at, ctx);
          OptimizerTensor<T> rows[4];
          for (int i = 0; i < 4; ++i) {
            rows[i] = {o[i],
                       memory[dw1_ + i].data(),
                       {state[2 * i].data(), state[2 * i + 1].data(), nullptr},
                       sizes[w1_ + i],
                       0.1 * (step + 1),
                       0.03 * (step + 1),
                       false};
          }
          k.adam_step(rows, 4, {1e-2, 0.9, 0.999, 1e-3, 0, false, false}, ctx);
          o[4][step] = memory[loss_].data()[0];
        }
      });
  const Buffer<int64_t> bad(1);
  bad.data()[0] = 7;
  Plan<T> plan;
  plan.check_target(address<const int64_t*>(0, 0), 1, 5, -100);
  char* at[] = {reinterpret_cast<char*>(bad.data())};
  bool stopped = false;
  try {
    plan.run(of<T>(*tables[0]), at, {.workspace = thread_workspace});
  } catch (const BadTarget& b) {
    stopped = b.value == 7;
  }
  if (!stopped) fail("a bad target did not stop the plan");
}

}  // namespace
