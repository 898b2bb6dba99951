// How kernels of 16-bit types, and of float as tf32, are checked: against the scalar table of float, on inputs that
// are rounded first.
#pragma once
#include "cuda/ptx.cuh"
#include "native/check.h"

namespace minidl::cuda {
extern const Kernels kernels;
}

namespace {

template <class T>
T rounded(float x) {
  if constexpr (sizeof(T) == 4) {
    return cuda::bits_as<float>(cuda::to_tf32(x));
  } else if constexpr (std::is_same_v<T, Half>) {
    return cuda::to_half(x);
  } else {
    return cuda::to_bfloat16(x);
  }
}
template <class T>
float value(T x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    return cuda::to_float(x);
  }
}
template <class T>
const KernelsOf<T>& cuda_kernels() {
  if constexpr (sizeof(T) == 4) {
    return cuda::kernels.f32;
  } else if constexpr (std::is_same_v<T, Half>) {
    return cuda::kernels.f16;
  } else {
    return cuda::kernels.bf16;
  }
}
// Half a unit in the last place of T, and the float's own error.
template <class T>
constexpr float rounding = sizeof(T) == 4            ? 0
                           : std::is_same_v<T, Half> ? 0x1p-11f
                                                     : 0x1p-8f;

// The same numbers as T and as float.
template <class T>
struct Both {
  Buffer<T> narrow;
  Buffer<float> wide;
  explicit Both(int64_t n, float low = -3, float high = 3) : narrow(n), wide(n) {
    for (int64_t i = 0; i < n; ++i) {
      narrow.data()[i] = rounded<T>(static_cast<float>(low + (high - low) * uniform()));
      wide.data()[i] = value(narrow.data()[i]);
    }
  }
  // What a kernel of T works on, or one of float.
  template <class U>
  U* as() const {
    if constexpr (std::is_same_v<U, T>) {
      return narrow.data();
    } else {
      return wide.data();
    }
  }
};

// run(kernels, context, outputs, inputs-of-type tag) on the CUDA table of T under both orders, and on the
// scalar table of float: equal bits, and the scalar table's numbers but for the last rounding. Outputs of
// Wide<T> are exact but for float's own error.
template <class T, class F>
void check_narrow(const char* kernel, const std::string& size, std::vector<int64_t> narrow_outputs,
                  std::vector<int64_t> wide_outputs, F run, bool tf32 = false) {
  kernel_now = kernel, size_now = size, table_now = "cuda";
  dtype_now = sizeof(T) == 4 ? "tf32" : std::is_same_v<T, Half> ? "half" : "bfloat16";
  if (passed_over(kernel)) return;
  const auto on = [&]<class U>(const KernelsOf<U>& k, int ranges, U) {
    std::vector<Buffer<U>> narrow;
    std::vector<Buffer<float>> wide;
    std::vector<U*> n;
    std::vector<float*> w;
    for (const int64_t length : narrow_outputs) {
      n.push_back(narrow.emplace_back(length).data());
      std::memset(static_cast<void*>(n.back()), 0xff, static_cast<size_t>(length) * sizeof(U));
    }
    for (const int64_t length : wide_outputs) w.push_back(wide.emplace_back(length).data());
    sim::set_order(orders[ranges > 1]);
    ranges_now = ranges, workspaces_now = error_now = 0;
    run(k,
        Context{.error = &error_now,
                .allow_tf32 = tf32,
                .allow_conv_tf32 = tf32,
                .threads = ranges,
                .workspace = thread_workspace},
        n.data(), w.data(), U{});
    check_launches();
    return std::pair(std::move(narrow), std::move(wide));
  };
  const auto [n1, w1] = on(cuda_kernels<T>(), 1, T{});
  const auto [n3, w3] = on(cuda_kernels<T>(), 3, T{});
  const auto [expected, expected_wide] = on(of<float>(*tables[0]), 1, 0.0f);
  const auto compare = [&](float a, float b, float e, float relative, size_t o, int64_t i) {
    if (same(a, b) && (same(a, e) || std::abs(a - e) <= relative * std::abs(e) + 2e-5f * (1 + std::abs(e))))
      return;
    char what[200];
    std::snprintf(what, sizeof what, "output %zu [%ld] is %.9g in one order, %.9g in another, %.9g by scalar",
                  o, static_cast<long>(i), double(a), double(b), double(e));
    fail(what);
  };
  for (size_t o = 0; o < narrow_outputs.size(); ++o) {
    for (int64_t i = 0; i < narrow_outputs[o]; ++i) {
      const float e = value(rounded<T>(expected[o].data()[i]));
      compare(value(n1[o].data()[i]), value(n3[o].data()[i]), sizeof(T) == 4 ? expected[o].data()[i] : e,
              2 * rounding<T>, o, i);
    }
  }
  for (size_t o = 0; o < wide_outputs.size(); ++o) {
    for (int64_t i = 0; i < wide_outputs[o]; ++i) {
      compare(w1[o].data()[i], w3[o].data()[i], expected_wide[o].data()[i], 0, o + narrow_outputs.size(), i);
    }
  }
  ++comparisons;
}
#define RUN_NARROW [&]<class U>(const KernelsOf<U>& k, Context ctx, U** o, [[maybe_unused]] float** w, U)

}  // namespace
