#include "ops/norm.h"

#include "ops/autocast.h"
#include "ops/tensor_list.h"

namespace minidl {
namespace {

// ---- batch norm -------------------------------------------------------------------------------------

// x in one of the two orders that the kernels walk: channels second, or channels last.
Tensor channels_second_or_last(const Tensor& x) {
  const bool dense = x.is_contiguous() || (x.dim() > 2 && x.movedim(1, -1).is_contiguous());
  return dense ? x : x.contiguous();
}

ChannelShape batch_shape(const Tensor& x) {
  const int64_t channels = x.size(1), outer = x.size(0);
  if (!x.is_contiguous()) return {channels ? x.numel() / channels : 0, channels, 1};
  return {outer, channels, c10::multiply_integers(x.sizes().slice(2))};
}

// The checks of both directions, up to the weights.
void check_batch_norm(const char* op, const Tensor& x, const OptionalTensor& w, const OptionalTensor& b) {
  check_dtype(op, x);
  TORCH_CHECK(x.dim() >= 2, "minidl::", op, ": expected input of shape (N, C, ...), but got ", x.sym_sizes());
  check_per_channel(op, "weight", w, x, {x.sym_size(1)});
  check_per_channel(op, "bias", b, x, {x.sym_size(1)});
}

// y and stats, of shape (3, C): mean, rstd and unbiased variance, in double.
std::tuple<Tensor, Tensor> batch_norm_forward(const Tensor& x_, const OptionalTensor& w_,
                                              const OptionalTensor& b_, const OptionalTensor& mean_,
                                              const OptionalTensor& var_, bool training, double eps,
                                              std::string_view activation) {
  const char* op = "batch_norm";
  const bool relu = fused_relu(op, activation);
  check_batch_norm(op, x_, w_, b_);
  check_per_channel(op, "running_mean", mean_, x_, {x_.sym_size(1)});
  check_per_channel(op, "running_var", var_, x_, {x_.sym_size(1)});
  TORCH_CHECK(training || (mean_.has_value() && var_.has_value()), "minidl::", op,
              ": expected running_mean and running_var to be defined when training=False");
  TORCH_CHECK_VALUE(mean_.has_value() == var_.has_value(), "minidl::", op,
                    ": running_mean and running_var must either both be None or neither be None");
  TORCH_CHECK_VALUE(training ? eps > 0 : eps >= 0, "minidl::", op, ": eps must be ",
                    training ? "positive during training" : "non-negative", ", but got ", eps);
  TORCH_CHECK_VALUE(!training || x_.sym_numel() != x_.sym_size(1) || x_.sym_numel() == 0, "minidl::", op,
                    ": Expected more than 1 value per channel when training, got input size ",
                    x_.sym_sizes());
  const Tensor x = channels_second_or_last(x_);
  const Tensor y = output_like(x), stats = output({3, x.sym_size(1)}, x, at::kDouble);
  if (y.is_meta()) return {y, stats};
  const OptionalTensor w = contiguous(w_), b = contiguous(b_);
  const OptionalTensor none, mean = training ? none : contiguous(mean_),
                             var = training ? none : contiguous(var_);
  launch(op, x, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.batch_norm_forward(mutable_data<T>(y), stats.template mutable_data_ptr<double>(), data<T>(x),
                         data<T>(mean), data<T>(var), {data<T>(w), data<T>(b), relu}, batch_shape(x), eps,
                         ctx);
  });
  return {y, stats};
}

void batch_norm_update(const Tensor& mean_, const Tensor& var_, const Tensor& stats_, double momentum) {
  const char* op = "batch_norm_update";
  TORCH_CHECK(stats_.scalar_type() == at::kDouble && stats_.dim() == 2 && stats_.sym_size(0) == 3,
              "minidl::", op, ": expected float64 stats of shape (3, C), but got ", stats_.scalar_type(), " ",
              stats_.sym_sizes());
  for (const auto& [name, x] : {std::pair("running_mean", &mean_), std::pair("running_var", &var_)}) {
    check_dtype(op, *x);
    check_same_dtype(op, "running_mean", mean_, name, *x);
    TORCH_CHECK(x->dim() == 1 && x->sym_size(0) == stats_.sym_size(1), "minidl::", op, ": expected ", name,
                " of shape (", stats_.sym_size(1), "), but got ", x->sym_sizes());
    check_writable(*x);
  }
  if (stats_.is_meta()) return;
  const Tensor stats = stats_.contiguous();
  Walkable walkable;
  const Tensor &mean = walkable.written(mean_), &var = walkable.written(var_);
  launch(op, mean, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.batch_norm_update(mutable_data<T>(mean), mutable_data<T>(var), data<double>(stats), stats.size(1),
                        momentum, ctx);
  });
  walkable.finish();
  bump_versions({mean_, var_});
}

