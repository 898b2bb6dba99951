// How minidl/step/ plans a training step and runs it.
#pragma once
#include <pybind11/pybind11.h>

namespace minidl {

void bind_training_plan(pybind11::module_& m);

}  // namespace minidl
