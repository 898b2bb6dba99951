// Updates and clipping: lists of 16-bit tensors, and steps and learning rates that lie on the device.
#pragma once
#include "narrow.h"

namespace {

template <class T>
void check_narrow_lists() {
  for (const int count : {3, 60}) {  // with the small and the large list of arguments
    std::vector<Both<T>> p, g, s0, s1;
    std::vector<int64_t> outputs;
    for (int i = 0; i < count; ++i) {
      const int64_t n = i == 1 ? 2100 : i % 19;
      p.emplace_back(n), g.emplace_back(n), s0.emplace_back(n, 0.5f, 1.f), s1.emplace_back(n, 0.5f, 1.f);
      outputs.insert(outputs.end(), {n, n, n});
    }
    const auto step = [&](const char* kernel, bool second_state, auto call) {
      check_narrow<T>(
          kernel, sizes("%ld tensors", count), outputs, {}, RUN_NARROW {
            std::vector<OptimizerTensor<U>> rows;
            for (int i = 0; i < count; ++i) {
              const int64_t n = p[i].narrow.n;
              std::copy_n(p[i].template as<U>(), n, o[3 * i]);
              std::copy_n(s0[i].template as<U>(), n, o[3 * i + 1]);
              std::copy_n(s1[i].template as<U>(), n, o[3 * i + 2]);
              rows.push_back({o[3 * i],
                              g[i].template as<U>(),
                              {o[3 * i + 1], second_state ? o[3 * i + 2] : nullptr},
                              n,
                              0.1,
                              0.3,
                              i % 2 == 0});
            }
            call(k, rows.data(), ctx);
          });
    };
    step("sgd_step", false, [&](const auto& k, auto* rows, Context ctx) {
      k.sgd_step(rows, count, {0.1, 0.9, 0.2, 0.01, true, false}, ctx);
    });
    step("rmsprop_step", true, [&](const auto& k, auto* rows, Context ctx) {
      k.rmsprop_step(rows, count, {0.1, 0.9, 1e-8, 0.01, 0.9, false}, ctx);
    });
    step("adam_step", true, [&](const auto& k, auto* rows, Context ctx) {
      k.adam_step(rows, count, {0.1, 0.9, 0.999, 1e-8, 0.01, true, false}, ctx);
    });
    for (const double order : {2.0, 0.0, double(INFINITY)}) {
      check_narrow<T>(
          "total_norm", sizes("%ld tensors, order %ld", count, std::isinf(order) ? 9 : order), {1}, {},
          RUN_NARROW {
            std::vector<Span<const U>> spans;
            for (const auto& x : p) spans.push_back({x.template as<U>(), x.narrow.n});
            k.total_norm(o[0], spans.data(), count, order, ctx);
          });
    }
    const double norm = 5;
    for (const bool by_norm : {false, true}) {
      check_narrow<T>(
          by_norm ? "clip_norm" : "clip_value", sizes("%ld tensors", count), outputs, {}, RUN_NARROW {
            std::vector<Span<U>> spans;
            for (size_t i = 0; i < outputs.size(); ++i) {
              std::copy_n(p[i / 3].template as<U>(), outputs[i], o[i]);
              spans.push_back({o[i], outputs[i]});
            }
            const int64_t length = static_cast<int64_t>(spans.size());
            by_norm ? k.clip_norm(spans.data(), length, &norm, 2, ctx)
                    : k.clip_value(spans.data(), length, 0.5, ctx);
          });
    }
  }
}

// What a captured graph replays: the second and third update, counted and scaled on the device, are those of the
// scalar table with the same numbers given. More tensors than one small list takes.
template <class T>
void check_steps_on_device() {
  constexpr int count = 30;
  constexpr double beta1 = 0.9, beta2 = 0.999, rate = 0.05;
  const int64_t n = 3 * count;
  const auto p = random<T>(n), g = random<T>(n), s0 = random<T>(n, 0.5, 1), s1 = random<T>(n, 0.5, 1);
  const Buffer<T> steps(count);
  std::fill_n(steps.data(), count, T(1));
  const Buffer<double> lr(1);
  lr.data()[0] = rate;
  const auto check_step = [&](const char* kernel, bool counts, auto step) {
    for (const bool lr_there : {false, true}) {
      check<T>(
          kernel, sizes("learning rate on the device %ld", lr_there),
          {{n, p.data()}, {n, s0.data()}, {n, s1.data()}, {count, steps.data()}}, RUN {
            Buffer<float> counted(count);
            std::fill_n(counted.data(), count, 1.0f);
            for (int t = 2; t <= 3; ++t) {
              OptimizerTensor<T> rows[count];
              for (int i = 0; i < count; ++i) {
                const int64_t at = 3 * i;
                rows[i] = {o[0] + at, g.data() + at,          {o[1] + at, o[2] + at},
                           1 + i % 3, 1 - std::pow(beta1, t), std::sqrt(1 - std::pow(beta2, t)),
                           false};
                if (on_cuda() && counts) {
                  rows[i].step = counted.data() + i;
                  rows[i].correction1 = rows[i].correction2 = NAN;
                }
              }
              if (on_cuda() && lr_there) {
                step(k, rows, LearningRate(NAN, lr.data()), ctx);
              } else {
                step(k, rows, LearningRate(rate), ctx);
              }
              workspaces_now = 0;
            }
            for (int i = 0; i < count; ++i)
              o[3][i] = on_cuda() && counts ? static_cast<T>(counted.data()[i]) : T(3);
          });
    }
  };
  for (const bool decoupled : {false, true}) {
    check_step("adam_step", true, [=](const auto& k, const auto* rows, LearningRate lr, Context ctx) {
      k.adam_step(rows, count, {lr, beta1, beta2, 1e-8, 0.1, decoupled, false}, ctx);
    });
  }
  check_step("rmsprop_step", true, [](const auto& k, const auto* rows, LearningRate lr, Context ctx) {
    k.rmsprop_step(rows, count, {lr, 0.9, 1e-8, 0.1, 0.9, false}, ctx);
  });
  check_step("sgd_step", false, [](const auto& k, const auto* rows, LearningRate lr, Context ctx) {
    k.sgd_step(rows, count, {lr, 0.9, 0.2, 0.1, true, false}, ctx);
  });
}

}  // namespace
