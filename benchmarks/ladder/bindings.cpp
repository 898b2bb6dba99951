// The Python face of the ladder: matmul(rung, isa, a, b) on numpy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <map>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "rungs.h"

namespace py = pybind11;
using Matrix = py::array_t<float, py::array::c_style>;
using Rung = void (*)(const float*, const float*, float*, int64_t, int64_t, int64_t);

// LADDER_ISAS is the build's list: ISA(scalar) ISA(avx2) ...
#define ISA(isa) LADDER_RUNGS(DECLARE_RUNG, isa)
LADDER_ISAS
#undef ISA

namespace {

Rung find(const std::string& rung, const std::string& isa) {
#define ENTRY(isa, name) {{#name, #isa}, minidl::isa::name},
#define ISA(isa) LADDER_RUNGS(ENTRY, isa)
  static const std::map<std::pair<std::string, std::string>, Rung> rungs = {LADDER_ISAS};
#undef ISA
#undef ENTRY
  const auto found = rungs.find({rung, isa});
  if (found == rungs.end()) throw py::value_error("ladder: no rung '" + rung + "' for ISA '" + isa + "'");
  return found->second;
}

// At the start of a cache line, where torch puts tensors and numpy need not put arrays: registers that
// straddle two lines are slower to load and store.
Matrix empty(int64_t m, int64_t n) {
  constexpr size_t line = 64;
  void* data = std::aligned_alloc(line, (static_cast<size_t>(m * n) * sizeof(float) / line + 1) * line);
  if (!data) throw std::bad_alloc();
  return Matrix({m, n}, static_cast<float*>(data), py::capsule(data, std::free));
}

Matrix matmul(const std::string& rung, const std::string& isa, const Matrix& a, const Matrix& b) {
  const Rung run = find(rung, isa);
  if (a.ndim() != 2 || b.ndim() != 2 || a.shape(1) != b.shape(0)) {
    const auto shape = [](const Matrix& x) { return py::str(x.attr("shape")).cast<std::string>(); };
    throw py::value_error("ladder: expected matrices (m, k) and (k, n), but got " + shape(a) + " and " +
                          shape(b));
  }
  const int64_t m = a.shape(0), n = b.shape(1), k = a.shape(1);
  Matrix c = empty(m, n);
  float* out = c.mutable_data();
  const py::gil_scoped_release release;
  run(a.data(), b.data(), out, m, n, k);
  return c;
}

}  // namespace

PYBIND11_MODULE(_ladder, module) {
  module.doc() = "One product of float32 matrices, written six times";
#define NAME(isa, name) #name,
  module.attr("rungs") = std::vector<std::string>{LADDER_RUNGS(NAME, )};
#undef NAME
  // noconvert: another dtype or layout is a TypeError, not a silent copy
  module.def("matmul", matmul, py::arg("rung"), py::arg("isa"), py::arg("a").noconvert(),
             py::arg("b").noconvert());
}
