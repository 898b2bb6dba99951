"""Every CUDA kernel on the CPU: against the scalar table, under sanitizers, and with bugs that must be found.

No GPU and no CUDA toolkit: g++ compiles csrc/cuda for the simulator in this folder (cuda_sim.h), and the program of
tests/native compares the table with the scalar one. Objects are kept in pytest's cache, by what they were made from.
All that the chosen tests need is compiled and run beside one another, one job a core; a test waits for its own.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock

import pytest

ROOT = Path(__file__).parent.parent.parent
COMMON = ["-std=c++20", "-g1", "-fno-strict-aliasing", "-fno-omit-frame-pointer", "-DMINIDL_SIM"]
# The sanitizers see float and half: the other types are the same templates. Reads and writes are checked by calls,
# and overflow of signed integers is not looked for: both double the time that g++ takes over an unrolled kernel.
FLAGS = {
    "plain": ["--coverage"],
    "asan": [
        "-DMINIDL_FEW_TYPES",
        "-fsanitize=address,undefined",
        "-fno-sanitize=null,object-size,vptr,signed-integer-overflow",
        "-fno-sanitize-recover=all",
        "-fno-sanitize-address-use-after-scope",
        "--param=asan-instrumentation-with-call-threshold=0",
    ],
    "tsan": ["-DMINIDL_FEW_TYPES", "-fsanitize=thread"],
}
ENVIRONMENT = {
    **os.environ,
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
}
KERNELS = [path for path in (ROOT / "csrc" / "cuda").glob("*.cu") if path.stem != "backend"]

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64") or shutil.which("g++") is None,
    reason="the simulator needs g++ on x86-64 or arm64",
)


@dataclass(frozen=True)
class Run:
    """A build of the program with its arguments: one case in N, two orders of threads, names of checks."""

    build: str
    arguments: tuple[int | str, ...]
    least: int  # comparisons


# Each case runs in both orders of threads and blocks, which must give the same bits. Under tsan every fiber is a
# thread, and only barriers order what they do.
RUNS = {
    "ascending and descending": Run("plain", (6, 0, 1), 9000),
    "shuffled": Run("plain", (7, 2, 3), 7000),
    "address and undefined behaviour sanitizers": Run("asan", (17, 0, 1), 2000),
    "thread sanitizer": Run("tsan", (41, 0, 1), 800),
}


@dataclass(frozen=True)
class Bug:
    """A change of a source of csrc/cuda, and the words of what must find it: of a sanitizer, or of the comparisons."""

    file: str
    old: str
    new: str
    stem: str  # what is compiled with it
    check: str
    found_by: str  # asan, tsan, or comparing
    words: str

    @property
    def build(self) -> str:
        """What the comparisons must find needs no build of its own: ThreadSanitizer can be told to be silent."""
        return "asan" if self.found_by == "asan" else "tsan"


BUGS = {
    "a barrier is missing before a reduction's partial sums are read": Bug(
        "reduce.cuh",
        "of_warp[threadIdx.x / 32] = v;\n  __syncthreads();",
        "of_warp[threadIdx.x / 32] = v;",
        "loss",
        "loss",
        "comparing",
        "by scalar: kernel loss_forward",
    ),
    "a barrier is missing between two k-blocks": Bug(
        "gemm_simt.cuh",
        "load_b.put(b_tile[now]);\n    __syncthreads();\n  }",
        "load_b.put(b_tile[now]);\n  }",
        "matmul",
        "matmul",
        "tsan",
        "ThreadSanitizer: data race",
    ),
    "shared memory is one element short": Bug(
        "optimizer.cu",
        "MINIDL_SHARED(double, of_thread, [list_block]);",
        "MINIDL_SHARED(double, of_thread, [list_block - 1]);",
        "optimizer",
        "clipping",
        "asan",
        "index 255 out of bounds",
    ),
    "one element more is written than there is": Bug(
        "vec.cuh",
        "for (int64_t i = done + first; i < n; i += step)",
        "for (int64_t i = done + first; i <= n; i += step)",
        "activation",
        "activation",
        "asan",
        "SUMMARY: AddressSanitizer: ",
    ),
    "a wait leaves the copy that is needed in flight": Bug(
        "gemm_mma.cuh",
        "copy_async_wait<mma_stages - 2>();",
        "copy_async_wait<mma_stages - 1>();",
        "matmul",
        "matmul narrow",
        "comparing",
        "by scalar: kernel gemm",
    ),
    "blocks add to one number without an order": Bug(
        "loss.cu",
        "    partial[blockIdx.x] = sum;",
        "    partial[0] += sum;",
        "loss",
        "loss",
        "tsan",
        "ThreadSanitizer: data race",
    ),
    "half a block goes to a barrier": Bug(
        "loss.cu",
        "  sum = block_sum(sum);\n  if (threadIdx.x != 0) return;",
        "  if (threadIdx.x < 64) sum = block_sum(sum);\n  if (threadIdx.x != 0) return;",
        "loss",
        "loss",
        "comparing",
        "divergence: 64 threads wait at a barrier",
    ),
    "a barrier is missing between two calls of a loop in one block": Bug(
        "block_loop.cu",
        "run_call<T>(loop.calls[i]);\n      __syncthreads();",
        "run_call<T>(loop.calls[i]);",
        "block_loop",
        "block_loop",
        "tsan",
        "ThreadSanitizer: data race",
    ),
    "a lane stays away from a shuffle": Bug(
        "reduce.cuh",
        "    v = Op::combine(v, __shfl_xor_sync(full_mask, v, bits));",
        "    if (threadIdx.x % 32 != 5) v = Op::combine(v, __shfl_xor_sync(full_mask, v, bits));",
        "loss",
        "loss",
        "comparing",
        "divergence: ",
    ),
}


def digest(of: object) -> str:
    return hashlib.sha256(repr(of).encode()).hexdigest()[:24]


def made(command: list[str], target: Path) -> Path:
    """What the command makes, unless it is there."""
    if not target.exists():
        ran = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr[-8000:]
    return target


@dataclass
class Simulator:
    """Builds and runs the checks. A job that waits for others is begun after them, so that none waits for ever."""

    cache: Path
    pool: ThreadPoolExecutor
    begun: dict[tuple, Future] = field(default_factory=dict)
    linking: Lock = field(default_factory=Lock)

    def begin(self, job: Callable, *arguments: object) -> Future:
        """Begins a job, once."""
        key = (job.__name__, *arguments)
        if key not in self.begun:
            self.begun[key] = self.pool.submit(job, *arguments)
        return self.begun[key]

    def compile(self, source: Path, flags: tuple[str, ...], csrc: Path = ROOT / "csrc") -> Path:
        """The object file of a source, which finds its headers in `csrc`."""
        headers = [*csrc.rglob("*.h"), *csrc.rglob("*.cuh"), *csrc.rglob("*.def")]
        headers += (ROOT / "tests" / "sim").glob("cuda_sim.h" if csrc in source.parents else "*.h")
        if csrc not in source.parents:
            headers += (ROOT / "tests" / "native").glob("*.h")
        made_from = [path.read_text() for path in [source, *sorted(headers)]]
        command = ["g++", *COMMON, *flags, f"-I{csrc}", f"-I{ROOT / 'tests'}", f"-I{ROOT / 'tests' / 'sim'}"]
        # The .gcno beside an object has its name; gcov wants it unchanged.
        target = self.cache / f"{source.stem}-{digest([COMMON, flags, made_from])}.o"
        return made([*command, "-x", "c++", "-c", str(source)], target)

    def objects(self, build: str) -> dict[str, Future]:
        """Of each source of a build; large ones are begun first, since they take longest."""
        tables = "-DMINIDL_TABLES=TABLE(scalar) TABLE(cuda)"
        scalar = ("-O1", "-DMINIDL_ISA=scalar", "-DMINIDL_ISA_scalar", "-ffp-contract=off", "-fno-math-errno")
        jobs = [(source, ("-O1", *FLAGS[build])) for source in KERNELS]
        # One object of these serves every build.
        jobs += [(ROOT / "tests" / "native" / "kernels_main.cpp", ("-O0", tables))]
        jobs += [(ROOT / "tests" / "sim" / name, ("-O2",)) for name in ("engine.cpp", "switch_stack.cpp")]
        jobs += [(source, scalar) for source in sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
        jobs.sort(key=lambda job: -job[0].stat().st_size)
        return {source.name: self.begin(self.compile, source, flags) for source, flags in jobs}

    def run(
        self,
        build: str,
        arguments: tuple[int | str, ...],
        instead: dict[str, str] | None = None,
        races: str = "1",
    ) -> subprocess.CompletedProcess[str]:
        """Runs the program, with other objects for some sources."""
        found = {name: str(job.result()) for name, job in self.objects(build).items()} | (instead or {})
        with self.linking:  # two runs may want one program
            program = made(["g++", *FLAGS[build], *found.values()], self.cache / f"check-{digest(found)}")
        command = [str(program), *map(str, arguments)]
        environment = ENVIRONMENT | {"TSAN_OPTIONS": f"halt_on_error=1:exitcode=66:report_bugs={races}"}
        run = partial(
            subprocess.run, capture_output=True, text=True, env=environment, check=False, timeout=600
        )
        ran = run(command)
        # Old runtimes of ThreadSanitizer want less random addresses.
        if "unexpected memory mapping" in ran.stderr:
            ran = run(["setarch", "-R", *command])
        return ran

    def run_checks(self, name: str) -> int:
        """How many comparisons were made; none may fail."""
        ran = self.run(RUNS[name].build, RUNS[name].arguments)
        assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-6000:]
        return int(re.search(r"^(\d+) comparisons agree$", ran.stdout, re.MULTILINE).group(1))

    def run_bug(self, name: str) -> str:
        """What the program with a bug says."""
        bug = BUGS[name]
        csrc = self.cache / digest(name) / "csrc"
        shutil.copytree(ROOT / "csrc", csrc, dirs_exist_ok=True)
        path = csrc / "cuda" / bug.file
        text = path.read_text()
        assert text.count(bug.old) == 1, "the source has changed: plant the bug anew"
        path.write_text(text.replace(bug.old, bug.new))
        source = csrc / "cuda" / f"{bug.stem}.cu"
        instead = self.compile(source, ("-O1", *FLAGS[bug.build]), csrc)
        races = "1" if bug.found_by == "tsan" else "0"
        ran = self.run(bug.build, (1, 0, 1, bug.check), {source.name: str(instead)}, races)
        assert ran.returncode != 0, "nothing was found"
        return ran.stdout + ran.stderr

    def start(self, names: Iterable[str]) -> None:
        """Begins runs and bugs, after the objects of every build that they take."""
        known = RUNS | BUGS
        for build in FLAGS:
            if any(known[name].build == build for name in names):
                self.objects(build)
        for name in names:
            self.begin(self.run_bug if name in BUGS else self.run_checks, name)


@pytest.fixture(scope="module")
def simulator(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    chosen = [item.callspec.params["name"] for item in request.session.items if item.module is request.module]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        simulator = Simulator(Path(request.config.cache.mkdir("minidl-sim")), pool)
        simulator.start(chosen)
        yield simulator
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", RUNS)
def test_kernels_agree_with_the_scalar_table(simulator: Simulator, name: str) -> None:
    assert simulator.begin(simulator.run_checks, name).result() > RUNS[name].least


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(simulator: Simulator, name: str) -> None:
    said = simulator.begin(simulator.run_bug, name).result()
    assert BUGS[name].words in said, said[-4000:]


@pytest.mark.parametrize("name", ["ascending and descending"])
def test_line_coverage(simulator: Simulator, name: str, tmp_path: Path) -> None:
    """Of csrc/cuda, by that run."""
    gcov = shutil.which("gcov")
    if gcov is None:
        pytest.skip("no gcov")
    simulator.begin(simulator.run_checks, name).result()
    objects = [job.result() for source, job in simulator.objects("plain").items() if source.endswith(".cu")]
    data = [str(path.with_suffix(".gcda")) for path in objects if path.with_suffix(".gcda").exists()]
    listing = subprocess.run(
        [gcov, "--stdout", *data], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    executed: dict[tuple[str, int], bool] = {}
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
