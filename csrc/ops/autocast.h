// torch.autocast("cuda"): which tensors are cast before an operator runs, by torch's own lists. Not on the CPU, which
// has no kernels for 16 bits.
#pragma once
#include <ATen/autocast_mode.h>
#undef KERNEL  // kernels.h has its own

#include "ops/op.h"

namespace minidl {
namespace {

// To the dtype of the region, for what tensor cores do; to float32, for what needs its range or its digits.
enum class Cast { lower, to_float };

inline at::ScalarType autocast_dtype(Cast cast) {
  return cast == Cast::lower ? at::autocast::get_autocast_dtype(at::kCUDA) : at::kFloat;
}

// What the AutocastCUDA key calls: the operator again, with its floating-point tensors cast. Parameters that are cast
// are kept for the region.
template <auto backend, Cast cast, class Signature = std::remove_pointer_t<decltype(backend)>>
struct Autocast;
template <auto backend, Cast cast, class Result, class... Args>
struct Autocast<backend, cast, Result(Args...)> {
  static inline const char* name =
      nullptr;  // set while the library loads, when no constructor may have run yet
  static Result call(Args... args) {
    static const auto op = find_op<Result(Args...)>((std::string("minidl::") + name).c_str());
    const c10::impl::ExcludeDispatchKeyGuard once(c10::DispatchKey::AutocastCUDA);
    return op.call(at::autocast::cached_cast(autocast_dtype(cast), args, at::kCUDA)...);
  }
};

// `instead`: which decides by its arguments whether to call that.
template <auto backend, Cast cast>
void define_autocast(torch::Library& m, const char* name,
                     decltype(backend) instead = &Autocast<backend, cast>::call) {
  Autocast<backend, cast>::name = name;
  m.impl(name, torch::dispatch(c10::DispatchKey::AutocastCUDA, instead));
}

}  // namespace
}  // namespace minidl
