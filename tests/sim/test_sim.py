"""Every CUDA kernel on the CPU: against the scalar table, under sanitizers, and with bugs that must be found.

No GPU and no CUDA toolkit: g++ compiles csrc/cuda for the simulator in this folder (cuda_sim.h), and the program of
tests/native compares the table with the scalar one. Objects are kept in pytest's cache, by what they were made from.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
COMMON = ["-std=c++20", "-g1", "-O1", "-fno-strict-aliasing", "-fno-omit-frame-pointer"]
FLAGS = {
    "plain": ["--coverage"],
    # The sanitizers see float and half: the other types are the same templates.
    "asan": [
        "-DMINIDL_FEW_TYPES",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-fno-sanitize-address-use-after-scope",
    ],
    "tsan": ["-DMINIDL_FEW_TYPES", "-fsanitize=thread"],
}
ENVIRONMENT = {
    **os.environ,
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
}
STEMS = sorted(path.stem for path in (ROOT / "csrc" / "cuda").glob("*.cu") if path.stem != "backend")

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64") or shutil.which("g++") is None,
    reason="the simulator needs g++ on x86-64 or arm64",
)


@dataclass
class Simulator:
    """Builds and runs the checks."""

    cache: Path

    def object(self, source: Path, flags: list[str], csrc: Path = ROOT / "csrc") -> Path:
        """The object file of a source; `csrc` is where it finds the headers and itself."""
        command = ["g++", *COMMON, *flags, f"-I{csrc}", f"-I{ROOT / 'tests'}", f"-I{ROOT / 'tests' / 'sim'}"]
        command += ["-x", "c++", "-c", str(source)]
        headers = [*csrc.rglob("*.h"), *csrc.rglob("*.cuh"), *csrc.rglob("*.def")]
        headers += [*(ROOT / "tests" / "native").glob("*.h"), *(ROOT / "tests" / "sim").glob("*.h")]
        made_from = [path.read_text() for path in [source, *sorted(headers)]]
        key = hashlib.sha256(repr([command[:-1], source.name, made_from]).encode()).hexdigest()[:24]
        target = self.cache / f"{source.stem}-{key}.o"
        if not target.exists():
            # The .gcno beside an object has its name; gcov wants it unchanged.
            made = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True, check=False)
            assert made.returncode == 0, made.stderr[-8000:]
        return target

    def objects(
        self, build: str, csrc: Path = ROOT / "csrc", changed: frozenset[str] = frozenset()
    ) -> list[Path]:
        """The objects of a build; those of the stems in `changed` come from another tree."""
        flags = FLAGS[build]
        scalar = ["-DMINIDL_ISA=scalar", "-DMINIDL_ISA_scalar", "-ffp-contract=off", "-fno-math-errno"]
        tables = "-DMINIDL_TABLES=TABLE(scalar) TABLE(cuda)"
        jobs = [(ROOT / "tests" / "native" / "kernels_main.cpp", [*flags, "-DMINIDL_SIM", tables])]
        jobs += [(ROOT / "csrc" / "cuda" / f"{stem}.cu", [*flags, "-DMINIDL_SIM"]) for stem in STEMS]
        jobs += [(ROOT / "tests" / "sim" / name, ["-O2"]) for name in ("engine.cpp", "switch_stack.cpp")]
        jobs += [(source, scalar) for source in sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]

        def compiled(job: tuple[Path, list[str]]) -> Path:
            source, given = job
            if source.suffix == ".cu" and source.stem in changed:
                return self.object(csrc / "cuda" / source.name, given, csrc)
            return self.object(source, given)

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(compiled, jobs))

    def program(self, build: str, csrc: Path = ROOT / "csrc", changed: frozenset[str] = frozenset()) -> Path:
        objects = [str(path) for path in self.objects(build, csrc, changed)]
        program = self.cache / f"check-{hashlib.sha256(repr(objects).encode()).hexdigest()[:24]}"
        if not program.exists():
            command = ["g++", *FLAGS[build], *objects, "-o", str(program)]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            assert made.returncode == 0, made.stderr[-8000:]
        return program


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def simulator(request: pytest.FixtureRequest) -> Simulator:
    return Simulator(Path(request.config.cache.mkdir("minidl-sim")))


def passes(program: Path, *arguments: object) -> int:
    """How many comparisons were made; none may fail."""
    ran = run(program, *arguments)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-6000:]
    return int(re.search(r"^(\d+) comparisons agree$", ran.stdout, re.MULTILINE).group(1))


@pytest.mark.parametrize("orders", [(0, 1), (2, 3)], ids=["ascending and descending", "shuffled"])
def test_kernels_agree_with_the_scalar_table(simulator: Simulator, orders: tuple[int, int]) -> None:
    """Each case runs in both orders of threads and blocks, which must give the same bits."""
    assert passes(simulator.program("plain"), 4 + orders[0] // 2, *orders) > 9000


def test_under_address_and_undefined_behaviour_sanitizers(simulator: Simulator) -> None:
    assert passes(simulator.program("asan"), 23) > 1500


def test_without_races(simulator: Simulator) -> None:
    """Every fiber is a thread to ThreadSanitizer, and only barriers order what they do."""
    assert passes(simulator.program("tsan"), 61) > 400


def test_line_coverage(simulator: Simulator, tmp_path: Path) -> None:
    """Of csrc/cuda, by the plain build's run."""
    gcov = shutil.which("gcov")
    if gcov is None:
        pytest.skip("no gcov")
    data = [path.with_suffix(".gcda") for path in simulator.objects("plain")]
    passes(simulator.program("plain"), 16)
    executed: dict[tuple[str, int], bool] = {}
    objects = [
        str(path) for path in data if path.exists() and path.stem.split("-")[0] in [*STEMS, "kernels_main"]
    ]
    listing = subprocess.run(
        [gcov, "--stdout", *objects], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    source = ""
    for line in listing.splitlines():
        count, number, rest = [*line.split(":", 2), "", ""][:3]
        if number.strip() == "0" and rest.startswith("Source:"):
            source = rest.removeprefix("Source:")
        elif re.fullmatch(r"\s*\d+", number) and count.strip() != "-" and "csrc/cuda/" in source:
            key = (Path(source).name, int(number))
            executed[key] = executed.get(key, False) or count.strip()[0] not in "#="
    missed = sorted(key for key, hit in executed.items() if not hit)
    assert len(executed) > 600
    share = 1 - len(missed) / len(executed)
    print(f"line coverage of csrc/cuda: {share:.1%} of {len(executed)} lines; not run: {missed}")
    assert share >= 0.85, missed


@dataclass
class Bug:
    """A change of a source of csrc/cuda, and the words of what must find it."""

    file: str
    old: str
    new: str
    build: str
    check: str
    caught: str
    stem: str = ""


BUGS = {
    "a barrier is missing before a reduction's partial sums are read": Bug(
        "reduce.cuh",
        "of_warp[threadIdx.x / 32] = v;\n  __syncthreads();",
        "of_warp[threadIdx.x / 32] = v;",
        "plain",
        "loss",
        "by scalar: kernel loss_forward",
        "loss",
    ),
    "a barrier is missing between two k-blocks": Bug(
        "gemm_simt.cuh",
        "load_b.put(b_tile[now]);\n    __syncthreads();\n  }",
        "load_b.put(b_tile[now]);\n  }",
        "tsan",
        "matmul",
        "ThreadSanitizer: data race",
        "matmul",
    ),
    "shared memory is one element short": Bug(
        "optimizer.cu",
        "MINIDL_SHARED(double, of_thread, [list_block]);",
        "MINIDL_SHARED(double, of_thread, [list_block - 1]);",
        "asan",
        "clipping",
        "index 255 out of bounds",
    ),
    "one element more is written than there is": Bug(
        "vec.cuh",
        "for (int64_t i = done + first; i < n; i += step)",
        "for (int64_t i = done + first; i <= n; i += step)",
        "asan",
        "activation",
        "AddressSanitizer: ",
        "activation",
    ),
    "a wait leaves the copy that is needed in flight": Bug(
        "gemm_mma.cuh",
        "copy_async_wait<mma_stages - 2>();",
        "copy_async_wait<mma_stages - 1>();",
        "plain",
        "matmul narrow",
        "by scalar: kernel gemm",
        "matmul",
    ),
    "blocks add to one number without an order": Bug(
        "loss.cu",
        "    partial[blockIdx.x] = sum;",
        "    partial[0] += sum;",
        "tsan",
        "loss",
        "ThreadSanitizer: data race",
    ),
    "half a block goes to a barrier": Bug(
        "loss.cu",
        "  sum = block_sum(sum);\n  if (threadIdx.x != 0) return;",
        "  if (threadIdx.x < 64) sum = block_sum(sum);\n  if (threadIdx.x != 0) return;",
        "plain",
        "loss",
        "divergence: 64 threads wait at a barrier",
    ),
    "a lane stays away from a shuffle": Bug(
        "reduce.cuh",
        "    v = Op::combine(v, __shfl_xor_sync(full_mask, v, bits));",
        "    if (threadIdx.x % 32 != 5) v = Op::combine(v, __shfl_xor_sync(full_mask, v, bits));",
        "plain",
        "loss",
        "divergence: ",
        "loss",
    ),
}


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    return tmp_path / "csrc"


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(simulator: Simulator, planted: Path, name: str) -> None:
    bug = BUGS[name]
    path = planted / "cuda" / bug.file
    text = path.read_text()
    assert text.count(bug.old) == 1, "the source has changed: plant the bug anew"
    path.write_text(text.replace(bug.old, bug.new))
    stem = bug.stem or path.stem
    ran = run(simulator.program(bug.build, planted, frozenset({stem})), 1, 0, 1, bug.check)
    assert ran.returncode != 0
    assert bug.caught in ran.stdout + ran.stderr, (ran.stdout + ran.stderr)[-4000:]
