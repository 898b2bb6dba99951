// How minidl/optim.py and minidl/nn/utils.py reach the operators on lists.
#pragma once
#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <array>
#include <optional>
#include <string>

#include "step/plan.h"

namespace minidl {

// What a parameter group of an optimizer says, kind being the name of its kernel: sgd_step, rmsprop_step or
// adam_step. A learning rate that is a tensor on a GPU goes to *rate, since to read it would be to wait.
OptimizerOptions read_optimizer_options(const std::string& kind, const pybind11::dict& group,
                                        std::optional<at::Tensor>* rate);
// Which of OptimizerTensor::state these options ask for.
std::array<bool, 3> optimizer_state_wanted(const std::string& kind, const pybind11::dict& group);

// Adds sgd_step, rmsprop_step and adam_step: (group, state) -> bool, with group one of an optimizer's
// param_groups and state its state. One step for the parameters that have a gradient; False, with nothing
// changed, if one of them lacks state that the group's options ask for. And gradients: (parameters) -> list,
// with the operators that clip it, which run without grad mode.
void bind_optimizers(pybind11::module_& m);

}  // namespace minidl
