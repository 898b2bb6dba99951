#include "step/bindings.h"

#include <ATen/EmptyTensor.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "optimizer_bindings.h"
#include "step/plan_call.h"

namespace py = pybind11;

namespace minidl {
namespace {

// A parameter group of the optimizer. To look up its options takes as long as a small step, so they are read again only
// where one of them is another object than it was, or one that may change.
struct Group {
  std::string kind;
  py::dict options;
  std::vector<py::object> seen;  // the values, in order
  bool may_change = false;

  bool is_as_seen() const {
    if (may_change || seen.empty()) return false;
    PyObject *key = nullptr, *value = nullptr;
    Py_ssize_t at = 0;
    size_t i = 0;
    while (PyDict_Next(options.ptr(), &at, &key, &value)) {
      if (i == seen.size() || seen[i++].ptr() != value) return false;
    }
    return i == seen.size();
  }
  void see() {
    seen.clear(), may_change = false;
    for (const auto& [key, value] : options) {
      may_change = may_change || !(is_constant(value) || py::str(key).equal(py::str("params")));
      seen.push_back(py::reinterpret_borrow<py::object>(value));
    }
  }
  static bool is_constant(py::handle x) {
    if (PyTuple_CheckExact(x.ptr())) {
      const auto items = py::reinterpret_borrow<py::tuple>(x);
      return std::all_of(items.begin(), items.end(), [](py::handle item) { return is_constant(item); });
    }
    return x.is_none() || PyFloat_CheckExact(x.ptr()) || PyLong_CheckExact(x.ptr()) || PyBool_Check(x.ptr());
  }
};

// A plan with what it depends on in Python: the optimizer's groups and state, and the modes of the modules.
struct Step {
  std::unique_ptr<TrainingPlan> plan;
  int64_t work;  // roughly: elements that are read and written
  std::vector<Group> groups;
  py::dict optimizer;  // its attributes
  py::object state, param_groups;
  Py_ssize_t states = 0, group_count = 0;
  std::vector<std::pair<py::dict, bool>> modes;  // a module's attributes, and whether it was training
  // Losses that were handed out. To make a tensor takes as long as a small step, so one that nobody holds any more
  // is handed out again.
  std::array<py::object, 4> losses;
  size_t next_loss = 0;

  void watch(py::handle of, const std::vector<py::object>& modules) {
    optimizer = of.attr("__dict__");
    state = optimizer["state"], param_groups = optimizer["param_groups"];
    states = PyDict_Size(state.ptr()), group_count = PyList_Size(param_groups.ptr());
    modes.clear();
    for (const py::object& m : modules)
      modes.emplace_back(m.attr("__dict__"), m.attr("training").cast<bool>());
  }

  // Whether optimizer and modes are what they were: a loaded state, say, is other objects.
  bool is_current() const {
    static PyObject* const names[] = {PyUnicode_InternFromString("state"),
                                      PyUnicode_InternFromString("param_groups"),
                                      PyUnicode_InternFromString("training")};
    if (PyDict_GetItemWithError(optimizer.ptr(), names[0]) != state.ptr() ||
        PyDict_GetItemWithError(optimizer.ptr(), names[1]) != param_groups.ptr() ||
        PyDict_Size(state.ptr()) != states || PyList_Size(param_groups.ptr()) != group_count) {
      return false;
    }
    return std::all_of(modes.begin(), modes.end(), [](const auto& mode) {
      return PyDict_GetItemWithError(mode.first.ptr(), names[2]) == (mode.second ? Py_True : Py_False);
    });
  }

  // Whether the options ask for the state that was planned for: a momentum may have been 0 then, say.
  bool has_wanted_state(size_t group) const {
    const auto& planned = plan->updates[group].rows[0].state;
    const auto wanted = optimizer_state_wanted(groups[group].kind, groups[group].options);
    return std::equal(wanted.begin(), wanted.end(), planned.begin(),
                      [](bool want, const at::Tensor& state) { return want == state.defined(); });
  }
  bool has_wanted_state() const {
    for (size_t i = 0; i < groups.size(); ++i) {
      if (!has_wanted_state(i)) return false;
    }
    return true;
  }

