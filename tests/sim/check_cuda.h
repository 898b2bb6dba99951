// What only the CUDA table has: 16-bit types and tf32 (narrow.h); sizes that reach its own thresholds; targets
// that nobody has checked.
#pragma once
#include "sim/check_block_loop.h"
#include "sim/check_conv.h"
#include "sim/check_dropout.h"
#include "sim/check_norm.h"
#include "sim/check_optimizer.h"
#include "sim/check_pool.h"
#include "sim/narrow.h"

namespace {

template <class T>
void check_narrow_elementwise() {
  for (const int64_t n : {0, 1, 7, 8, 9, 31, 521, 9001}) {
    const Both<T> x(n), dy(n), t(n, 0, 1), weight(n, 0, 2), one(1);
    for (int kind = 0; kind <= static_cast<int>(ActivationKind::softplus); ++kind) {
      const Activation f{static_cast<ActivationKind>(kind), 0.5, 2};
      const std::string size = sizes("kind %ld, n %ld", kind, n);
      check_narrow<T>(
          "activation_forward", size, {n}, {},
          RUN_NARROW { k.activation_forward(o[0], x.template as<U>(), n, f, ctx); });
      check_narrow<T>(
          "activation_backward", size, {n}, {},
          RUN_NARROW { k.activation_backward(o[0], dy.template as<U>(), x.template as<U>(), n, f, ctx); });
    }
    for (int kind = 0; kind <= static_cast<int>(LossKind::bce_with_logits); ++kind) {
      for (int r = 0; r < 3; ++r) {
        const LossParams p{static_cast<LossKind>(kind), static_cast<Reduction>(r), 0.7};
        const Both<T>& input = p.kind == LossKind::bce ? t : x;
        const std::string size = sizes("kind %ld, n %ld, reduction %ld", kind, n, r);
        check_narrow<T>(
            "loss_forward", size, {r ? 1 : n}, {}, RUN_NARROW {
              k.loss_forward(o[0], input.template as<U>(), t.template as<U>(), weight.template as<U>(),
                             nullptr, n, p, ctx);
            });
        check_narrow<T>(
            "loss_backward", size, {n}, {}, RUN_NARROW {
              k.loss_backward(o[0], (r ? one : dy).template as<U>(), input.template as<U>(),
                              t.template as<U>(), nullptr, nullptr, n, p, r == 2, ctx);
            });
      }
    }
  }
}

template <class T>
void check_narrow_softmax() {
  for (const ClassShape s : {ClassShape{3, 5, 1}, {2, 67, 1}, {5, 64, 1}, {3, 9, 4}, {2, 1500, 1}}) {
    const int64_t rows = s.outer * s.inner, n = rows * s.classes;
    const Both<T> x(n), dy(n), weight(s.classes, 0.1f, 1), one(1), y(n, 0, 1);
    const Buffer<int64_t> index(rows);
    for (int64_t& c : index) c = static_cast<int64_t>(uniform() * double(s.classes));
    index.data()[0] = -100;
    for (const bool log : {false, true}) {
      const std::string size =
          sizes("outer %ld, classes %ld, inner %ld, log %ld", s.outer, s.classes, s.inner, log);
      check_narrow<T>(
          "softmax_forward", size, {n}, {},
          RUN_NARROW { k.softmax_forward(o[0], x.template as<U>(), s, log, ctx); });
      check_narrow<T>(
          "softmax_backward", size, {n}, {},
          RUN_NARROW { k.softmax_backward(o[0], dy.template as<U>(), y.template as<U>(), s, log, ctx); });
      const double smoothing = log ? 0.1 : 0;
      const auto target = [&]<class U>(U) {
        return ClassTarget<U>{index.data(), nullptr, weight.template as<U>(), -100, smoothing};
      };
      check_narrow<T>(
          "cross_entropy_forward", size, {1}, {1, 2 * rows}, RUN_NARROW {
            k.cross_entropy_forward(o[0], w[1], w[0], x.template as<U>(), target(U{}), s, Reduction::mean,
                                    ctx);
          });
      const Buffer<float> stats(2 * rows), total(1), unused(1);
      workspaces_now = 0;
      of<float>(*tables[0])
          .cross_entropy_forward(unused.data(), stats.data(), total.data(), x.wide.data(), target(0.0f), s,
                                 Reduction::mean, {.workspace = thread_workspace});
      check_narrow<T>(
          "cross_entropy_backward", size, {n}, {}, RUN_NARROW {
            k.cross_entropy_backward(o[0], one.template as<U>(), x.template as<U>(), stats.data(),
                                     total.data(), target(U{}), s, Reduction::mean, ctx);
          });
      if (log) continue;
      check_narrow<T>(
          "nll_loss_forward", size, {1}, {1}, RUN_NARROW {
            k.nll_loss_forward(o[0], w[0], x.template as<U>(), target(U{}), s, Reduction::mean, ctx);
          });
      check_narrow<T>(
          "nll_loss_backward", size, {n}, {}, RUN_NARROW {
            k.nll_loss_backward(o[0], one.template as<U>(), total.data(), target(U{}), s, Reduction::mean,
                                ctx);
          });
    }
  }
}

// Products on tensor cores: both orders of both operands, aligned or not, edges, splits, both sizes of tile.
template <class T>
void check_mma() {
  const int64_t shapes[][4] = {{1, 1, 1, 1},      {1, 16, 8, 16},  {1, 33, 17, 40}, {2, 64, 72, 64},
                               {1, 70, 66, 129},  {1, 8, 16, 600}, {1, 40, 9, 513}, {1, 136, 264, 48},
                               {1, 130, 250, 35}, {3, 5, 7, 0}};
  for (const auto& [batch, m, n, k_] : shapes) {
    for (int v = 0; v < 8; ++v) {
      const bool a_k = v & 1, b_k = v & 2;
      const int64_t gap = v & 4 ? 3 : 0;  // rows that do not begin on 16 bytes
      const int64_t lda = (a_k ? k_ : m) + gap, ldb = (b_k ? k_ : n) + gap;
      const int64_t size_a = lda * (a_k ? m : k_), size_b = ldb * (b_k ? n : k_);
      const Both<T> a(batch * size_a, -1, 1), b(batch * size_b, -1, 1), bias(n);
      const Activation f{v % 2 ? ActivationKind::relu : v ? ActivationKind::none : ActivationKind::gelu};
      check_narrow<T>(
          "gemm", sizes("batch %ld, m %ld, n %ld, k %ld, variant %ld", batch, m, n, k_, v), {batch * m * n},
          {},
          RUN_NARROW {
            k.gemm(o[0], n, m * n, {a.template as<U>(), a_k ? lda : 1, a_k ? 1 : lda, size_a},
                   {b.template as<U>(), b_k ? 1 : ldb, b_k ? ldb : 1, size_b}, batch, m, n, k_,
                   Epilogue<U>{v > 3 ? bias.template as<U>() : nullptr, f}, ctx);
          },
          sizeof(T) == 4);
    }
  }
  if constexpr (sizeof(T) == 2) {
    for (const int64_t m : {0, 5, 100}) {
      const Both<T> dy(m * 35), y(m * 35);
      check_narrow<T>(
          "epilogue_backward", sizes("m %ld", m), {m * 35, 35}, {}, RUN_NARROW {
            k.epilogue_backward(o[0], o[1], dy.template as<U>(), y.template as<U>(), m, 35,
                                Activation{ActivationKind::tanh}, ctx);
          });
    }
  }
}

// ---- what the scalar table is not asked

// A target that is no class: NaN in its row and in the mean, nothing read out of bounds, the other rows
// untouched.
template <class T>
void check_bad_targets() {
  const ClassShape s{4, 6, 1};
  const auto x = random<T>(24);
  for (const int64_t bad : {int64_t(6), int64_t(-1), int64_t(1) << 40}) {
    const Buffer<int64_t> index(4);
    const int64_t targets[] = {1, bad, -100, 5};
    std::copy_n(targets, 4, index.data());
    const ClassTarget<T> t{index.data()};
    const Buffer<T> loss(4), stats(8), total(1), dx(24);
    const auto& k = of<T>(cuda::kernels);
    kernel_now = "cross_entropy_forward", size_now = "a bad target", table_now = "cuda";
    const auto fresh = [&] {
      workspaces_now = error_now = 0;
      return Context{.error = &error_now, .workspace = thread_workspace};
    };
    const auto expect = [&](bool nan_in_row) {
      check_launches();
      for (int i = 0; i < 4; ++i) {
        if (std::isnan(loss.data()[i]) != (i == 1 && nan_in_row)) fail("NaN in the wrong rows");
      }
    };
    k.cross_entropy_forward(loss.data(), stats.data(), total.data(), x.data(), t, s, Reduction::none,
                            fresh());
    expect(true);
    k.cross_entropy_backward(dx.data(), loss.data(), x.data(), stats.data(), total.data(), t, s,
                             Reduction::none, fresh());
    for (int i = 0; i < 24; ++i) {
      if (std::isnan(dx.data()[i]) != (i / 6 == 1)) fail("NaN in the wrong rows of dx");
    }
    k.nll_loss_forward(loss.data(), total.data(), x.data(), t, s, Reduction::none, fresh());
    expect(true);
    k.nll_loss_backward(dx.data(), loss.data(), total.data(), t, s, Reduction::none, fresh());
    for (int i = 0; i < 24; ++i) {
      if (std::isnan(dx.data()[i]) != (i / 6 == 1)) fail("NaN in the wrong rows of nll's dx");
    }
    k.cross_entropy_forward(loss.data(), stats.data(), total.data(), x.data(), t, s, Reduction::mean,
                            fresh());
    check_launches();
    if (!std::isnan(loss.data()[0])) fail("a mean without NaN");
    ++comparisons;
  }
}

// Rows beyond what shared memory keeps, products beyond what a grid has, and lists beyond what one launch takes.
void check_thresholds() {
  for (const int64_t classes : {20001, 60001}) {
    const ClassShape s{1, classes, 1};
    const auto x = random<float>(classes), dy = random<float>(classes), y = random<float>(classes, 0, 1e-3);
    const std::string size = sizes("classes %ld", classes);
    check<float>(
        "softmax_forward", size, {{classes}},
        RUN { k.softmax_forward(o[0], x.data(), s, classes % 3 == 0, ctx); });
    check<float>(
        "softmax_backward", size, {{classes}},
        RUN { k.softmax_backward(o[0], dy.data(), y.data(), s, false, ctx); });
  }
  // More blocks than a grid has: an error, and nothing launched.
  kernel_now = "gemm", size_now = "2^32 + 1 products", table_now = "cuda";
  workspaces_now = error_now = 0;
  const Buffer<float> one(1);
  cuda::kernels.f32.gemm(one.data(), 1, 0, {one.data(), 1, 1}, {one.data(), 1, 1}, (int64_t(1) << 32) + 1, 1,
                         1, 1, {}, {.error = &error_now, .workspace = thread_workspace});
  if (error_now != 9) fail("no error");
  error_now = 0;
  constexpr int count = 800;
  const auto x = random<float>(3 * count);
  check<float>(
      "clip_value", "800 tensors", {{3 * count, x.data()}}, RUN {
        std::vector<Span<float>> spans;
        for (int i = 0; i < count; ++i) spans.push_back({o[0] + 3 * i, 1 + i % 3});
        k.clip_value(spans.data(), count, 0.5, ctx);
      });
  check<float>(
      "total_norm", "800 tensors", {{1}}, RUN {
        std::vector<Span<const float>> spans;
        for (int i = 0; i < count; ++i) spans.push_back({x.data() + 3 * i, 1 + i % 3});
        k.total_norm(o[0], spans.data(), count, 2, ctx);
      });
}

template <class T>
void check_narrow_all(void (*run)(const char*, void (*)())) {
  run("activation loss narrow", check_narrow_elementwise<T>);
  run("conv narrow", check_narrow_conv<T>);
  run("softmax narrow", check_narrow_softmax<T>);
  run("matmul narrow", check_mma<T>);
  run("optimizer clipping narrow", check_narrow_lists<T>);
  run("dropout narrow", check_narrow_dropout<T>);
  run("norm narrow", check_narrow_norm<T>);
  run("pool narrow", check_narrow_pool<T>);
}

void check_cuda(void (*run)(const char*, void (*)())) {
  check_narrow_all<Half>(run);
  if (cuda::kernels.bf16.gemm) check_narrow_all<BFloat16>(run);
  if (cuda::kernels.f64.gemm) {
    run("softmax bad targets", check_bad_targets<double>);
    run("optimizer on the device", check_steps_on_device<double>);
    run("block_loop", check_block_loops<double>);
  }
  run("matmul tf32", check_mma<float>);
  run("conv tf32", check_narrow_conv<float>);
  run("softmax bad targets", check_bad_targets<float>);
  run("softmax optimizer thresholds", check_thresholds);
  run("norm extremes", check_norm_extremes);
  run("pool thresholds", check_pool_wide_index);
  run("optimizer on the device", check_steps_on_device<float>);
  run("block_loop", check_block_loops<float>);
}

}  // namespace
