"""What nvcc made of the CUDA kernels: registers, spills, and the instructions that their speed rests on.

Reads the built module with NVIDIA's disassembler (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm); needs no
GPU. Skipped where minidl was built without CUDA.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from minidl import _C, _build_info

ARCHITECTURES = ("sm_80", "sm_90")


@cache
def cuobjdump(*arguments: str) -> str:
    tools = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    tool = shutil.which("cuobjdump", path=path)
    if _build_info.cuda is None or tool is None or shutil.which("nvdisasm", path=path) is None:
        pytest.skip("no CUDA kernels in this build, or no cuobjdump and nvdisasm")
    return subprocess.run(
        [tool, *arguments, str(_C.__file__)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": path},
    ).stdout


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    if f".{request.param}." not in cuobjdump("-lelf"):
        pytest.skip(f"this build has no code for {request.param}")
    return request.param


@dataclass(frozen=True)
class Kernel:
    name: str  # as mangled
    registers: int
    stack: int  # bytes; spilled registers lie there


@cache
def kernels(architecture: str) -> list[Kernel]:
    listing = cuobjdump("-res-usage", "-arch", architecture)
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", listing)
    return [Kernel(name, int(registers), int(stack)) for name, registers, stack in found]


def test_the_module_holds_every_kernel_once_an_architecture(architecture: str) -> None:
    names = {kernel.name for kernel in kernels(architecture)}
    for part in (
        "map_kernel",
        "loss_sum_kernel",
        "row_kernel",
        "list_kernel",
        "gemm_simt_kernel",
        "gemm_mma_kernel",
        "conv_simt_kernel",
        "conv_mma_kernel",
        "conv_numbers_kernel",
        "planes_backward_kernel",
    ):
        assert any(part in name for name in names), part
    assert len(names) > 300


def test_newer_devices_find_ptx() -> None:
    assert ".ptx" in cuobjdump("-lptx")


def test_registers(architecture: str) -> None:
    """Two blocks of a product fit a multiprocessor, and what is on the way to memory is not spilled to it."""
    everything = kernels(architecture)
    tiled = [k for k in everything if "gemm_" in k.name or "conv_mma" in k.name or "conv_simt" in k.name]
    # Hopper's own product has a multiprocessor to itself: 3 warpgroups that exchange registers.
    assert [k for k in tiled if k.registers > (168 if "wgmma" in k.name else 128)] == []
    # 32 bytes: of registers that live across a loop, not within it. Operands without an order are not hot.
    assert [k for k in everything if k.stack > 32 and "Order" not in k.name] == []
    ordered = [k for k in everything if "gemm_" in k.name and "5OrderE2" not in k.name]
    assert [k for k in ordered if k.stack > 0] == []


# A part of a kernel's mangled name, and the instructions it must have.
EXPECTED = {
    "map_kernelIfNS1_7ForwardINS1_4ReluIfE": ["LDG.E.128", "STG.E.128"],
    "loss_sum_kernelIfNS1_5ValueINS1_12OfDifferenceIfNS1_3MseIf": ["LDG.E.128"],
    "10row_kernelIfNS1_9BlockTeamENS1_19CrossEntropyForwardIf": ["LDG.E.128", "MUFU.EX2"],
    "UpdateElementsIfNS1_4AdamIf": ["LDG.E.128", "STG.E.128"],
    "gemm_simt_kernelIfLi8E": ["LDG.E.128", "LDS.128", "FFMA"],
    "gemm_simt_kernelIdLi4E": ["LDG.E.128", "DFMA"],
    "gemm_mma_kernelINS_8BFloat16ELi4ELNS1_5OrderE0": [
        "HMMA.16816.F32.BF16",
        "LDGSTS.E.BYPASS.128",
        "LDSM.16.M88.4",
    ],
    "gemm_mma_kernelINS_4HalfELi4ELNS1_5OrderE0": ["HMMA.16816.F32", "LDGSTS.E.BYPASS.128", "LDSM.16.M88.4"],
    "gemm_mma_kernelINS_4HalfELi4ELNS1_5OrderE1": ["HMMA.16816.F32", "LDSM.16.MT88.4"],
    "conv_simt_kernelIfLi8E": ["LDS.128", "FFMA"],
    "conv_mma_kernelINS_8BFloat16ELi4ELNS1_5OrderE0": ["HMMA.16816.F32.BF16", "LDGSTS.E.BYPASS.128"],
    "gemm_mma_kernelIfLi4ELNS1_5OrderE0": ["HMMA.1688.F32.TF32", "LDGSTS.E.BYPASS.128"],
}


@pytest.mark.parametrize("part", EXPECTED)
def test_instructions(part: str, architecture: str) -> None:
    names = [kernel.name for kernel in kernels(architecture) if part in kernel.name]
    assert names, "the kernel has another name now"
    code = cuobjdump("-sass", "-arch", architecture, "-fun", names[0])
    for instruction in EXPECTED[part]:
        assert instruction in code, f"{names[0]} has no {instruction}"


def test_hoppers_own_product() -> None:
    """It has a target of its own."""
    ours = [kernel for kernel in kernels("sm_90a") if "gemm_wgmma_kernel" in kernel.name]
    assert len(ours) == 8
    assert [kernel for kernel in ours if kernel.stack > 0] == []
    for name in (kernel.name for kernel in ours if "BFloat16" in kernel.name):
        code = cuobjdump("-sass", "-arch", "sm_90a", "-fun", name)
        for instruction in ("HGMMA.64x256x16.F32.BF16", "UTMALDG.2D", "USETMAXREG"):
            assert instruction in code, f"{name} has no {instruction}"
