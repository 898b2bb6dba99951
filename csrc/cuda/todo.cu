// Kernels whose CUDA twins are still to be written. Each reports an error (801, not supported).
#include "launch.cuh"

namespace minidl::cuda {
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
template <class T>
void max_pool_forward(T* y, PoolPosition position, const T* x, PoolShape s, Context ctx) {
  report(ctx, 801);
}
#define I(T) template void max_pool_forward<T>(T* y, PoolPosition position, const T* x, PoolShape s, Context ctx);
MINIDL_FOR_EACH_TYPE(I)
#undef I
template <class T>
void max_pool_backward(T* dx, const T* dy, PoolPosition position, PoolShape s, Context ctx) {
  report(ctx, 801);
}
#define I(T) template void max_pool_backward<T>(T* dx, const T* dy, PoolPosition position, PoolShape s, Context ctx);
MINIDL_FOR_EACH_TYPE(I)
#undef I
template <class T>
void avg_pool_forward(T* y, const T* x, PoolShape s, PoolDivisor divisor, Context ctx) {
  report(ctx, 801);
}
#define I(T) template void avg_pool_forward<T>(T* y, const T* x, PoolShape s, PoolDivisor divisor, Context ctx);
MINIDL_FOR_EACH_TYPE(I)
#undef I
template <class T>
void avg_pool_backward(T* dx, const T* dy, PoolShape s, PoolDivisor divisor, Context ctx) {
  report(ctx, 801);
}
#define I(T) template void avg_pool_backward<T>(T* dx, const T* dy, PoolShape s, PoolDivisor divisor, Context ctx);
MINIDL_FOR_EACH_TYPE(I)
#undef I
}  // namespace minidl::cuda
