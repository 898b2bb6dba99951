"""The rules of the house that a compiler does not check."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minidl
from minidl import _C, _build_info, doctor

ROOT = Path(__file__).parent.parent
CPU = ROOT / "csrc" / "cpu"
STEMS = ["activation", "matmul", "loss", "softmax", "optimizer"]


@pytest.mark.parametrize("stem", STEMS)
def test_a_stem_has_its_file_in_every_place(stem):
    for place in (
        f"csrc/ops/{stem}.cpp",
        f"csrc/cpu/{stem}.cpp",
        f"tests/test_{stem}.py",
        f"benchmarks/bench_{stem}.py",
    ):
        assert (ROOT / place).is_file(), place


def test_kernels_know_nothing_of_torch_nor_of_the_standard_library():
    """Inline functions of std are merged by the linker across instruction sets: an illegal instruction elsewhere."""
    allowed = {"cstdint", "cstddef", "immintrin.h", "arm_neon.h"}
    for source in [*CPU.iterdir(), ROOT / "csrc" / "kernels.h", ROOT / "csrc" / "parallel.h"]:
        text = source.read_text(encoding="utf-8")
        includes = set(re.findall(r"#include <([^>]+)>", text))
        assert includes <= allowed, source.name
        assert not re.search(r"\b(torch|ATen|c10|pybind11|std)::", text), source.name


def test_no_instruction_set_leaks_through_weak_symbols():
    """Every symbol that the linker may merge must carry its instruction set's name."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("binutils' nm is not installed")
    symbols = subprocess.run(
        [nm, "-C", "--defined-only", _C.__file__], capture_output=True, text=True, check=True
    )
    kernels = [
        line for line in symbols.stdout.splitlines() if "minidl::avx" in line or "minidl::neon" in line
    ]
    if not kernels:
        pytest.skip("the extension is stripped")
    for line in symbols.stdout.splitlines():
        _, kind, name = line[17:].partition(" ")[0], line[17:18], line[19:]
        if kind in "Ww" and re.search(r"minidl::(Vec|KernelsOf)", name):
            pytest.fail(f"weak symbol outside an instruction set's namespace: {name}")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
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
        "import sys, minidl; print([m for m in ('matplotlib', 'sklearn', 'minidl.lessons') if m in sys.modules])"
    )
    assert ran.stdout.strip() == "[]"


def test_typed():
    package = Path(minidl.__file__).parent
    assert (package / "py.typed").is_file()
    stub = (package / "_C.pyi").read_text(encoding="utf-8")
    declared = set(re.findall(r"^def (\w+)", stub, re.MULTILINE))
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
