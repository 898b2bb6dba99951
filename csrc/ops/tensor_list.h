// What operators on lists of tensors share: their checks, which tensors one kernel call may take, and copies
// of what a flat loop cannot walk.
#pragma once
#include <ATen/EmptyTensor.h>
#include <ATen/MemoryOverlap.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/autograd/forward_grad.h>

#include <algorithm>
#include <forward_list>
#include <vector>

#include "ops/op.h"

namespace minidl {
namespace {

using at::TensorList;

// Lists of a small model need no memory from the heap: it would take longer than its update.
template <class T>
using ShortList = c10::SmallVector<T, 8>;

void check_one_device(const char* op, const char* name, TensorList tensors) {
  for (const Tensor& x : tensors) {
    TORCH_CHECK(x.device() == tensors[0].device(), "minidl::", op, ": expected all ", name,
                " of one call on one device, but got ", tensors[0].device(), " and ", x.device());
  }
}

void check_writable(const Tensor& x) {
  if (!x.is_non_overlapping_and_dense()) at::assert_no_internal_overlap(x);
}

// Whether two tensors may share memory; of interlaced ones it says so too.
bool overlap(TensorList tensors) {
  ShortList<std::pair<const char*, const char*>> ranges;
  for (const Tensor& x : tensors) {
    const char* begin = static_cast<const char*>(x.const_data_ptr());
    const size_t bytes = x.is_non_overlapping_and_dense()
                             ? x.nbytes()
                             : at::detail::computeStorageNbytes(x.sizes(), x.strides(), x.itemsize());
    ranges.emplace_back(begin, begin + bytes);
  }
  std::sort(ranges.begin(), ranges.end());
  const auto reaches = [](const auto& a, const auto& b) { return b.first < a.second; };
  return std::adjacent_find(ranges.begin(), ranges.end(), reaches) != ranges.end();
}

// Calls f(batch, k, T{}, ctx) with the positions of tensors of one dtype, for all of them together, as launch
// does. A list whose tensors overlap is taken one after the other, so that what is listed twice is written
// twice, as torch does.
template <class F>
void launch_batches(const char* op, TensorList tensors, F f) {
  const size_t most = overlap(tensors) ? 1 : tensors.size();
  for (size_t begin = 0; begin < tensors.size(); begin += most) {
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
      ShortList<size_t> batch;
      for (size_t i = begin; i < begin + most; ++i) {
        if (tensors[i].scalar_type() == dtype) batch.push_back(i);
      }
      if (batch.empty()) continue;
      launch(op, tensors[batch[0]],
             [&](const auto& k, auto zero, const Context& ctx) { f(batch, k, zero, ctx); });
    }
  }
}

// Equal order of elements in memory. Strides of one-element dimensions say nothing, hence the first test.
bool same_layout(const Tensor& x, const Tensor& y) {
  return (x.is_contiguous() && y.is_contiguous()) || x.strides() == y.strides();
}

// Tensors for a flat loop: themselves where it can walk them, else copies, which finish() writes back.
// References throughout: a copy of a Tensor that Python knows takes the GIL.
class Walkable {
 public:
  const Tensor& read(const Tensor& x, const Tensor& like) {
    return same_layout(x, like) ? x : keep(laid_out_as(x, like));
  }
  const Tensor& written(const Tensor& x, const Tensor& like) {
    return same_layout(x, like) ? x : staged(x, like);
  }
  const Tensor& written(const Tensor& x) { return x.is_non_overlapping_and_dense() ? x : staged(x, x); }
  const Tensor& as_float(const Tensor& x) {
    if (x.scalar_type() == at::kFloat) return x;
    const Tensor& copy = keep(x.to(at::kFloat));
    write_back_.emplace_back(&x, &copy);
    return copy;
  }
  const Tensor& keep(Tensor copy) { return copies_.emplace_front(std::move(copy)); }

  void finish() {
    for (const auto& [target, copy] : write_back_) target->copy_(*copy);
  }

 private:
  const Tensor& staged(const Tensor& x, const Tensor& like) {
    const Tensor& copy = keep(at::empty_like(like).copy_(x));
    write_back_.emplace_back(&x, &copy);
    return copy;
  }

  std::forward_list<Tensor> copies_;  // a list: references into it stay valid
  std::vector<std::pair<const Tensor*, const Tensor*>> write_back_;
};

void bump_versions(TensorList tensors) {
  for (const Tensor& x : tensors) {
    if (!x.is_inference()) x.unsafeGetTensorImpl()->bump_version();
  }
}

// What the Autograd key calls: the operator itself, unless a graph is wanted, or something is sparse: the
// dispatcher would say that in a page of keys.
template <auto op, class Signature = std::remove_pointer_t<decltype(op)>>
struct WithoutGraph;
template <auto op, class Result, class... Args>
struct WithoutGraph<op, Result(Args...)> {
  static Result call(Args... args) {
    // Asked once for all: without either, no tensor of the lists needs a graph.
    const bool differentiating =
        at::GradMode::is_enabled() || torch::autograd::ForwardADLevel::try_get_by_idx(0);
    (check(args, differentiating), ...);
    at::AutoDispatchBelowADInplaceOrView guard;
    return op(args...);
  }

 private:
  static void check(TensorList tensors, bool differentiating) {
    for (const Tensor& x : tensors) {
      TORCH_CHECK(!differentiating || !needs_graph(x),
                  "minidl: updates and norms of lists have no derivative; call them under torch.no_grad()");
      TORCH_CHECK_NOT_IMPLEMENTED(
          x.layout() == at::kStrided,
          "minidl does not support sparse gradients or parameters; please consider an "
          "optimizer of torch.optim that does, such as SparseAdam");
    }
  }
  template <class Other>
  static void check(const Other&, bool) {}
};

}  // namespace
}  // namespace minidl