void call_batch_norm_update(const Tensor& mean, const Tensor& var, const Tensor& stats, double momentum) {
  static const auto op = find_op<decltype(batch_norm_update)>("minidl::batch_norm_update");
  op.call(mean, var, stats, momentum);
}

Gradients batch_norm_backward(const Tensor& dy_, const Tensor& x_, const OptionalTensor& w_,
                              const OptionalTensor& b_, const Tensor& stats_, bool training,
                              std::string_view activation, Wanted wanted) {
  const char* op = "batch_norm_backward";
  const bool relu = fused_relu(op, activation);
  check_batch_norm(op, x_, w_, b_);
  check_backward(op, dy_, x_, stats_, {3, x_.sym_size(1)});
  const Tensor x = channels_second_or_last(x_), dy = laid_out_as(dy_, x), stats = stats_.contiguous();
  const Gradients result = gradients_like(x, {x.sym_size(1)}, wanted);
  if (x.is_meta()) return result;
  const OptionalTensor w = contiguous(w_), b = contiguous(b_);
  launch(op, x, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    const auto [dx, dw, db] = wanted_data<T>(result, wanted);
    k.batch_norm_backward(dx, dw, db, data<T>(dy), data<T>(x), data<double>(stats),
                          {data<T>(w), data<T>(b), relu}, batch_shape(x), training, ctx);
  });
  return result;
}

class BatchNormNode final : public NormNode {
 public:
  BatchNormNode(bool training, double eps, std::string_view activation)
      : NormNode("BatchNormBackward", eps, activation), training_(training) {}

 private:
  Gradients call(const Tensor& dy, const Saved& s, Wanted want) const override {
    static const auto op = find_op<decltype(batch_norm_backward)>("minidl::batch_norm_backward");
    return op.call(dy, s.x, s.w, s.b, s.stats, training_, activation_, want);
  }
  Differentiable differentiable(const Tensor& dy, const Saved& s) const override {
    SymShape shape(s.x.dim(), 1);
    shape[1] = s.x.sym_size(1);
    const auto along = [&](const Tensor& p) { return p.to(s.x.scalar_type()).view_symint(shape); };
    const auto viewed = [&](const OptionalTensor& p) { return p ? OptionalTensor(along(*p)) : p; };
    Differentiable d{dy, s.x, viewed(s.w), viewed(s.b), {0}, eps_, relu()};
    for (int64_t dim = 2; dim < s.x.dim(); ++dim) d.dims.push_back(dim);
    if (!training_) d.stats = {along(s.stats.select(0, 0)), along(s.stats.select(0, 1))};
    return d;
  }
  bool training_;
};

auto call_batch_norm(const Tensor& x, const OptionalTensor& w, const OptionalTensor& b,
                     const OptionalTensor& mean, const OptionalTensor& var, bool training, double eps,
                     std::string_view activation) {
  static const auto op = find_op<decltype(batch_norm_forward)>("minidl::batch_norm_forward");
  return op.call(x, w, b, mean, var, training, eps, activation);
}

std::tuple<Tensor, Tensor> batch_norm_autograd(const Tensor& x, const OptionalTensor& w,
                                               const OptionalTensor& b, const OptionalTensor& mean,
                                               const OptionalTensor& var, bool training, double eps,
                                               std::string_view activation) {
  return with_node<BatchNormNode>(
      [&] { return call_batch_norm(x, w, b, mean, var, training, eps, activation); }, x, w, b, training, eps,
      activation);
}

// ---- group norm, layer norm -------------------------------------------------------------------------

// What group_norm_forward and its kernels see of an input: layer norm is the case of one group and inner
// == 1.
struct Groups {
  SymInt outer, channels, inner, groups;

  ChannelShape shape() const { return {outer.expect_int(), channels.expect_int(), inner.expect_int()}; }
  SymShape stats_shape() const { return {2, outer * groups}; }
};

