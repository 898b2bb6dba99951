// Every kernel of every table, over sizes at which loops end raggedly. What a check is, and why: check.h.
#include "check.h"
#include "check_conv.h"
#include "check_matmul.h"
#include "check_norm.h"
#include "check_plan.h"
#include "check_pool.h"
#include "check_softmax.h"
#ifdef MINIDL_SIM
#include "sim/check_cuda.h"
#endif

// MINIDL_TABLES is the build's list, scalar first: TABLE(scalar) TABLE(avx2).
#define TABLE(isa)              \
  namespace minidl::isa {       \
  extern const Kernels kernels; \
  }
MINIDL_TABLES
#undef TABLE

namespace {

// On both sides of every table's width, of the unrolled runs and of the chunks.
const int64_t lengths[] = {0, 1, 2, 3, 5, 8, 9, 15, 16, 17, 31, 67, 521, 8201};

template <class T>
void check_activations() {
  for (int kind = 0; kind <= static_cast<int>(ActivationKind::softplus); ++kind) {
    const auto name = static_cast<ActivationKind>(kind);
    const Activation f{name, name == ActivationKind::leaky_relu ? 0.01 : 1.5, 20};
    for (const int64_t n : lengths) {
      for (const bool special : {false, true}) {
        const std::string size = sizes("kind %ld, n %ld, special %ld", kind, n, special);
        const auto x = random<T>(n, -6, 6, special), dy = random<T>(n);
        check<T>("activation_forward", size, {{n}}, RUN { k.activation_forward(o[0], x.data(), n, f, ctx); });
        check<T>(
            "activation_forward", size + ", in place", {{n, x.data()}},
            RUN { k.activation_forward(o[0], o[0], n, f, ctx); });
        check<T>(
            "activation_backward", size, {{n, dy.data()}},
            RUN { k.activation_backward(o[0], o[0], x.data(), n, f, ctx); });
      }
    }
  }
}

template <class T>
void check_losses() {
  for (int kind = 0; kind <= static_cast<int>(LossKind::bce_with_logits); ++kind) {
    const bool logits = kind == static_cast<int>(LossKind::bce_with_logits);
    const bool unit = kind == static_cast<int>(LossKind::bce);
    for (const int64_t n : lengths) {
      for (int v = 0; v < 12; ++v) {
        const LossParams p{static_cast<LossKind>(kind), static_cast<Reduction>(v % 3), 0.7};
        const bool special = v / 3 % 2, weighted = v / 6;
        auto x = random<T>(n, unit ? 0 : -6, unit ? 1 : 6, special && !unit), t = random<T>(n, 0, 1);
        if (unit && special && n > 1) x.data()[0] = 0, x.data()[n - 1] = 1;
        const auto w = random<T>(n, 0, 2), pw = random<T>(n, 0, 2), dy = random<T>(v % 3 ? 1 : n);
        const T *weight = weighted ? w.data() : nullptr, *pos = weighted && logits ? pw.data() : nullptr;
        const std::string size = sizes("kind %ld, n %ld, reduction %ld, special %ld, weights %ld", kind, n,
                                       v % 3, special, weighted);
        check<T>(
            "loss_forward", size, {{v % 3 ? 1 : n}},
            RUN { k.loss_forward(o[0], x.data(), t.data(), weight, pos, n, p, ctx); });
        for (const bool wrt : {false, true}) {
          check<T>(
              "loss_backward", size + (wrt ? ", of the target" : ""), {{n}},
              RUN { k.loss_backward(o[0], dy.data(), x.data(), t.data(), weight, pos, n, p, wrt, ctx); });
        }
      }
    }
  }
  for (const int64_t n : lengths) {
    for (int v = 0; v < 4; ++v) {  // all inside; NaN, above 1, below 0 in the last place
      const auto x = random<T>(n, 0, 1);
      if (n && v) x.data()[n - 1] = T(v == 1 ? NAN : v == 2 ? 1.001 : -0.001);
      check<T>(
          "all_in_unit_interval", sizes("n %ld, variant %ld", n, v), {{1}}, RUN {
            bool inside = false;
            k.all_in_unit_interval(&inside, x.data(), n, ctx);
            if (on_cuda()) inside = n == 0 || v == 0;
            o[0][0] = inside;
            if (inside != (n == 0 || v == 0)) fail("wrong answer");
          });
    }
  }
}

template <class T>
void check_optimizers() {
  const int64_t lengths_of[] = {7, 0, 1, 17, 2051, 33, 4100};  // chunks begin and end inside tensors
  constexpr int count = 7;
  std::vector<Buffer<T>> p, g, state[3];
  for (const int64_t n : lengths_of) {
    p.push_back(random<T>(n)), g.push_back(random<T>(n));
    // The first is rmsprop's average square, the last its average gradient, whose square must be less.
    state[0].push_back(random<T>(n, 1, 2)), state[1].push_back(random<T>(n, 0.01, 1));
    state[2].push_back(random<T>(n, -0.5, 0.5));
  }
  for (int v = 0; v < 64; ++v) {
    const bool a = v & 1, b = v & 2, c = v & 4, maximize = v & 8, alias = v & 32;
    const double decay = v & 16 ? 0.01 : 0;
    const auto step = [&](const char* kernel, bool s0, bool s1, bool s2, auto call) {
      std::vector<Output<T>> outputs;
      for (int i = 0; i < count; ++i) {
        outputs.push_back({lengths_of[i], p[i].data()});
        for (auto& s : state) outputs.push_back({lengths_of[i], s[i].data()});
      }
      check<T>(
          kernel, sizes("options %ld", v), outputs, RUN {
            OptimizerTensor<T> tensors[count];
            for (int i = 0; i < count; ++i) {
              T** at = o + 4 * i;
              T* const held[] = {s0 ? at[1] : nullptr, s1 ? at[2] : nullptr, s2 ? at[3] : nullptr};
              tensors[i] = {
                  at[0], alias ? at[0] : g[i].data(), {held[0], held[1], held[2]}, lengths_of[i], 0.1, 0.3,
                  c};
            }
            call(k, tensors, ctx);
            call(k, tensors, ctx);
          });
    };
    step("sgd_step", a, false, false, [&](const auto& k, const auto* tensors, Context ctx) {
      k.sgd_step(tensors, count, {0.1, a ? 0.9 : 0, b ? 0 : 0.2, decay, a && b, maximize}, ctx);
    });
    step("rmsprop_step", true, a, b, [&](const auto& k, const auto* tensors, Context ctx) {
      k.rmsprop_step(tensors, count, {0.1, 0.9, 1e-8, decay, a ? 0.9 : 0, maximize}, ctx);
    });
    step("adam_step", true, true, a, [&](const auto& k, const auto* tensors, Context ctx) {
      k.adam_step(tensors, count, {0.1, 0.9, 0.999, 1e-8, decay, b, maximize}, ctx);
    });
  }
}

template <class T>
void check_clipping() {
  const int64_t lengths_of[] = {7, 0, 1, 17, 2051, 33, 4100};
  constexpr int count = 7;
  for (const bool special : {false, true}) {
    std::vector<Buffer<T>> x;
    std::vector<Output<T>> outputs;
    for (const int64_t n : lengths_of) {
      x.push_back(random<T>(n, -3, 3, special));
      outputs.push_back({n, x.back().data()});
    }
    for (const double p : {2.0, 1.0, 0.0, 3.0, 0.5, -1.0, double(INFINITY), -double(INFINITY)}) {
      check<T>(
          "total_norm", sizes("10 p %ld, special %ld", std::isinf(p) ? 999 * (p > 0) : 10 * p, special),
          {{1}}, RUN {
            Span<const T> spans[count];
            for (int i = 0; i < count; ++i) spans[i] = {x[i].data(), lengths_of[i]};
            k.total_norm(o[0], spans, count, p, ctx);
          });
    }
    for (const double norm : {5.0, 0.0, double(INFINITY), double(NAN)}) {
      const auto clip = [&](const char* kernel, auto call) {
        check<T>(
            kernel, sizes("norm %ld, special %ld", std::isfinite(norm) ? norm : 999, special), outputs, RUN {
              Span<T> spans[count];
              for (int i = 0; i < count; ++i) spans[i] = {o[i], lengths_of[i]};
              call(k, spans, ctx);
            });
      };
      clip("clip_norm",
           [&](const auto& k, const auto* spans, Context ctx) { k.clip_norm(spans, count, &norm, 2, ctx); });
      clip("clip_value",
           [&](const auto& k, const auto* spans, Context ctx) { k.clip_value(spans, count, norm, ctx); });
    }
  }
}

template <class T>
void check_elementwise() {
  for (const int64_t n : lengths) {
    const auto a = random<T>(n, -3, 3, true), b = random<T>(n, -3, 3, true);
    check<T>("add", sizes("n %ld", n), {{n}}, RUN { k.add(o[0], a.data(), b.data(), n, ctx); });
  }
  for (const CopyShape s : {CopyShape{{2, 3, 5, 33}, {495, 165, 33, 1}, {495, 1, 3, 15}},
                            {{1, 4, 7, 19}, {0, 133, 19, 1}, {0, 19, 76, 1}},
                            {{1, 1, 300, 300}, {0, 0, 300, 1}, {0, 0, 1, 300}},
                            {{1, 1, 6, 17}, {0, 0, 17, 1}, {0, 0, 0, 1}},
                            {{1, 2, 0, 17}, {0, 0, 17, 1}, {0, 0, 17, 1}}}) {
    const int64_t n = s.size[0] * s.size[1] * s.size[2] * s.size[3];
    const auto x = random<T>(n, -3, 3, true);
    check<T>(
        "strided_copy", sizes("%ld x %ld x %ld", s.size[1], s.size[2], s.size[3]), {{n}},
        RUN { k.strided_copy(o[0], x.data(), s, ctx); });
  }
}

template <class T>
void check_peak() {
  check<T>(
      "fma_loop", "iterations 3", {{1}}, RUN {
        double operations = 0;
        k.fma_loop(&operations, 3, ctx);
        o[0][0] = operations > 0;
      });
}

void run(const char* name, void (*checks)()) {
  if (std::string(name).find(wanted) != std::string::npos) checks();
}

template <class T>
void check_all() {
  run("activation", check_activations<T>);
  run("conv", check_conv<T>);
  run("dropout", check_dropout<T>);
  run("elementwise", check_elementwise<T>);
  run("matmul", check_matmul<T>);
  run("loss", check_losses<T>);
  run("norm", check_norm<T>);
  run("plan", check_plan<T>);
  run("pool", check_pools<T>);
  run("softmax", check_softmax<T>);
  run("optimizer", check_optimizers<T>);
  run("clipping", check_clipping<T>);
  run("peak", check_peak<T>);
}

bool machine_runs([[maybe_unused]] const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == "avx512") return __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return true;
}

}  // namespace

