// A step of a small model takes less time than Python needs to look at its tensors, so the walk over
// parameters, gradients and state is done here. It is done anew each step: gradients, state and options may
// be replaced between any two steps, and nothing is cached that could go stale.
#include "optimizer_bindings.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "ops/ops.h"

namespace py = pybind11;

namespace minidl {
namespace {

template <size_t n>
struct Literal {
  char text[n];
  constexpr Literal(const char (&s)[n]) { std::copy_n(s, n, text); }
};

// The Python string, made once: a dictionary is asked for it by address.
template <Literal name>
PyObject* key() {
  static PyObject* const interned = PyUnicode_InternFromString(name.text);
  return interned;
}

// dict[k], or a null handle where there is none.
py::handle find(py::handle dict, PyObject* k) {
  PyObject* value = PyDict_GetItemWithError(dict.ptr(), k);  // borrowed
  if (!value && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

template <Literal name>
py::handle option(const py::dict& group) {
  const py::handle value = find(group, key<name>());
  if (!value) throw py::key_error(name.text);
  return value;
}

// Any number, a tensor of one element included. To ask whether something is a tensor takes longer than the
// rest.
double to_number(py::handle x) {
  if (PyFloat_CheckExact(x.ptr())) return PyFloat_AS_DOUBLE(x.ptr());
  if (PyLong_CheckExact(x.ptr())) return x.cast<double>();
  if (THPVariable_Check(x.ptr())) return THPVariable_Unpack(x.ptr()).detach().item().toDouble();
  return x.cast<double>();
}

template <Literal name>
double number(const py::dict& group) {
  return to_number(option<name>(group));
}

// A number, or a tensor where reading it would wait for a device.
struct Rate {
  double value = 0;
  std::optional<at::Tensor> device;
};
Rate learning_rate(const py::dict& group) {
  const py::handle lr = option<"lr">(group);
  if (THPVariable_Check(lr.ptr()) && !THPVariable_Unpack(lr.ptr()).is_cpu()) {
    return {.device = THPVariable_Unpack(lr.ptr()).detach()};
  }
  return {to_number(lr), std::nullopt};
}

template <Literal name>
bool flag(const py::dict& group) {
  const py::handle value = option<name>(group);
  return value.ptr() == Py_True || (value.ptr() != Py_False && value.cast<bool>());
}

std::pair<double, double> betas(const py::dict& group) {
  const py::handle pair = option<"betas">(group);
  if (PyTuple_CheckExact(pair.ptr()) && PyTuple_GET_SIZE(pair.ptr()) == 2) {
    return {to_number(PyTuple_GET_ITEM(pair.ptr(), 0)), to_number(PyTuple_GET_ITEM(pair.ptr(), 1))};
  }
  const auto sequence = py::cast<py::sequence>(pair);
  return {to_number(sequence[0]), to_number(sequence[1])};
}

const at::Tensor& tensor(py::handle x) {
  if (!THPVariable_Check(x.ptr()))
    throw py::type_error("minidl.optim: expected a Tensor among parameters and state");
  return THPVariable_Unpack(x.ptr());
}

// Tensors that Python objects own. The objects are held and the tensors borrowed: counting a reference to a
// tensor that has a Python object takes the GIL, which for a small update is a fifth of its time.
// Those of a small model need no memory from the heap.
class PythonTensors {
 public:
  PythonTensors() = default;
  PythonTensors(const PythonTensors&) = delete;
  PythonTensors& operator=(const PythonTensors&) = delete;
  ~PythonTensors() {
    for (at::Tensor& x : tensors_) c10::MaybeOwnedTraits<at::Tensor>::destroyBorrow(x);
  }
  void push_back(py::handle object) {
    tensors_.push_back(c10::MaybeOwnedTraits<at::Tensor>::createBorrow(tensor(object)));
    owners_.push_back(py::reinterpret_borrow<py::object>(object));
  }
  operator at::TensorList() const { return tensors_; }

 private:
  c10::SmallVector<at::Tensor, 8> tensors_;
  c10::SmallVector<py::object, 8> owners_;
};

// state[param] for one parameter after another. They nearly always stand in one order in both, so the entry
// is looked for from the last one onwards, by identity: the hash of a tensor is a call into Python.
class StateOf {
 public:
  explicit StateOf(const py::dict& state) : state_(state) {}
  py::handle operator()(py::handle param) {
    PyObject *key = nullptr, *value = nullptr;
    while (in_order_ && (in_order_ = PyDict_Next(state_.ptr(), &position_, &key, &value))) {
      if (key == param.ptr()) return value;
    }
    return find(state_, param.ptr());
  }

 private:
  const py::dict& state_;
  Py_ssize_t position_ = 0;
  bool in_order_ = true;
};

// The tensors of those parameters of a group that have a gradient, with one list for each name of their
// state.
struct GroupTensors {
  PythonTensors params;
  c10::SmallVector<at::Tensor, 8> grads;
  std::array<PythonTensors, 4> state;
};

// A name that is nullptr stands for an empty list. False if one of the parameters lacks state of one of the
// names.
bool gather(const py::dict& group, const py::dict& state, std::initializer_list<PyObject*> names,
            GroupTensors& found) {
  const bool stateless = std::all_of(names.begin(), names.end(), [](PyObject* name) { return !name; });
  StateOf state_of(state);
  for (py::handle param : option<"params">(group)) {
    const at::Tensor& grad = tensor(param).grad();
    if (!grad.defined()) continue;
    found.params.push_back(param);
    found.grads.push_back(grad);
    if (stateless) continue;
    const py::handle of_param = state_of(param);
    if (!of_param) return false;
    auto list = found.state.begin();
    for (PyObject* name : names) {
      if (name) {
        const py::handle value = find(of_param, name);
        if (!value || value.is_none()) return false;
        list->push_back(value);
      }
      ++list;
    }
  }
  return true;
}

template <Literal name>
void check_off(const py::dict& group) {
  const py::handle value = find(group, key<name>());
  TORCH_CHECK_NOT_IMPLEMENTED(
      !value || !value.cast<bool>(), "minidl.optim: ", name.text,
      "=True is not implemented; the optimizer of the same name in torch.optim has it and "
      "works beside minidl's kernels");
}

// f() without grad mode and, if there is enough to do, without the GIL: handing it over takes longer than a
// small update.
template <class F>
auto run_kernel(at::TensorList tensors, F f) {
  int64_t elements = 0;
  for (const at::Tensor& x : tensors) elements += x.numel();
  std::optional<py::gil_scoped_release> no_gil;
  if (elements > 10000) no_gil.emplace();
  const at::NoGradGuard no_grad;
  return f();
}

// As torch: what a graph captures must lie on the device.
void check_capturable(const py::dict& group, const GroupTensors& t, at::TensorList steps) {
  const py::handle capturable = find(group, key<"capturable">());
  if (!capturable || !capturable.cast<bool>()) return;
  const at::TensorList params = t.params;
  for (size_t i = 0; i < params.size(); ++i) {
    if (!params[i].is_cpu() && (steps.empty() || steps[i].device() == params[i].device())) continue;
    PyErr_SetString(PyExc_AssertionError,
                    "minidl.optim: If capturable=True, params and state_steps must be on a CUDA device.");
    throw py::error_already_set();
  }
}

// gather, then step(tensors); whether there was all the state it takes.
template <class Step>
bool run(const py::dict& group, const py::dict& state, std::initializer_list<PyObject*> names, Step step) {
  check_off<"differentiable">(group);
  GroupTensors tensors;
  if (!gather(group, state, names, tensors)) return false;
  check_capturable(group, tensors, tensors.state[3]);
  if (tensors.grads.empty()) return true;  // the dispatcher has nothing to go by
  run_kernel(tensors.grads, [&] { step(tensors); });
  return true;
}

SgdParams sgd_options(const py::dict& group, double lr) {
  return {.lr = lr,
          .momentum = number<"momentum">(group),
          .dampening = number<"dampening">(group),
          .weight_decay = number<"weight_decay">(group),
          .nesterov = flag<"nesterov">(group),
          .maximize = flag<"maximize">(group)};
}

RmspropParams rmsprop_options(const py::dict& group, double lr) {
  return {.lr = lr,
          .alpha = number<"alpha">(group),
          .eps = number<"eps">(group),
          .weight_decay = number<"weight_decay">(group),
          .momentum = number<"momentum">(group),
          .maximize = flag<"maximize">(group)};
}

AdamParams adam_options(const py::dict& group, double lr) {
  const auto [beta1, beta2] = betas(group);
  return {.lr = lr,
          .beta1 = beta1,
          .beta2 = beta2,
          .eps = number<"eps">(group),
          .weight_decay = number<"weight_decay">(group),
          .decoupled = flag<"decoupled_weight_decay">(group),
          .maximize = flag<"maximize">(group)};
}

bool sgd_step(const py::dict& group, const py::dict& state) {
  const Rate lr = learning_rate(group);
  const SgdParams p = sgd_options(group, lr.value);
  return run(group, state, {p.momentum != 0 ? key<"momentum_buffer">() : nullptr},
             [&](const GroupTensors& t) {
               ops::sgd_step(t.params, t.grads, t.state[0], {}, lr.value, p.momentum, p.dampening,
                             p.weight_decay, p.nesterov, p.maximize, lr.device);
             });
}

bool rmsprop_step(const py::dict& group, const py::dict& state) {
  const Rate lr = learning_rate(group);
  const RmspropParams p = rmsprop_options(group, lr.value);
  const bool centered = flag<"centered">(group);
  const std::initializer_list<PyObject*> names = {key<"square_avg">(),
                                                  p.momentum > 0 ? key<"momentum_buffer">() : nullptr,
                                                  centered ? key<"grad_avg">() : nullptr, key<"step">()};
  return run(group, state, names, [&](const GroupTensors& t) {
    ops::rmsprop_step(t.params, t.grads, t.state[0], t.state[1], t.state[2], t.state[3], lr.value, p.alpha,
                      p.eps, p.weight_decay, p.momentum, centered, p.maximize, lr.device);
  });
}

bool adam_step(const py::dict& group, const py::dict& state) {
  const Rate lr = learning_rate(group);
  const AdamParams p = adam_options(group, lr.value);
  const bool amsgrad = flag<"amsgrad">(group);
  const std::initializer_list<PyObject*> names = {key<"exp_avg">(), key<"exp_avg_sq">(),
                                                  amsgrad ? key<"max_exp_avg_sq">() : nullptr, key<"step">()};
  return run(group, state, names, [&](const GroupTensors& t) {
    ops::adam_step(t.params, t.grads, t.state[0], t.state[1], t.state[2], t.state[3], lr.value, p.beta1,
                   p.beta2, p.eps, p.weight_decay, amsgrad, p.decoupled, p.maximize, lr.device);
  });
}

// The gradients that there are of a tensor or an iterable of tensors.
std::vector<at::Tensor> gradients(py::handle parameters) {
  std::vector<at::Tensor> found;
  const auto add = [&](py::handle parameter) {
    if (!THPVariable_Check(parameter.ptr())) {
      const auto type = py::str(py::type::handle_of(parameter).attr("__name__"));
      throw py::attribute_error("'" + std::string(type) + "' object has no attribute 'grad'");
    }
    const at::Tensor& grad = THPVariable_Unpack(parameter.ptr()).grad();
    if (grad.defined()) found.push_back(grad);
  };
  if (THPVariable_Check(parameters.ptr())) {
    add(parameters);
  } else {
    for (const py::handle parameter : parameters) add(parameter);
  }
  return found;
}

at::Tensor total_norm(const std::vector<at::Tensor>& grads, double p) {
  return run_kernel(grads, [&] { return ops::total_norm(grads, p); });
}

void clip_norm(const std::vector<at::Tensor>& grads, const at::Tensor& norm, double max_norm) {
  run_kernel(grads, [&] { ops::clip_norm(grads, norm, max_norm); });
}

void clip_value(const std::vector<at::Tensor>& grads, double bound) {
  run_kernel(grads, [&] { ops::clip_value(grads, bound); });
}

}  // namespace

OptimizerOptions read_optimizer_options(const std::string& kind, const py::dict& group,
                                        std::optional<at::Tensor>* rate) {
  Rate lr = learning_rate(group);
  *rate = std::move(lr.device);
  if (kind == "sgd_step") return sgd_options(group, lr.value);
  if (kind == "rmsprop_step") return rmsprop_options(group, lr.value);
  return adam_options(group, lr.value);
}

std::array<bool, 3> optimizer_state_wanted(const std::string& kind, const py::dict& group) {
  if (kind == "sgd_step") return {number<"momentum">(group) != 0, false, false};
  if (kind == "rmsprop_step") return {true, number<"momentum">(group) > 0, flag<"centered">(group)};
  return {true, true, flag<"amsgrad">(group)};
}

void bind_optimizers(py::module_& m) {
  m.def("sgd_step", torch::wrap_pybind_function(sgd_step), py::arg("group"), py::arg("state"));
  m.def("rmsprop_step", torch::wrap_pybind_function(rmsprop_step), py::arg("group"), py::arg("state"));
  m.def("adam_step", torch::wrap_pybind_function(adam_step), py::arg("group"), py::arg("state"));
  m.def("gradients", torch::wrap_pybind_function(gradients), py::arg("parameters"));
  m.def("total_norm", torch::wrap_pybind_function(total_norm), py::arg("grads"), py::arg("p"));
  m.def("clip_norm", torch::wrap_pybind_function(clip_norm), py::arg("grads"), py::arg("norm"),
        py::arg("max_norm"));
  m.def("clip_value", torch::wrap_pybind_function(clip_value), py::arg("grads"), py::arg("bound"));
}

}  // namespace minidl
