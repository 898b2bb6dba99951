#include "ops/softmax.h"

#include <ATen/WrapDimUtils.h>

#include "ops/autocast.h"

namespace minidl {
namespace {

// ---- softmax, log_softmax -----------------------------------------------------------------------

Tensor softmax(const Tensor& x_, int64_t dim_, bool log) {
  check_dtype("softmax", x_);
  const int64_t dim = at::maybe_wrap_dim(dim_, x_.dim());
  const Tensor x = x_.contiguous();
  Tensor y = output_like(x);
  if (y.is_meta()) return y;
  launch("softmax", x, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.softmax_forward(mutable_data<T>(y), data<T>(x), class_shape(x, dim), log, ctx);
  });
  return y;
}

Tensor softmax_backward(const Tensor& dy_, const Tensor& y_, int64_t dim_, bool log) {
  check_dtype("softmax_backward", y_);
  check_same_dtype("softmax_backward", "dy", dy_, "output", y_);
  check_same_shape("softmax_backward", "dy", dy_, "output", y_);
  const int64_t dim = at::maybe_wrap_dim(dim_, y_.dim());
  const Tensor dy = dy_.contiguous(), y = y_.contiguous();
  Tensor dx = output_like(y);
  if (dx.is_meta()) return dx;
  launch("softmax_backward", y, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.softmax_backward(mutable_data<T>(dx), data<T>(dy), data<T>(y), class_shape(y, dim), log, ctx);
  });
  return dx;
}

class SoftmaxNode final : public Node {
 public:
  SoftmaxNode(int64_t dim, bool log)
      : Node(log ? "LogSoftmaxBackward" : "SoftmaxBackward"), dim_(dim), log_(log) {}

 private:
  variable_list backward(const Tensor& dy) override {
    const Tensor y = saved(0);
    if (at::GradMode::is_enabled()) {
      if (log_) return {dy - y.exp() * dy.sum(dim_, /*keepdim=*/true)};
      return {y * (dy - (dy * y).sum(dim_, /*keepdim=*/true))};
    }
    static const auto op = find_op<decltype(softmax_backward)>("minidl::softmax_backward");
    at::AutoDispatchBelowADInplaceOrView guard;
    return {op.call(dy, y, dim_, log_)};
  }
  int64_t dim_;
  bool log_;
};

Tensor softmax_autograd(const Tensor& x, int64_t dim, bool log) {
  Tensor y = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return ops::softmax(x, dim, log);
  }();
  if (!needs_graph(x)) return y;
  const auto node = make_node<SoftmaxNode>(dim, log);
  link(y, node, x);
  node->save_output(y);
  return y;
}

// ---- cross_entropy ------------------------------------------------------------------------------

// loss; stats, shape (2, rows), and total_weight, which only the backward pass wants.
std::tuple<Tensor, Tensor, Tensor> cross_entropy_forward(const Tensor& x, const Tensor& target,
                                                         const OptionalTensor& weight, int64_t reduction,
                                                         int64_t ignore_index, double label_smoothing) {
  const Classification c =
      classification("cross_entropy", x, target, weight, reduction, ignore_index, true, label_smoothing);
  const Tensor loss = empty_loss(c), total_weight = wide_output({}, c.x);
  c10::SymInt rows = 1;
  for (const c10::SymInt& size : c.row_shape()) rows = rows * size;
  const Tensor stats = wide_output({2, rows}, c.x);
  if (loss.is_meta()) return {loss, stats, total_weight};
  launch_classification("cross_entropy", c, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.cross_entropy_forward(mutable_data<T>(loss), mutable_data<Wide<T>>(stats),
                            mutable_data<Wide<T>>(total_weight), data<T>(c.x), c.kernel_target<T>(),
                            c.shape(), c.reduction, ctx);
  });
  return {loss, stats, total_weight};
}

Tensor cross_entropy_backward(const Tensor& dy_, const Tensor& x, const Tensor& target, const Tensor& stats_,
                              const Tensor& total_weight, const OptionalTensor& weight, int64_t reduction,
                              int64_t ignore_index, double label_smoothing) {
  const char* name = "cross_entropy_backward";
  const Classification c =
      classification(name, x, target, weight, reduction, ignore_index, true, label_smoothing);
  check_dy(name, c, dy_, total_weight);
  check_wide(name, "stats", stats_, x);
  TORCH_CHECK(stats_.sym_numel() * x.sym_size(class_dim(x)) == 2 * x.sym_numel(), "minidl::", name,
              ": stats of shape ", stats_.sym_sizes(), " does not fit input ", x.sym_sizes());
  const Tensor dy = dy_.contiguous(), stats = stats_.contiguous();
  const Tensor dx = output_like(c.x);
  if (dx.is_meta()) return dx;
  launch_classification(name, c, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.cross_entropy_backward(mutable_data<T>(dx), data<T>(dy), data<T>(c.x), data<Wide<T>>(stats),
                             data<Wide<T>>(total_weight), c.kernel_target<T>(), c.shape(), c.reduction, ctx);
  });
  return dx;
}

