// The Python face: a table of contents. Each function goes through torch's dispatcher, without the GIL.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "allocator.h"
#include "dispatch.h"
#include "ops/ops.h"
#include "optimizer_bindings.h"
#include "parallel.h"
#include "step/bindings.h"

namespace py = pybind11;
using namespace minidl;

#define OP(name, ...) m.def(#name, torch::wrap_pybind_function_no_gil(ops::name), __VA_ARGS__)

PYBIND11_MODULE(_C, m) {
  m.doc() = "minidl's kernels, as functions on tensors";

  m.def("available_isas", torch::wrap_pybind_function(available_isas));
  m.def("isa", torch::wrap_pybind_function(isa));
  m.def("set_isa", torch::wrap_pybind_function(set_isa), py::arg("name"));
  m.def("threads_used", torch::wrap_pybind_function_no_gil(threads_used));

  m.def("empty_memory_cache", torch::wrap_pybind_function_no_gil(empty_memory_cache));
  m.def("set_memory_limit", torch::wrap_pybind_function_no_gil(set_memory_limit), py::arg("bytes"));
  m.def("memory_stats", [] {
    const MemoryStats s = memory_stats();
    using namespace py::literals;
    return py::dict("limit"_a = s.limit, "kept"_a = s.kept, "in_use"_a = s.in_use, "reused"_a = s.reused,
                    "fetched"_a = s.fetched);
  });

  OP(activation, py::arg("x"), py::arg("name"), py::arg("alpha") = 0.0, py::arg("beta") = 0.0);
  OP(matmul, py::arg("a"), py::arg("b"));
  OP(linear, py::arg("input"), py::arg("weight"), py::arg("bias") = py::none(),
     py::arg("activation") = "none");
  OP(convolution, py::arg("input"), py::arg("weight"), py::arg("bias"), py::arg("stride"), py::arg("padding"),
     py::arg("dilation"), py::arg("transposed"), py::arg("output_padding"), py::arg("groups"),
     py::arg("activation") = "none");
  OP(loss, py::arg("input"), py::arg("target"), py::arg("kind"), py::arg("reduction") = 1,
     py::arg("weight") = py::none(), py::arg("pos_weight") = py::none(), py::arg("beta") = 1.0);
  OP(softmax, py::arg("input"), py::arg("dim"), py::arg("log") = false);
  OP(cross_entropy, py::arg("input"), py::arg("target"), py::arg("weight") = py::none(),
     py::arg("reduction") = 1, py::arg("ignore_index") = -100, py::arg("label_smoothing") = 0.0);
  OP(nll_loss, py::arg("input"), py::arg("target"), py::arg("weight") = py::none(), py::arg("reduction") = 1,
     py::arg("ignore_index") = -100);
  OP(batch_norm, py::arg("input"), py::arg("weight"), py::arg("bias"), py::arg("running_mean"),
     py::arg("running_var"), py::arg("training"), py::arg("momentum"), py::arg("eps"),
     py::arg("activation") = "none");
  OP(layer_norm, py::arg("input"), py::arg("normalized_shape"), py::arg("weight"), py::arg("bias"),
     py::arg("eps"), py::arg("activation") = "none");
  OP(group_norm, py::arg("input"), py::arg("num_groups"), py::arg("weight"), py::arg("bias"), py::arg("eps"),
     py::arg("activation") = "none");
  OP(dropout, py::arg("input"), py::arg("p"), py::arg("channels") = false, py::arg("generator") = py::none());
  OP(max_pool2d, py::arg("input"), py::arg("kernel_size"), py::arg("stride"), py::arg("padding"),
     py::arg("dilation"), py::arg("ceil_mode"));
  OP(max_pool2d_with_indices, py::arg("input"), py::arg("kernel_size"), py::arg("stride"), py::arg("padding"),
     py::arg("dilation"), py::arg("ceil_mode"));
  OP(avg_pool2d, py::arg("input"), py::arg("kernel_size"), py::arg("stride"), py::arg("padding"),
     py::arg("ceil_mode"), py::arg("count_include_pad"), py::arg("divisor_override"));
  OP(adaptive_max_pool2d, py::arg("input"), py::arg("output_size"));
  OP(adaptive_max_pool2d_with_indices, py::arg("input"), py::arg("output_size"));
  OP(adaptive_avg_pool2d, py::arg("input"), py::arg("output_size"));
  bind_optimizers(m);
  bind_training_plan(m);
  OP(fma_loop, py::arg("dtype"), py::arg("iterations"));
}
