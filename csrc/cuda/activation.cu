#include "activation.cuh"

#include "vec.cuh"

namespace minidl::cuda {
namespace {

template <class F>
struct Forward {
  F f;
  template <class T>
  MINIDL_DEVICE T operator()(T x) const {
    return f.forward(x);
  }
};

template <class F>
struct Backward {
  F f;
  template <class T>
  MINIDL_DEVICE T operator()(T dy, T saved) const {
    return f.backward(dy, saved);
  }
};

}  // namespace

template <class T>
void activation_forward(T* y, const T* x, int64_t n, Activation activation, Context ctx) {
  visit_activation<Wide<T>>(activation, [&](auto f) { map(y, n, ctx, Forward<decltype(f)>{f}, x); });
}

template <class T>
void activation_backward(T* dx, const T* dy, const T* saved, int64_t n, Activation activation, Context ctx) {
  visit_activation<Wide<T>>(activation,
                            [&](auto f) { map(dx, n, ctx, Backward<decltype(f)>{f}, dy, saved); });
}

#define INSTANTIATE(T)                                                          \
  template void activation_forward(T*, const T*, int64_t, Activation, Context); \
  template void activation_backward(T*, const T*, const T*, int64_t, Activation, Context);
MINIDL_FOR_EACH_TYPE(INSTANTIATE)

}  // namespace minidl::cuda
