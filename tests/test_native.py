"""The kernels without torch, in a program of their own: under sanitizers, and the NEON table on any machine."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from minidl import _C

NATIVE = Path(__file__).parent / "native"
# Of the cases of each kernel, one in so many is run, so that this file takes minutes. By hand: kernels_check 1
ONE_IN = {"sanitizers": "2", "emulator": "4"}
# Scopes are not watched: that takes the registers of unrolled loops apart and GCC minutes, and kernels keep no
# pointers to locals.
SANITIZE = (
    "-g1 -fno-omit-frame-pointer -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all "
    "-fno-sanitize-address-use-after-scope"
)


def run(*command: str | Path, **environment: str) -> str:
    ran = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert ran.returncode == 0, f"{command[0]} exited with {ran.returncode}:\n{ran.stdout[-8000:]}"
    return ran.stdout


def build(folder: Path, *settings: str) -> Path:
    """Builds tests/native with these CMake settings."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run(cmake, "-S", NATIVE, "-B", folder, *generator, *[f"-D{setting}" for setting in settings])
    run(cmake, "--build", folder, "--parallel", "2")
    return folder / "kernels_check"


def compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    pytest.skip("no C++ compiler is installed")


def test_under_sanitizers(tmp_path: Path) -> None:
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}")
    command = [compiler(), *SANITIZE.split(), probe, "-o", tmp_path / "probe"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("the compiler has no sanitizers (libasan, libubsan)")
    best = _C.available_isas()[-1]
    isas = "scalar" if best == "scalar" else f"scalar;{best}"
    check = build(
        tmp_path,
        f"CMAKE_CXX_COMPILER={compiler()}",
        f"CMAKE_CXX_FLAGS={SANITIZE}",
        "KERNELS_CHECK_OPTIMIZATION=-O1",
        f"KERNELS_CHECK_ISAS={isas}",
    )
    # Kernels allocate nothing, and looking for leaks needs rights that containers may not give.
    said = run(check, ONE_IN["sanitizers"], ASAN_OPTIONS="detect_leaks=0")
    assert said.startswith(f"tables: {isas.replace(';', ' ')}\n")
    assert said.endswith(" comparisons agree\n")


def test_neon(tmp_path: Path) -> None:
    cross = shutil.which("aarch64-linux-gnu-g++")
    if cross is None:
        pytest.skip("no cross-compiler for arm64 (Debian: apt-get install g++-aarch64-linux-gnu)")
    target = "CMAKE_SYSTEM_NAME=Linux", "CMAKE_SYSTEM_PROCESSOR=aarch64"
    check = build(tmp_path, f"CMAKE_CXX_COMPILER={cross}", "KERNELS_CHECK_OPTIMIZATION=-O1", *target)
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("compiled, but not run: no qemu-aarch64 (Debian: apt-get install qemu-user-static)")
    said = run(emulator, check, ONE_IN["emulator"])
    assert said.startswith("tables: scalar neon\n")
    assert said.endswith(" comparisons agree\n")