auto call_cross_entropy(const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                        int64_t reduction, int64_t ignore_index, double label_smoothing) {
  static const auto op = find_op<decltype(cross_entropy_forward)>("minidl::cross_entropy_forward");
  return op.call(x, target, weight, reduction, ignore_index, label_smoothing);
}

class CrossEntropyNode final : public Node {
 public:
  CrossEntropyNode(int64_t reduction, int64_t ignore_index, double label_smoothing)
      : Node("CrossEntropyBackward"),
        reduction_(reduction),
        ignore_index_(ignore_index),
        label_smoothing_(label_smoothing) {}

 private:
  variable_list backward(const Tensor& dy) override {
    const Tensor x = saved(0), target = saved(1), stats = saved(2), total_weight = saved(3);
    const OptionalTensor weight = saved_optional(4);
    if (at::GradMode::is_enabled()) {
      const Classification c = classification("cross_entropy", x, target, weight, reduction_, ignore_index_,
                                              true, label_smoothing_);
      const auto [q, row_dy] = differentiable_target(c, dy, total_weight);
      const int64_t dim = class_dim(x);
      return {row_dy * (ops::softmax(x, dim, false) * q.sum(dim, /*keepdim=*/true) - q)};
    }
    static const auto op = find_op<decltype(cross_entropy_backward)>("minidl::cross_entropy_backward");
    at::AutoDispatchBelowADInplaceOrView guard;
    return {op.call(dy, x, target, stats, total_weight, weight, reduction_, ignore_index_, label_smoothing_)};
  }
  int64_t reduction_, ignore_index_;
  double label_smoothing_;
};

std::tuple<Tensor, Tensor, Tensor> cross_entropy_autograd(const Tensor& x, const Tensor& target,
                                                          const OptionalTensor& weight, int64_t reduction,
                                                          int64_t ignore_index, double label_smoothing) {
  check_constant("cross_entropy_forward", "target", target);
  check_constant("cross_entropy_forward", "weight", weight);
  auto result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_cross_entropy(x, target, weight, reduction, ignore_index, label_smoothing);
  }();
  if (!needs_graph(x)) return result;
  const auto& [loss, stats, total_weight] = result;
  const auto node = make_node<CrossEntropyNode>(reduction, ignore_index, label_smoothing);
  link(loss, node, x);
  for (const Tensor& input : {x, target, stats, total_weight}) node->save_input(input);
  node->save_input(weight);
  return result;
}

// With gradients for the probabilities and the weights too.
Tensor differentiable_cross_entropy(const Classification& c) {
  const int64_t dim = class_dim(c.x);
  const Tensor rows = -(ops::softmax(c.x, dim, true) * target_distribution(c, c.target)).sum(dim);
  if (c.reduction == Reduction::none) return rows;
  return c.reduction == Reduction::mean ? rows.mean() : rows.sum();
}

// ---- nll_loss -----------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> nll_loss_forward(const Tensor& x, const Tensor& target,
                                            const OptionalTensor& weight, int64_t reduction,
                                            int64_t ignore_index) {
  const Classification c = classification("nll_loss", x, target, weight, reduction, ignore_index);
  const Tensor loss = empty_loss(c), total_weight = wide_output({}, c.x);
  if (loss.is_meta()) return {loss, total_weight};
  launch_classification("nll_loss", c, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.nll_loss_forward(mutable_data<T>(loss), mutable_data<Wide<T>>(total_weight), data<T>(c.x),
                       c.kernel_target<T>(), c.shape(), c.reduction, ctx);
  });
  return {loss, total_weight};
}

Tensor nll_loss_backward(const Tensor& dy_, const Tensor& x, const Tensor& target, const Tensor& total_weight,
                         const OptionalTensor& weight, int64_t reduction, int64_t ignore_index) {
  const Classification c = classification("nll_loss_backward", x, target, weight, reduction, ignore_index);
  check_dy("nll_loss_backward", c, dy_, total_weight);
  const Tensor dy = dy_.contiguous();
  const Tensor dx = output_like(c.x);
  if (dx.is_meta()) return dx;
  launch_classification("nll_loss_backward", c, [&](const auto& k, auto zero, const Context& ctx) {
    using T = decltype(zero);
    k.nll_loss_backward(mutable_data<T>(dx), data<T>(dy), data<Wide<T>>(total_weight), c.kernel_target<T>(),
                        c.shape(), c.reduction, ctx);
  });
  return dx;
}

auto call_nll_loss(const Tensor& x, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                   int64_t ignore_index) {
  static const auto op = find_op<decltype(nll_loss_forward)>("minidl::nll_loss_forward");
  return op.call(x, target, weight, reduction, ignore_index);
}

