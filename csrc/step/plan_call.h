// From Python's description of a call to a call of a plan.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "step/training_plan.h"

namespace minidl {

void plan_kernel_call(TrainingPlan& plan, const std::string& name, const pybind11::args& given);
// What may stop a run: Plan::check_target and Plan::check_unit_interval.
void plan_target_check(TrainingPlan& plan, pybind11::handle target, int64_t n, int64_t classes,
                       int64_t ignore_index);
void plan_interval_check(TrainingPlan& plan, pybind11::handle x, int64_t n, bool is_target);

}  // namespace minidl
