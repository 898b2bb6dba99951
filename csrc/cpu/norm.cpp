#include "norm.h"

#include "norm_columns.h"
#include "norm_planes.h"
#include "norm_rows.h"

namespace minidl::MINIDL_ISA {

template <class T>
void batch_norm_forward(T* y, double* stats, const T* x, const T* mean, const T* var, NormAffine<T> a,
                        ChannelShape s, double eps, Context ctx) {
  double *means = stats, *rstds = means + s.channels, *vars = rstds + s.channels;
  for (int64_t c = 0; mean && c < s.channels; ++c) {
    means[c] = static_cast<double>(mean[c]);
    vars[c] = static_cast<double>(var[c]);
    rstds[c] = reciprocal_root(vars[c], eps);
  }
  const auto finish = [=](int64_t c, const Moments& m) {
    means[c] = m.mean;
    rstds[c] = reciprocal_root(m.variance(), eps);
    vars[c] = m.unbiased_variance();
  };
  visit_relu<T>(a.relu, [&](auto f) {
    if (s.inner == 1) {
      columns_forward(f, y, x, means, rstds, Columns<T>{s.outer, s.channels}, a, !mean, finish, ctx);
    } else {
      planes_forward(f, y, x, means, rstds, Planes::of_batch(s), a, !mean, finish, ctx);
    }
  });
}

template <class T>
void batch_norm_update(T* running_mean, T* running_var, const double* stats, int64_t channels,
                       double momentum, Context) {
  const double *mean = stats, *var = stats + 2 * channels;
  const double keep = 1 - momentum;
  for (int64_t c = 0; c < channels; ++c) {
    running_mean[c] = static_cast<T>(momentum * mean[c] + keep * static_cast<double>(running_mean[c]));
    running_var[c] = static_cast<T>(momentum * var[c] + keep * static_cast<double>(running_var[c]));
  }
}

template <class T>
void batch_norm_backward(T* dx, T* dw, T* db, const T* dy, const T* x, const double* stats, NormAffine<T> a,
                         ChannelShape s, bool of_batch, Context ctx) {
  const double *mean = stats, *rstd = stats + s.channels;
  visit_relu<T>(a.relu, [&](auto f) {
    if (s.inner == 1) {
      columns_backward(f, dx, dw, db, dy, x, mean, rstd, Columns<T>{s.outer, s.channels}, a, of_batch, ctx);
    } else {
      planes_backward(f, dx, dw, db, dy, x, mean, rstd, Planes::of_batch(s), a, of_batch, ctx);
    }
  });
}

template <class T>
void group_norm_forward(T* y, double* stats, const T* x, NormAffine<T> a, ChannelShape s, int64_t groups,
                        double eps, Context ctx) {
  double *mean = stats, *rstd = stats + s.outer * groups;
  visit_relu<T>(a.relu, [&](auto f) {
    if (s.inner == 1) {
      rows_forward(f, y, mean, rstd, x, Rows{s.outer, groups, s.channels / groups}, a, eps);
    } else {
      const auto finish = [=](int64_t set, const Moments& m) {
        mean[set] = m.mean;
        rstd[set] = reciprocal_root(m.variance(), eps);
      };
      planes_forward(f, y, x, mean, rstd, Planes::of_groups(s, groups), a, true, finish, ctx);
    }
  });
}

template <class T>
void group_norm_backward(T* dx, T* dw, T* db, const T* dy, const T* x, const double* stats, NormAffine<T> a,
                         ChannelShape s, int64_t groups, Context ctx) {
  const double *mean = stats, *rstd = stats + s.outer * groups;
  visit_relu<T>(a.relu, [&](auto f) {
    if (s.inner == 1) {
      rows_backward(f, dx, dw, db, dy, x, mean, rstd, Rows{s.outer, groups, s.channels / groups}, a, ctx);
    } else {
      planes_backward(f, dx, dw, db, dy, x, mean, rstd, Planes::of_groups(s, groups), a, true, ctx);
    }
  });
}

#define INSTANTIATE(T)                                                                                     \
  template void batch_norm_forward(T*, double*, const T*, const T*, const T*, NormAffine<T>, ChannelShape, \
                                   double, Context);                                                       \
  template void batch_norm_update(T*, T*, const double*, int64_t, double, Context);                        \
  template void batch_norm_backward(T*, T*, T*, const T*, const T*, const double*, NormAffine<T>,          \
                                    ChannelShape, bool, Context);                                          \
  template void group_norm_forward(T*, double*, const T*, NormAffine<T>, ChannelShape, int64_t, double,    \
                                   Context);                                                               \
  template void group_norm_backward(T*, T*, T*, const T*, const T*, const double*, NormAffine<T>,          \
                                    ChannelShape, int64_t, Context);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace minidl::MINIDL_ISA