// Arguments, all optional: N to run one case in N; two orders of the simulator's threads; a part of the name
// of the checks to run.
int main(int argc, char** argv) {
  if (argc > 1) one_in = std::atol(argv[1]);
  for (int i = 0; i < 2 && argc > 2 + i; ++i) orders[i] = static_cast<unsigned>(std::atoi(argv[2 + i]));
  if (argc > 4) wanted = argv[4];
  if (__sanitizer_set_death_callback) {
    __sanitizer_set_death_callback(say_where);
  } else {
    signal(SIGSEGV, [](int) { fail("touches memory that is not its own"); });
  }
  std::string names;
  for (const Kernels* table : {
#define TABLE(isa) &minidl::isa::kernels,
           MINIDL_TABLES
#undef TABLE
       }) {
    if (!machine_runs(table->name)) continue;
    tables.push_back(table);
    names += std::string(" ") + table->name;
  }
  check_all<float>();
  // The simulator's sanitizers are given few types.
  if (tables.back()->f64.gemm) check_all<double>();
#ifdef MINIDL_SIM
  check_cuda(run);
#endif
#define KERNEL(name, ...)                       \
  if (wanted.empty() && !cases.count(#name))    \
    fail("kernel " #name                        \
         " is not checked here; the last that " \
         "is");
#include "kernels.def"
#undef KERNEL
  std::printf("tables:%s\n%ld comparisons agree\n", names.c_str(), static_cast<long>(comparisons));
}