Groups groups_of(const char* op, const Tensor& x, int64_t groups, const OptionalTensor& w,
                 const OptionalTensor& b) {
  check_dtype(op, x);
  TORCH_CHECK(x.dim() >= 2, "minidl::", op, ": expected input of shape (N, C, ...), but got ", x.sym_sizes());
  TORCH_CHECK(groups > 0, "minidl::", op, ": expected num_groups to be greater than 0, got ", groups);
  const auto size = x.sym_sizes();
  TORCH_CHECK(size[1] % groups == 0, "minidl::", op, ": expected the channels of input ", size,
              " to be divisible by num_groups ", groups);
  check_per_channel(op, "weight", w, x, {size[1]});
  check_per_channel(op, "bias", b, x, {size[1]});
  return {size[0], size[1], product(size.slice(2)), groups};
}

Groups layers_of(const char* op, const Tensor& x, c10::SymIntArrayRef normalized_shape,
                 const OptionalTensor& w, const OptionalTensor& b) {
  check_dtype(op, x);
  const int64_t dims = std::ssize(normalized_shape), outer_dims = x.dim() - dims;
  TORCH_CHECK(dims >= 1, "minidl::", op, ": expected normalized_shape to be at least 1-dimensional, but got ",
              normalized_shape);
  TORCH_CHECK(outer_dims >= 0 && x.sym_sizes().slice(outer_dims) == normalized_shape, "minidl::", op,
              ": expected input of shape [*, ...] that ends in normalized_shape ", normalized_shape,
              ", but got ", x.sym_sizes());
  check_per_channel(op, "weight", w, x, normalized_shape);
  check_per_channel(op, "bias", b, x, normalized_shape);
  return {product(x.sym_sizes().slice(0, outer_dims)), product(normalized_shape), 1, 1};
}

// y and stats, of shape (2, outer * groups): mean and rstd, in double.
std::tuple<Tensor, Tensor> run_forward(const char* op, const Tensor& x_, const Groups& g,
                                       const OptionalTensor& w_, const OptionalTensor& b_, double eps,
                                       bool relu) {
  const Tensor x = x_.contiguous();
  const Tensor y = output_like(x), stats = output(g.stats_shape(), x, at::kDouble);
  if (y.is_meta()) return {y, stats};
  const OptionalTensor w = contiguous(w_), b = contiguous(b_);
  launch(op, x, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.group_norm_forward(mutable_data<T>(y), mutable_data<double>(stats), data<T>(x),
                         {data<T>(w), data<T>(b), relu}, g.shape(), g.groups.expect_int(), eps, ctx);
  });
  return {y, stats};
}

Gradients run_backward(const char* op, const Tensor& dy_, const Tensor& x_, const Groups& g,
                       const OptionalTensor& w_, const OptionalTensor& b_, const Tensor& stats_,
                       c10::SymIntArrayRef weight_shape, bool relu, Wanted wanted) {
  check_backward(op, dy_, x_, stats_, g.stats_shape());
  const Tensor x = x_.contiguous(), dy = dy_.contiguous(), stats = stats_.contiguous();
  const Gradients result = gradients_like(x, weight_shape, wanted);
  if (x.is_meta()) return result;
  const OptionalTensor w = contiguous(w_), b = contiguous(b_);
  launch(op, x, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    const auto [dx, dw, db] = wanted_data<T>(result, wanted);
    k.group_norm_backward(dx, dw, db, data<T>(dy), data<T>(x), data<double>(stats),
                          {data<T>(w), data<T>(b), relu}, g.shape(), g.groups.expect_int(), ctx);
  });
  return result;
}

std::tuple<Tensor, Tensor> group_norm_forward(const Tensor& x, int64_t groups, const OptionalTensor& w,
                                              const OptionalTensor& b, double eps,
                                              std::string_view activation) {
  const char* op = "group_norm";
  const bool relu = fused_relu(op, activation);
  const Groups g = groups_of(op, x, groups, w, b);
  TORCH_CHECK_VALUE(g.outer * (g.channels / groups) * g.inner != 1, "minidl::", op,
                    ": Expected more than 1 value per channel when training, got input size ", x.sym_sizes());
  return run_forward(op, x, g, w, b, eps, relu);
}

Gradients group_norm_backward(const Tensor& dy, const Tensor& x, int64_t groups, const OptionalTensor& w,
                              const OptionalTensor& b, const Tensor& stats, std::string_view activation,
                              Wanted wanted) {
  const char* op = "group_norm_backward";
  const bool relu = fused_relu(op, activation);
  const Groups g = groups_of(op, x, groups, w, b);
  return run_backward(op, dy, x, g, w, b, stats, {x.sym_size(1)}, relu, wanted);
}