class NllLossNode final : public Node {
 public:
  NllLossNode(int64_t reduction, int64_t ignore_index)
      : Node("NllLossBackward"), reduction_(reduction), ignore_index_(ignore_index) {}

 private:
  variable_list backward(const Tensor& dy) override {
    const Tensor x = saved(0), target = saved(1), total_weight = saved(2);
    const OptionalTensor weight = saved_optional(3);
    if (at::GradMode::is_enabled()) {
      const Classification c = classification("nll_loss", x, target, weight, reduction_, ignore_index_);
      const auto [q, row_dy] = differentiable_target(c, dy, total_weight);
      return {-row_dy * q};
    }
    static const auto op = find_op<decltype(nll_loss_backward)>("minidl::nll_loss_backward");
    at::AutoDispatchBelowADInplaceOrView guard;
    return {op.call(dy, x, target, total_weight, weight, reduction_, ignore_index_)};
  }
  int64_t reduction_, ignore_index_;
};

std::tuple<Tensor, Tensor> nll_loss_autograd(const Tensor& x, const Tensor& target,
                                             const OptionalTensor& weight, int64_t reduction,
                                             int64_t ignore_index) {
  check_constant("nll_loss_forward", "weight", weight);
  auto result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_nll_loss(x, target, weight, reduction, ignore_index);
  }();
  if (!needs_graph(x)) return result;
  const auto& [loss, total_weight] = result;
  const auto node = make_node<NllLossNode>(reduction, ignore_index);
  link(loss, node, x);
  for (const Tensor& input : {x, target, total_weight}) node->save_input(input);
  node->save_input(weight);
  return result;
}

}  // namespace

// ---- the operators ------------------------------------------------------------------------------

Tensor ops::softmax(const Tensor& x, int64_t dim, bool log) {
  static const auto op = find_op<decltype(ops::softmax)>("minidl::softmax");
  return op.call(x, dim, log);
}

Tensor ops::cross_entropy(const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                          int64_t reduction, int64_t ignore_index, double label_smoothing) {
  if (needs_graph(target) || (needs_graph(weight) && target.is_floating_point())) {
    return differentiable_cross_entropy(
        classification("cross_entropy", x, target, weight, reduction, ignore_index, true, label_smoothing));
  }
  return std::get<0>(call_cross_entropy(x, target, weight, reduction, ignore_index, label_smoothing));
}

Tensor ops::nll_loss(const Tensor& x, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                     int64_t ignore_index) {
  return std::get<0>(call_nll_loss(x, target, weight, reduction, ignore_index));
}

// cross_entropy and nll_loss are the first result of their _forward operators: the other results serve the
// backward pass.
TORCH_LIBRARY_FRAGMENT(minidl, m) {
  define_op(m, "softmax", "(Tensor input, int dim, bool log=False) -> Tensor", softmax, softmax_autograd);
  define_autocast<softmax, Cast::to_float>(m, "softmax");
  define_backward_op(m, "softmax_backward", "(Tensor dy, Tensor output, int dim, bool log=False) -> Tensor",
                     softmax_backward);

  const std::string targets = "Tensor input, Tensor target, ";
  const std::string options = "Tensor? weight=None, int reduction=1, int ignore_index=-100";
  define_op(m, "cross_entropy_forward",
            "(" + targets + options +
                ", float label_smoothing=0) -> (Tensor loss, Tensor stats, Tensor total_weight)",
            cross_entropy_forward, cross_entropy_autograd);
  define_autocast<cross_entropy_forward, Cast::to_float>(m, "cross_entropy_forward");
  define_backward_op(m, "cross_entropy_backward",
                     "(Tensor dy, " + targets + "Tensor stats, Tensor total_weight, " + options +
                         ", float label_smoothing=0) -> Tensor",
                     cross_entropy_backward);
  define_op(m, "nll_loss_forward", "(" + targets + options + ") -> (Tensor loss, Tensor total_weight)",
            nll_loss_forward, nll_loss_autograd);
  define_autocast<nll_loss_forward, Cast::to_float>(m, "nll_loss_forward");
  define_backward_op(m, "nll_loss_backward",
                     "(Tensor dy, " + targets + "Tensor total_weight, " + options + ") -> Tensor",
                     nll_loss_backward);

  const auto composite = c10::DispatchKey::CompositeImplicitAutograd;
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(("cross_entropy(" + targets + options + ", float label_smoothing=0) -> Tensor").c_str(), tags);
  m.impl("cross_entropy", torch::dispatch(composite, ops::cross_entropy));
  m.def(("nll_loss(" + targets + options + ") -> Tensor").c_str(), tags);
  m.impl("nll_loss", torch::dispatch(composite, ops::nll_loss));
}

}  // namespace minidl
