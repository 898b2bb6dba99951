// A plan: a flat list of calls into the kernel table, with all shapes decided. Torch-free, so that it runs over
// every table, under sanitizers and in the CUDA simulator as well.
//
// A call's pointers are not known when it is planned, since parameters and data may lie elsewhere at each run.
// They are written down as addresses: a slot, which run() is told the address of, and an offset in bytes. An
// address is kept in the pointer itself, so that a call is planned with the arguments that the kernel takes.
#pragma once
#include <functional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "step/block_step.h"

namespace minidl {

constexpr int address_offset_bits = 44;

template <class Pointer>
Pointer address(int64_t slot, int64_t offset) {
  return reinterpret_cast<Pointer>(((slot + 1) << address_offset_bits) + offset);
}
template <class T>
T* resolved(T* address, char* const* slots) {
  const auto bits = reinterpret_cast<int64_t>(address);
  if (bits == 0) return nullptr;
  const int64_t offset = bits & ((int64_t(1) << address_offset_bits) - 1);
  return reinterpret_cast<T*>(slots[(bits >> address_offset_bits) - 1] + offset);
}

// The pointers of an argument, resolved in place. Most arguments have none.
template <class T>
void resolve(T*& p, char* const* slots) {
  p = resolved(p, slots);
}
template <class Argument>
  requires(!std::is_pointer_v<Argument>)
void resolve(Argument&, char* const*) {}
template <class T>
void resolve(MatrixView<T>& v, char* const* slots) {
  resolve(v.data, slots);
}
template <class T>
void resolve(ImageView<T>& v, char* const* slots) {
  resolve(v.data, slots);
}
template <class T>
void resolve(Epilogue<T>& e, char* const* slots) {
  resolve(e.bias, slots);
}
template <class T>
void resolve(NormAffine<T>& a, char* const* slots) {
  resolve(a.w, slots);
  resolve(a.b, slots);
}
template <class T>
void resolve(ClassTarget<T>& t, char* const* slots) {
  resolve(t.index, slots);
  resolve(t.probability, slots);
  resolve(t.weight, slots);
}
inline void resolve(PoolPosition& p, char* const* slots) {
  resolve(p.place, slots);
  resolve(p.index, slots);
}
inline void resolve(DropoutParams& p, char* const* slots) { resolve(p.state, slots); }

// What stops a run, before anything outlives it: a target that is no class, or a probability outside [0, 1].
struct BadTarget {
  int64_t value;
};
struct OutsideUnitInterval {
  bool is_target;
};

template <class T>
class Plan {
 public:
  template <class... P>
  void call(void (*KernelsOf<T>::*kernel)(P...), std::type_identity_t<P>... planned) {
    block_calls_.push_back(block_call<T>(kernel, planned...));
    calls_.push_back([=](const KernelsOf<T>& k, char* const* slots, const Context& ctx) {
      const auto argument = [&]<class A>(A a) {
        resolve(a, slots);
        if constexpr (std::is_same_v<A, Context>) a = ctx;
        return a;
      };
      (k.*kernel)(argument(planned)...);
    });
  }

  void check_target(const int64_t* planned, int64_t n, int64_t classes, int64_t ignore_index) {
    calls_.push_back([=](const KernelsOf<T>& k, char* const* slots, const Context& ctx) {
      const int64_t* target = resolved(planned, slots);
      int64_t position = -1;
      k.find_bad_target(&position, target, n, classes, ignore_index, ctx);
      if (position >= 0) throw BadTarget{target[position]};
    });
  }

  void check_unit_interval(const T* planned, int64_t n, bool is_target) {
    calls_.push_back([=](const KernelsOf<T>& k, char* const* slots, const Context& ctx) {
      bool inside = true;
      k.all_in_unit_interval(&inside, resolved(planned, slots), n, ctx);
      if (!inside) throw OutsideUnitInterval{is_target};
    });
  }

  // The calls as data, less the checks, which nothing but the CPU's kernels makes; and those of a run.
  const std::vector<BlockCall<T>>& block_calls() const { return block_calls_; }
  std::vector<BlockCall<T>> block_calls(char* const* slots) const {
    std::vector<BlockCall<T>> calls = block_calls_;
    const auto resolve_one = [&]<class Call>(Call& call) {
      if constexpr (!std::is_same_v<Call, std::monostate>) {
        std::apply([&](auto&... a) { (resolve(a, slots), ...); }, call);
      }
    };
    for (BlockCall<T>& call : calls) std::visit(resolve_one, call);
    return calls;
  }

  bool empty() const { return calls_.empty(); }

  // slots: the address of each.
  void run(const KernelsOf<T>& k, char* const* slots, const Context& ctx) const {
    for (const auto& call : calls_) call(k, slots, ctx);
  }

 private:
  std::vector<BlockCall<T>> block_calls_;
  std::vector<std::function<void(const KernelsOf<T>&, char* const*, const Context&)>> calls_;
};

}  // namespace minidl