class GroupNormNode final : public NormNode {
 public:
  GroupNormNode(int64_t groups, double eps, std::string_view activation)
      : NormNode("GroupNormBackward", eps, activation), groups_(groups) {}

 private:
  Gradients call(const Tensor& dy, const Saved& s, Wanted want) const override {
    static const auto op = find_op<decltype(group_norm_backward)>("minidl::group_norm_backward");
    return op.call(dy, s.x, groups_, s.w, s.b, s.stats, activation_, want);
  }
  Differentiable differentiable(const Tensor& dy, const Saved& s) const override {
    const auto size = s.x.sym_sizes();
    const SymInt of_group = size[1] / groups_;
    const SymShape shape = {size[0], groups_, of_group, product(size.slice(2))},
                   each = {1, groups_, of_group, 1};
    const auto viewed = [&](const OptionalTensor& p) {
      return p ? OptionalTensor(p->reshape_symint(each)) : p;
    };
    return {
        dy.reshape_symint(shape), s.x.reshape_symint(shape), viewed(s.w), viewed(s.b), {2, 3}, eps_, relu()};
  }
  int64_t groups_;
};

auto call_group_norm(const Tensor& x, int64_t groups, const OptionalTensor& w, const OptionalTensor& b,
                     double eps, std::string_view activation) {
  static const auto op = find_op<decltype(group_norm_forward)>("minidl::group_norm_forward");
  return op.call(x, groups, w, b, eps, activation);
}

std::tuple<Tensor, Tensor> group_norm_autograd(const Tensor& x, int64_t groups, const OptionalTensor& w,
                                               const OptionalTensor& b, double eps,
                                               std::string_view activation) {
  return with_node<GroupNormNode>([&] { return call_group_norm(x, groups, w, b, eps, activation); }, x, w, b,
                                  groups, eps, activation);
}

std::tuple<Tensor, Tensor> layer_norm_forward(const Tensor& x, c10::SymIntArrayRef normalized_shape,
                                              const OptionalTensor& w, const OptionalTensor& b, double eps,
                                              std::string_view activation) {
  const char* op = "layer_norm";
  const bool relu = fused_relu(op, activation);
  return run_forward(op, x, layers_of(op, x, normalized_shape, w, b), w, b, eps, relu);
}

Gradients layer_norm_backward(const Tensor& dy, const Tensor& x, c10::SymIntArrayRef normalized_shape,
                              const OptionalTensor& w, const OptionalTensor& b, const Tensor& stats,
                              std::string_view activation, Wanted wanted) {
  const char* op = "layer_norm_backward";
  const bool relu = fused_relu(op, activation);
  const Groups g = layers_of(op, x, normalized_shape, w, b);
  return run_backward(op, dy, x, g, w, b, stats, normalized_shape, relu, wanted);
}

class LayerNormNode final : public NormNode {
 public:
  LayerNormNode(c10::SymIntArrayRef normalized_shape, double eps, std::string_view activation)
      : NormNode("LayerNormBackward", eps, activation),
        shape_(normalized_shape.begin(), normalized_shape.end()) {}

 private:
  Gradients call(const Tensor& dy, const Saved& s, Wanted want) const override {
    static const auto op = find_op<decltype(layer_norm_backward)>("minidl::layer_norm_backward");
    return op.call(dy, s.x, shape_, s.w, s.b, s.stats, activation_, want);
  }
  Differentiable differentiable(const Tensor& dy, const Saved& s) const override {
    Differentiable d{dy, s.x, s.w, s.b, {}, eps_, relu()};
    for (int64_t dim = s.x.dim() - std::ssize(shape_); dim < s.x.dim(); ++dim) d.dims.push_back(dim);
    return d;
  }
  SymShape shape_;
};

auto call_layer_norm(const Tensor& x, c10::SymIntArrayRef normalized_shape, const OptionalTensor& w,
                     const OptionalTensor& b, double eps, std::string_view activation) {
  static const auto op = find_op<decltype(layer_norm_forward)>("minidl::layer_norm_forward");
  return op.call(x, normalized_shape, w, b, eps, activation);
}

