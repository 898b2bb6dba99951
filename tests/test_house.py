"""The rules of the house that a compiler does not check."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from minidl.benchmarks.ladder import _ladder

import minidl
from minidl import _C, _build_info, doctor

ROOT = Path(__file__).parent.parent
CPU = ROOT / "csrc" / "cpu"
LADDER = ROOT / "benchmarks" / "ladder"
STEMS = sorted(
    set(re.search(r"set\(MINIDL_STEMS ([a-z ]+)\)", (ROOT / "CMakeLists.txt").read_text()).group(1).split())
    - {"peak"}
)


@pytest.mark.parametrize("stem", STEMS)
def test_a_stem_has_its_file_in_every_place(stem):
    for place in ("csrc/ops/{}.cpp", "csrc/cpu/{}.cpp", "tests/test_{}.py", "benchmarks/bench_{}.py"):
        assert (ROOT / place.format(stem)).is_file(), place


def test_kernels_know_nothing_of_torch_nor_of_the_standard_library():
    """Inline functions of std are merged by the linker across instruction sets: an illegal instruction elsewhere."""
    allowed = {"cstdint", "cstddef", "immintrin.h", "arm_neon.h"}
    rungs = [
        path for path in LADDER.iterdir() if path.suffix in (".cpp", ".h") and path.name != "bindings.cpp"
    ]
    assert len(rungs) == 8
    for source in [*CPU.iterdir(), *rungs, ROOT / "csrc" / "kernels.h", ROOT / "csrc" / "parallel.h"]:
        text = source.read_text(encoding="utf-8")
        includes = set(re.findall(r"#include <([^>]+)>", text))
        assert includes <= allowed, source.name
        assert not re.search(r"\b(torch|ATen|c10|pybind11|std)::", text), source.name


@pytest.mark.parametrize("module", [_C, _ladder], ids=lambda module: module.__name__)
def test_no_instruction_set_leaks_out_of_its_namespace(module):
    """A function with AVX registers that every machine may call is an illegal instruction on some of them."""
    objdump = shutil.which("objdump")
    if objdump is None or "avx2" not in _build_info.isas:
        pytest.skip("no objdump of binutils, or no x86 kernels")
    code = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", module.__file__], capture_output=True, text=True, check=True
    ).stdout
    function, users = "", {"%ymm": set(), "%zmm": set()}
    for line in code.splitlines():
        if line.endswith(">:"):
            function = line.split(" <", 1)[1][:-2]
        for register, found in users.items():
            if register in line:
                found.add(function)
    assert any(
        "6avx512" in name for name in users["%zmm"]
    )  # the mangled names are there: their absence would tell
    assert [name for name in users["%zmm"] if "6avx512" not in name] == []
    assert [name for name in users["%ymm"] if not re.search("6avx512|4avx2", name)] == []


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """From the tests' folder: in the repository's root Python would import the source folder, without kernels."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "tests",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_another_torch_is_refused_in_words():
    ran = run_python("import torch; torch.__version__ = '1.0.0'; import minidl")
    assert ran.returncode == 1
    assert f"built for torch {_build_info.torch}, but torch 1.0.0 is installed" in ran.stderr
    assert "pip install --force-reinstall --no-deps --no-cache-dir ." in ran.stderr


@pytest.mark.parametrize("isa", _C.available_isas())
def test_the_environment_chooses_the_kernels(isa):
    ran = run_python("from minidl import _C; print(_C.isa())", MINIDL_ISA=isa)
    assert ran.stdout.strip() == isa


def test_an_unknown_isa_in_the_environment_is_an_error():
    ran = run_python("from minidl import _C; _C.isa()", MINIDL_ISA="sse9")
    assert ran.returncode == 1
    assert "ValueError: minidl: no kernels for ISA 'sse9' on this machine; available: scalar" in ran.stderr


def test_import_is_light():
    ran = run_python(
        "import sys, minidl; print({'matplotlib', 'sklearn', 'minidl.lessons'} & set(sys.modules))"
    )
    assert ran.stdout.strip() == "set()"


def test_the_source_folder_is_not_taken_for_the_package(tmp_path):
    shutil.copytree(
        ROOT / "minidl", tmp_path / "minidl", ignore=shutil.ignore_patterns("_build_info.py", "*.so")
    )
    ran = run_python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.meta_path[:] = sys.meta_path[-3:]; import minidl"
    )
    assert ran.returncode == 1
    assert "this is minidl's source folder" in ran.stderr


def test_typed():
    package = Path(minidl.__file__).parent
    assert (package / "py.typed").is_file()
    stub = (package / "_C.pyi").read_text(encoding="utf-8")
    declared = set(re.findall(r"^(?:def|class) (\w+)", stub, re.MULTILINE))
    assert declared == {name for name in dir(_C) if not name.startswith("_")}


def test_doctor_reports_and_passes(capsys):
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    for part in ("minidl   0.1.0", "torch    2.", f"kernels  {_C.isa()} in use", "threads", "cuda", "data"):
        assert part in printed
    assert "all operators agree with torch" in printed


def test_doctor_finds_a_wrong_kernel(capsys, monkeypatch):
    monkeypatch.setattr(doctor.F, "tanh", doctor.F.sigmoid)
    monkeypatch.setattr(doctor.optim, "SGD", doctor.optim.Adam)
    assert doctor.main() == 1
    printed = capsys.readouterr().out
    assert f"FAILED tanh on {_C.isa()}" in printed
    assert f"FAILED SGD on {_C.isa()}" in printed
    assert "all operators agree" not in printed
