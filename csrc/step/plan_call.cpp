// A call is planned by the name of the kernel and its arguments, in the order of kernels.def: structs as tuples,
// pointers as None or (slot, offset in bytes), enumerations as numbers, activations as (name, alpha, beta).
#include "step/plan_call.h"

#include <torch/csrc/utils/pybind.h>

#include "ops/activation.h"

namespace py = pybind11;

namespace minidl {
namespace {

// ---- arguments --------------------------------------------------------------------------------------------

template <class T>
  requires(std::is_arithmetic_v<T>)
void parse(py::handle h, T& value) {
  value = h.cast<T>();
}
template <class T>
  requires(std::is_enum_v<T>)
void parse(py::handle h, T& value) {
  value = static_cast<T>(h.cast<int64_t>());
}
template <class T>
void parse(py::handle h, T*& pointer) {
  if (h.is_none()) {
    pointer = nullptr;
    return;
  }
  const auto [slot, offset] = h.cast<std::pair<int64_t, int64_t>>();
  pointer = address<T*>(slot, offset);
}
template <class T, size_t n>
void parse(py::handle h, T (&array)[n]) {
  const auto values = h.cast<py::sequence>();
  for (size_t i = 0; i < n; ++i) parse(values[i], array[i]);
}
void parse(py::handle h, Activation& f) {
  const auto [name, alpha, beta] = h.cast<std::tuple<std::string, double, double>>();
  f = name == "none" ? Activation{} : parse_activation("TrainStep", name, alpha, beta);
}

void parse(py::handle h, PoolAxis& a);

template <class... Fields>
void parse_fields(py::handle h, Fields&... fields) {
  const auto values = h.cast<py::sequence>();
  TORCH_CHECK_VALUE(py::len(values) == sizeof...(fields), "TrainStep: ", py::len(values),
                    " numbers for a struct of ", sizeof...(fields));
  size_t i = 0;
  (parse(values[i++], fields), ...);
}
template <class T>
void parse(py::handle h, MatrixView<T>& v) {
  parse_fields(h, v.data, v.row_stride, v.col_stride, v.batch_stride);
}
template <class T>
void parse(py::handle h, ImageView<T>& v) {
  parse_fields(h, v.data, v.image, v.channel, v.row, v.column, v.height, v.width);
}
template <class T>
void parse(py::handle h, Epilogue<T>& e) {
  parse_fields(h, e.bias, e.activation);
}
template <class T>
void parse(py::handle h, NormAffine<T>& a) {
  parse_fields(h, a.w, a.b, a.relu);
}
template <class T>
void parse(py::handle h, ClassTarget<T>& t) {
  parse_fields(h, t.index, t.probability, t.weight, t.ignore_index, t.label_smoothing);
}
void parse(py::handle h, LossParams& p) { parse_fields(h, p.kind, p.reduction, p.beta); }
void parse(py::handle h, ClassShape& s) { parse_fields(h, s.outer, s.classes, s.inner); }
void parse(py::handle h, ChannelShape& s) { parse_fields(h, s.outer, s.channels, s.inner); }
void parse(py::handle h, ConvShape& s) {
  parse_fields(h, s.n, s.groups, s.in_channels, s.out_channels, s.in, s.out, s.kernel, s.stride, s.padding,
               s.dilation);
}
void parse(py::handle h, PoolAxis& a) {
  parse_fields(h, a.in, a.out, a.kernel, a.stride, a.padding, a.dilation, a.adaptive);
}
void parse(py::handle h, PoolShape& s) { parse_fields(h, s.images, s.channels, s.h, s.w, s.channels_last); }
void parse(py::handle h, PoolDivisor& d) { parse_fields(h, d.fixed, d.count_padding); }
void parse(py::handle h, PoolPosition& p) { parse_fields(h, p.place, p.index); }
void parse(py::handle h, DropoutShape& s) { parse_fields(h, s.images, s.channels, s.inner, s.channels_last); }
void parse(py::handle h, DropoutParams& p) { parse_fields(h, p.state, p.threshold, p.scale); }
void parse(py::handle h, CopyShape& s) { parse_fields(h, s.size, s.y_stride, s.x_stride); }

// ---- calls ------------------------------------------------------------------------------------------------

template <class A>
concept Plannable = std::is_same_v<A, Context> || requires(py::handle h, A& a) { parse(h, a); };

template <class T, class... P>
void plan_call(Plan<T>& plan, void (*KernelsOf<T>::*kernel)(P...), const py::tuple& given) {
  if constexpr ((Plannable<P> && ...)) {
    TORCH_CHECK_VALUE(py::len(given) + 1 == sizeof...(P), "TrainStep: ", py::len(given), " arguments for ",
                      sizeof...(P) - 1);
    std::tuple<P...> planned;
    size_t i = 0;
    std::apply(
        [&]<class... A>(A&... a) {
          const auto one = [&]<class B>(B& b) {
            if constexpr (!std::is_same_v<B, Context>) parse(given[i++], b);
          };
          (one(a), ...);
        },
        planned);
    std::apply([&](const auto&... a) { plan.call(kernel, a...); }, planned);
  } else {
    TORCH_CHECK_VALUE(false, "TrainStep: this kernel is not for plans");
  }
}

template <class T>
void plan_call(Plan<T>& plan, const std::string& name, const py::tuple& given) {
#define KERNEL(kernel, ...) \
  if (name == #kernel) return plan_call(plan, &KernelsOf<T>::kernel, given);
#include "kernels.def"
#undef KERNEL
  TORCH_CHECK_VALUE(false, "TrainStep: no kernel ", name);
}

// Calls f(TrainingPlanOf<T>&) with the plan's T.
template <class F>
void of_dtype(TrainingPlan& plan, F f) {
  if (plan.dtype() == at::kFloat) {
    f(static_cast<TrainingPlanOf<float>&>(plan));
  } else {
    f(static_cast<TrainingPlanOf<double>&>(plan));
  }
}

}  // namespace

void plan_kernel_call(TrainingPlan& plan, const std::string& name, const py::args& given) {
  of_dtype(plan, [&]<class T>(TrainingPlanOf<T>& p) { plan_call<T>(p.planned(), name, given); });
}

void plan_target_check(TrainingPlan& plan, py::handle target, int64_t n, int64_t classes,
                       int64_t ignore_index) {
  const int64_t* t;
  parse(target, t);
  of_dtype(plan, [&](auto& p) { p.planned().check_target(t, n, classes, ignore_index); });
}

void plan_interval_check(TrainingPlan& plan, py::handle x, int64_t n, bool is_target) {
  of_dtype(plan, [&]<class T>(TrainingPlanOf<T>& p) {
    const T* at;
    parse(x, at);
    p.planned().check_unit_interval(at, n, is_target);
  });
}

}  // namespace minidl