std::tuple<Tensor, Tensor> layer_norm_autograd(const Tensor& x, c10::SymIntArrayRef normalized_shape,
                                               const OptionalTensor& w, const OptionalTensor& b, double eps,
                                               std::string_view activation) {
  return with_node<LayerNormNode>([&] { return call_layer_norm(x, normalized_shape, w, b, eps, activation); },
                                  x, w, b, normalized_shape, eps, activation);
}

}  // namespace

// ---- the operators ------------------------------------------------------------------------------

Tensor ops::batch_norm(const Tensor& x, const OptionalTensor& w, const OptionalTensor& b,
                       const OptionalTensor& mean, const OptionalTensor& var, bool training, double momentum,
                       double eps, std::string_view activation) {
  auto [y, stats] = call_batch_norm(x, w, b, mean, var, training, eps, activation);
  if (training && mean.has_value() && x.sym_numel() != 0)
    call_batch_norm_update(*mean, *var, stats, momentum);
  return y;
}

Tensor ops::layer_norm(const Tensor& x, c10::SymIntArrayRef normalized_shape, const OptionalTensor& w,
                       const OptionalTensor& b, double eps, std::string_view activation) {
  return std::get<0>(call_layer_norm(x, normalized_shape, w, b, eps, activation));
}

Tensor ops::group_norm(const Tensor& x, int64_t groups, const OptionalTensor& w, const OptionalTensor& b,
                       double eps, std::string_view activation) {
  return std::get<0>(call_group_norm(x, groups, w, b, eps, activation));
}

// batch_norm, layer_norm and group_norm are the first results of their _forward operators; stats serve the backward
// pass. batch_norm moves the running statistics by an operator of their own: what is left has no side effects.
TORCH_LIBRARY_FRAGMENT(minidl, m) {
  const std::string affine = "Tensor? weight, Tensor? bias", results = " -> (Tensor output, Tensor stats)";
  const std::string gradients = "str activation, bool[3] wanted) -> (Tensor dx, Tensor dw, Tensor db)";
  define_op(
      m, "batch_norm_forward",
      "(Tensor input, " + affine +
          ", Tensor? running_mean, Tensor? running_var, bool training, float eps, str activation='none')" +
          results,
      batch_norm_forward, batch_norm_autograd);
  define_op(m, "batch_norm_update",
            "(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor stats, float momentum) -> ()",
            batch_norm_update, WithoutGraph<call_batch_norm_update>::call);
  define_backward_op(m, "batch_norm_backward",
                     "(Tensor dy, Tensor input, " + affine + ", Tensor stats, bool training, " + gradients,
                     batch_norm_backward);

  const std::string layer = "Tensor input, SymInt[] normalized_shape, " + affine;
  const std::string group = "Tensor input, int num_groups, " + affine;
  define_op(m, "layer_norm_forward", "(" + layer + ", float eps, str activation='none')" + results,
            layer_norm_forward, layer_norm_autograd);
  define_backward_op(m, "layer_norm_backward", "(Tensor dy, " + layer + ", Tensor stats, " + gradients,
                     layer_norm_backward);
  define_op(m, "group_norm_forward", "(" + group + ", float eps, str activation='none')" + results,
            group_norm_forward, group_norm_autograd);
  define_autocast<batch_norm_forward, Cast::to_float>(m, "batch_norm_forward");
  define_autocast<layer_norm_forward, Cast::to_float>(m, "layer_norm_forward");
  define_autocast<group_norm_forward, Cast::to_float>(m, "group_norm_forward");
  define_backward_op(m, "group_norm_backward", "(Tensor dy, " + group + ", Tensor stats, " + gradients,
                     group_norm_backward);

  const auto composite = c10::DispatchKey::CompositeImplicitAutograd;
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(("batch_norm(Tensor input, " + affine +
         ", Tensor(a!)? running_mean, Tensor(b!)? running_var, bool training, float momentum, float eps, "
         "str activation='none') -> Tensor")
            .c_str(),
        tags);
  m.impl("batch_norm", torch::dispatch(composite, ops::batch_norm));
  m.def(("layer_norm(" + layer + ", float eps, str activation='none') -> Tensor").c_str(), tags);
  m.impl("layer_norm", torch::dispatch(composite, ops::layer_norm));
  m.def(("group_norm(" + group + ", float eps, str activation='none') -> Tensor").c_str(), tags);
  m.impl("group_norm", torch::dispatch(composite, ops::group_norm));
}

}  // namespace minidl
