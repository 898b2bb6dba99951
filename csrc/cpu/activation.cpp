#include "activation.h"
#include "kernels.h"
#include "parallel.h"

namespace minidl::MINIDL_ISA {
namespace {

// Below this many elements a second thread costs more than it saves (measured: 2-3 us to enter a region).
constexpr int64_t grain = 32768;

}  // namespace

template <class T>
void activation_forward(T* y, const T* x, int64_t n, Activation activation, Context) {
  visit_activation<T>(activation, [&](auto f) {
    parallel_for(n, grain, [&](int64_t begin, int64_t end) {
      for_lanes<T>(begin, end, [&](int64_t i, int64_t lanes, auto tag) {
        store_lanes(f.forward(load_lanes(x + i, lanes, tag)), y + i, lanes, tag);
      });
    });
  });
}

template <class T>
void activation_backward(T* dx, const T* dy, const T* saved, int64_t n, Activation activation, Context) {
  visit_activation<T>(activation, [&](auto f) {
    parallel_for(n, grain, [&](int64_t begin, int64_t end) {
      for_lanes<T>(begin, end, [&](int64_t i, int64_t lanes, auto tag) {
        const Vec<T> g = load_lanes(dy + i, lanes, tag);
        store_lanes(f.backward(g, load_lanes(saved + i, lanes, tag)), dx + i, lanes, tag);
      });
    });
  });
}

template void activation_forward(float*, const float*, int64_t, Activation, Context);
template void activation_forward(double*, const double*, int64_t, Activation, Context);
template void activation_backward(float*, const float*, const float*, int64_t, Activation, Context);
template void activation_backward(double*, const double*, const double*, int64_t, Activation, Context);

}  // namespace minidl::MINIDL_ISA
