#include "dispatch.h"

#include <ATen/Parallel.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>

#include "checks.h"
#include "cuda/backend.h"
#include "parallel.h"

namespace minidl {

#define MINIDL_FOR_EACH_ISA_1(f, a) f(a)
#define MINIDL_FOR_EACH_ISA_2(f, a, b) f(a) f(b)
#define MINIDL_FOR_EACH_ISA_3(f, a, b, c) f(a) f(b) f(c)
#define MINIDL_COUNT(a, b, c, n, ...) n
#define MINIDL_FOR_EACH_(f, ...)                                                                    \
  MINIDL_COUNT(__VA_ARGS__, MINIDL_FOR_EACH_ISA_3, MINIDL_FOR_EACH_ISA_2, MINIDL_FOR_EACH_ISA_1, 0) \
  (f, __VA_ARGS__)
#define MINIDL_FOR_EACH(f, ...) MINIDL_FOR_EACH_(f, __VA_ARGS__)

// MINIDL_ISAS is the build's list, slowest first.
#define DECLARE_TABLE(isa)      \
  namespace isa {               \
  extern const Kernels kernels; \
  }
MINIDL_FOR_EACH(DECLARE_TABLE, MINIDL_ISAS)
#undef DECLARE_TABLE

namespace {

bool machine_runs(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == "avx512") {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return true;  // scalar anywhere, neon on every arm64
}

const std::vector<const Kernels*>& tables() {
  static const std::vector<const Kernels*> all = [] {
    std::vector<const Kernels*> found;
    for (const Kernels* table : {
#define TABLE_ADDRESS(isa) &isa::kernels,
             MINIDL_FOR_EACH(TABLE_ADDRESS, MINIDL_ISAS)
#undef TABLE_ADDRESS
         }) {
      if (machine_runs(table->name)) found.push_back(table);
    }
    return found;
  }();
  return all;
}

const Kernels* table_named(const std::string& name) {
  std::string names;
  for (const Kernels* table : tables()) {
    if (name == table->name) return table;
    names += std::string(names.empty() ? "" : ", ") + table->name;
  }
  TORCH_CHECK_VALUE(false, "minidl: no kernels for ISA '", name, "' on this machine; available: ", names);
}

std::atomic<const Kernels*>& cpu_table() {
  static std::atomic<const Kernels*> current = [] {
    const char* wanted = std::getenv("MINIDL_ISA");
    return wanted && *wanted ? table_named(wanted) : tables().back();
  }();
  return current;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels* table : tables()) names.emplace_back(table->name);
  return names;
}

std::string isa() { return cpu_table().load()->name; }

void set_isa(const std::string& name) { cpu_table().store(table_named(name)); }

const Kernels& kernels_for(const at::Tensor& x, const char* op) {
  if (x.is_cpu()) return *cpu_table().load(std::memory_order_relaxed);
  TORCH_CHECK_NOT_IMPLEMENTED(x.is_cuda(), "minidl::", op, ": no kernels for device ", x.device());
  TORCH_CHECK_NOT_IMPLEMENTED(cuda::kernels.name, "minidl::", op, ": no kernels for device ", x.device(),
                              "; this build has CPU kernels only (see `minidl doctor`)");
  return cuda::kernels;
}

namespace {

// Scratch for the running launch, from the device's own allocator: it goes back when the launch is queued,
// and the allocator hands it out again to what is queued behind on the same stream only.
thread_local c10::DataPtr cuda_scratch;
void* cuda_workspace(size_t bytes) {
  cuda_scratch = c10::GetAllocator(c10::DeviceType::CUDA)->allocate(bytes);
  return cuda_scratch.get();
}

Context cuda_context(const at::Tensor& x, int* error) {
  const c10::impl::VirtualGuardImpl guard(x.device().type());
  // Torch lets tf32 into matrix products and into convolutions by two switches.
  const auto allows_tf32 = [](at::Float32Op op) {
    return at::globalContext().float32Precision(at::Float32Backend::CUDA, op) == at::Float32Precision::TF32;
  };
  return {.stream = guard.getStreamNativeHandle(guard.getStream(x.device())),
          .device = x.device().index(),
          .error = error,
          .allow_tf32 = allows_tf32(at::Float32Op::MATMUL),
          .allow_conv_tf32 = allows_tf32(at::Float32Op::CONV),
          .workspace = cuda_workspace};
}

}  // namespace

Context context_for(const at::Tensor& x, int* error) {
  if (!x.is_cpu()) return cuda_context(x, error);
  static const int64_t l2_bytes = [] {
    long bytes = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return bytes > 0 ? bytes : Context().l2_bytes;
  }();
  return {.threads = at::get_num_threads(), .l2_bytes = l2_bytes, .workspace = thread_workspace};
}

void finish_launch(const at::Tensor& x, const char* op, const Context& ctx) {
  static const bool wait = [] {
    const char* wanted = std::getenv("MINIDL_CUDA_SYNC");
    return wanted && *wanted && *wanted != '0';
  }();
  cuda_scratch.clear();
  int code = *ctx.error;
  if (code == 0 && wait) code = cuda::synchronize(ctx.device, ctx.stream);
  if (code == 0) return;
  throw c10::AcceleratorError(
      {__func__, __FILE__, __LINE__}, code,
      c10::str(
          "minidl::", op, " on a tensor of shape ", x.sizes(), " and dtype ", x.scalar_type(),
          ": CUDA error ", code, ", ", cuda::error_name(code), ": ", cuda::error_text(code),
          wait ? "" : "; an earlier launch may be to blame: MINIDL_CUDA_SYNC=1 waits for each and names it"));
}

}  // namespace minidl
