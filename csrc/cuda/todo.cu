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
template <class T>
void batch_norm_forward(T* y, double* stats, const T* x, const T* mean, const T* var, NormAffine<T> a, ChannelShape s, double eps, Context ctx) {
  report(ctx, 801);
}
#define I(T) template void batch_norm_forward<T>(T* y, double* stats, const T* x, const T* mean, const T* var, NormAffine<T> a, ChannelShape s, double eps, Context ctx);
MINIDL_FOR_EACH_TYPE(I)
#undef I
template <class T>
void batch_norm_update(T* running_mean, T* running_var, const double* stats, int64_t channels, double momentum, Context ctx) {
  report(ctx, 801);
}
#define I(T) template void batch_norm_update<T>(T* running_mean, T* running_var, const double* stats, int64_t channels, double momentum, Context ctx);
MINIDL_FOR_EACH_TYPE(I)
#undef I
template <class T>
void batch_norm_backward(T* dx, T* dw, T* db, const T* dy, const T* x, const double* stats, NormAffine<T> a, ChannelShape s, bool of_batch, Context ctx) {
  report(ctx, 801);
}
#define I(T) template void batch_norm_backward<T>(T* dx, T* dw, T* db, const T* dy, const T* x, const double* stats, NormAffine<T> a, ChannelShape s, bool of_batch, Context ctx);
MINIDL_FOR_EACH_TYPE(I)
#undef I
template <class T>
void group_norm_forward(T* y, double* stats, const T* x, NormAffine<T> a, ChannelShape s, int64_t groups, double eps, Context ctx) {
  report(ctx, 801);
}
#define I(T) template void group_norm_forward<T>(T* y, double* stats, const T* x, NormAffine<T> a, ChannelShape s, int64_t groups, double eps, Context ctx);
MINIDL_FOR_EACH_TYPE(I)
#undef I
template <class T>
void group_norm_backward(T* dx, T* dw, T* db, const T* dy, const T* x, const double* stats, NormAffine<T> a, ChannelShape s, int64_t groups, Context ctx) {
  report(ctx, 801);
}
#define I(T) template void group_norm_backward<T>(T* dx, T* dw, T* db, const T* dy, const T* x, const double* stats, NormAffine<T> a, ChannelShape s, int64_t groups, Context ctx);
MINIDL_FOR_EACH_TYPE(I)
#undef I
}  // namespace minidl::cuda