  // False, with nothing read, where they ask for other state.
  bool read_options() {
    for (size_t i = 0; i < groups.size(); ++i) {
      Group& group = groups[i];
      if (group.is_as_seen()) continue;
      if (!has_wanted_state(i)) return false;
      Update& u = plan->updates[i];
      u.options = read_optimizer_options(group.kind, group.options, &u.rate);
      group.see();
    }
    return true;
  }
};

// f() while nobody else runs the plan, with the options of now, without the GIL where that is worth its while;
// what stops a run, as the error that the eager operators raise. False, and no f(), where the options ask for other state
// than was planned for.
template <class F>
bool run(Step& step, bool release, F f) {
  std::unique_lock lock(step.plan->mutex, std::try_to_lock);
  if (!lock) {  // whoever runs the plan may need the GIL to end
    const py::gil_scoped_release no_gil;
    lock.lock();
  }
  if (!step.read_options()) return false;
  std::optional<py::gil_scoped_release> no_gil;
  if (release) no_gil.emplace();
  try {
    f();
  } catch (const BadTarget& bad) {
    TORCH_CHECK_INDEX(false, "minidl::TrainStep: Target ", bad.value, " is out of bounds.");
  } catch (const OutsideUnitInterval& bad) {
    TORCH_CHECK(false, "minidl::TrainStep: bce: all elements of ", bad.is_target ? "target" : "input",
                " should be between 0 and 1");
  }
  return true;
}

// Likewise, where the caller has looked whether the plan fits.
template <class F>
void run_planned(Step& step, F f) {
  TORCH_CHECK_VALUE(run(step, true, f), "minidl.TrainStep: the options changed while the plan ran");
}

// A 0-d tensor that is nobody else's.
const py::object& fresh_loss(Step& s) {
  py::object& loss = s.losses[s.next_loss++ % s.losses.size()];
  if (loss && Py_REFCNT(loss.ptr()) == 1) {
    const at::Tensor& tensor = THPVariable_Unpack(loss.ptr());
    if (tensor.use_count() == 1 && tensor.storage().use_count() == 1) return loss;
  }
  const at::Tensor tensor = at::detail::empty_cpu({}, s.plan->dtype(), /*pin_memory=*/false, std::nullopt);
  return loss = py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
}

// None where x, y, or what the plan depends on, are not what was planned for.
py::object step(Step& s, py::handle x, py::handle y) {
  if (!THPVariable_Check(x.ptr()) || !THPVariable_Check(y.ptr()) || !s.is_current()) return py::none();
  const at::Tensor &x_tensor = THPVariable_Unpack(x.ptr()), &y_tensor = THPVariable_Unpack(y.ptr());
  if (!s.plan->fits(x_tensor, y_tensor)) return py::none();
  constexpr int64_t worth_releasing = 20000;
  py::object loss = fresh_loss(s);
  const at::Tensor& tensor = THPVariable_Unpack(loss.ptr());
  const bool ran = run(s, s.work > worth_releasing, [&] { s.plan->step(x_tensor, y_tensor, tensor); });
  return ran ? loss : py::none();
}

// step as a function of x and y that Python calls in the quickest way there is.
PyObject* call_step(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 2) {
    PyErr_Format(PyExc_TypeError, "a TrainStep takes x and y, but got %zd arguments", count);
    return nullptr;
  }
  auto* s = static_cast<Step*>(PyCapsule_GetPointer(self, nullptr));
  try {
    return step(*s, arguments[0], arguments[1]).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  }
  END_HANDLE_TH_ERRORS
}

py::object step_function(py::object plan) {
  static PyMethodDef definition = {"step", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(call_step)),
                                   METH_FASTCALL, nullptr};
  auto* step = plan.cast<Step*>();
  // The capsule keeps the plan.
  const auto self = py::reinterpret_steal<py::object>(PyCapsule_New(step, nullptr, [](PyObject* capsule) {
    py::handle(static_cast<PyObject*>(PyCapsule_GetContext(capsule))).dec_ref();
  }));
  PyCapsule_SetContext(self.ptr(), plan.release().ptr());
  return py::reinterpret_steal<py::object>(PyCFunction_New(&definition, self.ptr()));
}

// The losses are written into the tensor of that name, float64.
void run_batches(Step& s, const at::Tensor& x, const at::Tensor& y, const std::optional<at::Tensor>& order,
                 int64_t count, int64_t epochs, const at::Tensor& losses) {
  TORCH_CHECK_VALUE(s.is_current() && s.plan->fits_rows(x, y) && losses.is_contiguous() &&
                        losses.scalar_type() == at::kDouble && losses.numel() == count * epochs &&
                        s.plan->has_batches({x, y, order, count}),
                    "minidl.TrainStep: the data is not what was planned for");
  const auto poll = [] {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  };
  run_planned(s, [&] { s.plan->run({x, y, order, count}, epochs, losses.mutable_data_ptr<double>(), poll); });
}

// Where the first step of `losses` is step `first` of all.
void run_block(Step& s, const at::Tensor& x, const at::Tensor& y, const std::optional<at::Tensor>& order,
               int64_t count, int64_t first, const at::Tensor& losses, const at::Tensor& batch_x,
               const at::Tensor& batch_y) {
  TORCH_CHECK_VALUE(s.is_current() && s.plan->fits_rows(x, y) && s.plan->fits(batch_x, batch_y) &&
                        losses.is_contiguous() && losses.scalar_type() == s.plan->dtype() &&
                        losses.device() == x.device() && (!order || order->device() == x.device()) &&
                        x.size(0) == y.size(0) &&
                        (order ? order->numel() : x.size(0)) >= count * batch_x.size(0),
                    "minidl.TrainStep: the data is not what was planned for");
  run_planned(s, [&] { s.plan->run_block({x, y, order, count}, first, losses, batch_x, batch_y); });
}

