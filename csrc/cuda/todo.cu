// Kernels whose CUDA twins are still to be written. Each reports an error (801, not supported).
#include "launch.cuh"

namespace minidl::cuda {
template <class T>
void conv_forward(ImageView<T> y, ImageView<const T> x, ImageView<const T> w, ConvShape s, Epilogue<T> epilogue, Context ctx) {
  report(ctx, 801);
}
#define I(T) template void conv_forward<T>(ImageView<T> y, ImageView<const T> x, ImageView<const T> w, ConvShape s, Epilogue<T> epilogue, Context ctx);
MINIDL_FOR_EACH_TYPE(I)
#undef I
template <class T>
void conv_backward_input(ImageView<T> dx, ImageView<const T> dy, ImageView<const T> w, ConvShape s, Epilogue<T> epilogue, Context ctx) {
  report(ctx, 801);
}
#define I(T) template void conv_backward_input<T>(ImageView<T> dx, ImageView<const T> dy, ImageView<const T> w, ConvShape s, Epilogue<T> epilogue, Context ctx);
MINIDL_FOR_EACH_TYPE(I)
#undef I
template <class T>
void conv_backward_weight(ImageView<T> dw, ImageView<const T> dy, ImageView<const T> x, ConvShape s, Context ctx) {
  report(ctx, 801);
}
#define I(T) template void conv_backward_weight<T>(ImageView<T> dw, ImageView<const T> dy, ImageView<const T> x, ConvShape s, Context ctx);
MINIDL_FOR_EACH_TYPE(I)
#undef I
template <class T>
void planes_epilogue_backward(T* dz, T* db, const T* dy, const T* y, ClassShape s, Activation f, Context ctx) {
  report(ctx, 801);
}
#define I(T) template void planes_epilogue_backward<T>(T* dz, T* db, const T* dy, const T* y, ClassShape s, Activation f, Context ctx);
MINIDL_FOR_EACH_TYPE(I)
#undef I
}  // namespace minidl::cuda