// In one call, so that no signal comes between the step and its account.
void replay(Step& s, const py::object& graph) {
  graph();
  s.plan->replayed();
}

}  // namespace

void bind_training_plan(py::module_& m) {
  py::class_<Step>(m, "TrainingPlan", "See csrc/step/training_plan.h and minidl/step/")
      .def(py::init([](at::ScalarType dtype, at::Device device, std::vector<int64_t> offsets, int64_t bytes) {
             std::unique_ptr<TrainingPlan> plan;
             if (dtype == at::kFloat) {
               plan = std::make_unique<TrainingPlanOf<float>>(dtype, device, std::move(offsets), bytes);
             } else {
               plan = std::make_unique<TrainingPlanOf<double>>(dtype, device, std::move(offsets), bytes);
             }
             auto step = std::make_unique<Step>();
             step->plan = std::move(plan);
             step->work = bytes / 4;
             return step;
           }),
           py::arg("dtype"), py::arg("device"), py::arg("offsets"), py::arg("bytes"))
      .def("call", [](Step& s, const std::string& name,
                      const py::args& given) { plan_kernel_call(*s.plan, name, given); })
      .def("check_target", [](Step& s, py::handle target, int64_t n, int64_t classes,
                              int64_t ignore) { plan_target_check(*s.plan, target, n, classes, ignore); })
      .def("check_unit_interval", [](Step& s, py::handle x, int64_t n,
                                     bool is_target) { plan_interval_check(*s.plan, x, n, is_target); })
      .def("bind", [](Step& s, int64_t slot, at::Tensor tensor,
                      bool written) { s.plan->bind(slot, std::move(tensor), written); })
      .def("bind_batch", [](Step& s, int64_t x_slot, const at::Tensor& x, int64_t y_slot, const at::Tensor& y,
                            int64_t loss_slot) { s.plan->bind_batch(x_slot, x, y_slot, y, loss_slot); })
      .def("draw_into", [](Step& s, int64_t slot) { s.plan->draw_into(slot); })
      .def("count", [](Step& s, at::Tensor counter) { s.plan->count(std::move(counter)); })
      .def("begin_commit", [](Step& s) { s.plan->begin_commit(); })
      .def("begin_products", [](Step& s) { s.plan->begin_products(); })
      .def("update",
           [](Step& s, std::string kind, py::dict group, const std::vector<py::tuple>& rows) {
             Update u;
             for (const py::tuple& row : rows) {
               const auto state = row[2].cast<std::vector<std::optional<at::Tensor>>>();
               Update::Row r{row[0].cast<at::Tensor>(),
                             row[1].cast<int64_t>(),
                             {},
                             row[3].cast<std::optional<at::Tensor>>().value_or(at::Tensor()),
                             row[4].cast<bool>(),
                             row[5].cast<int64_t>()};
               for (size_t i = 0; i < r.state.size(); ++i) r.state[i] = state[i].value_or(at::Tensor());
               s.work += r.param.numel();
               u.rows.push_back(std::move(r));
             }
             s.plan->updates.push_back(std::move(u));
             s.groups.push_back({std::move(kind), std::move(group), {}});
           })
      .def("finish", [](Step& s) { s.plan->finish(); })
      .def("has_stepped", [](const Step& s) { return s.plan->has_stepped(); })
      .def("dtype", [](const Step& s) { return s.plan->dtype(); })
      .def("watch", &Step::watch)
      .def("fits",
           [](const Step& s, const at::Tensor& x, const at::Tensor& y) {
             return s.is_current() && s.has_wanted_state() && s.plan->fits(x, y);
           })
      .def("step_function", step_function)
      .def("run", torch::wrap_pybind_function(run_batches))
      .def("step", torch::wrap_pybind_function(
                       [](Step& s, const at::Tensor& x, const at::Tensor& y, const at::Tensor& loss) {
                         run_planned(s, [&] { s.plan->step(x, y, loss); });
                       }))
      .def("prepare", torch::wrap_pybind_function([](Step& s) {
             bool changed = false;
             run_planned(s, [&] { changed = s.plan->prepare(); });
             return changed;
           }))
      .def("enqueue",
           torch::wrap_pybind_function([](Step& s, const at::Tensor& x, const at::Tensor& y,
                                          const at::Tensor& loss) { s.plan->enqueue(x, y, loss); }))
      .def("replay", torch::wrap_pybind_function(replay))
      .def("fits_block", [](const Step& s) { return s.plan->fits_block(); })
      .def("run_block", torch::wrap_pybind_function(run_block));
}

}  // namespace minidl
