"""`minidl bench ladder`: check every rung against float64, time all of them in turn with torch, show the gains."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from math import inf, nan
from pathlib import Path

import torch
from minidl.benchmarks.ladder import _ladder
from torch import Tensor

from minidl import _C
from minidl import functional as F

from ..ceiling import fma_rate
from ..harness import Environment, RefusedError, Source, Work, measure, quantiles, verify
from ..report import digits, replace_section

RUNGS: tuple[str, ...] = tuple(_ladder.rungs)


@dataclass(frozen=True)
class Effort:
    sizes: tuple[int, ...]  # of square matrices
    budget: float  # seconds of timing for one size at one thread count, all sides together
    longest: float  # seconds: a rung that is expected to take longer for one product sits that size out


EFFORT = {
    "quick": Effort((64, 256, 512), 0.3, 0.1),
    "default": Effort((64, 128, 256, 512, 1024), 2.0, 1.0),
    "full": Effort((64, 128, 256, 512, 1024, 2048), 4.0, 4.0),
}


@dataclass(frozen=True)
class Step:
    """One line of the CSV: a rung, torch or minidl, at one size and thread count. Microseconds a product."""

    rung: str
    threads: int
    size: int
    us: float = nan
    us_p20: float = nan
    us_p80: float = nan
    gflops: float = nan
    peak: float = nan  # GFLOP/s of the FMA loop at this thread count
    error: float = nan  # against float64, relative to the largest element
    refused: str = ""
    cpu: str = ""
    isa: str = ""
    torch: str = ""
    date: str = ""


# ------------------------------------------------------------------------------------------- measuring


def product(name: str, a: Tensor, b: Tensor) -> Work:
    """A rung, or "torch", or "minidl", on two float32 matrices."""
    if name in RUNGS:
        run = partial(_ladder.matmul, name, _C.isa(), a.numpy(), b.numpy())
    else:
        run = partial({"torch": torch.matmul, "minidl": F.matmul}[name], a, b)
    return Work(run, lambda: torch.as_tensor(run()))


def lines(threads: int) -> list[tuple[str, int]]:
    """Who is measured, at how many threads, in the order of the table: the ladder, torch, and minidl on top."""
    counts = sorted({1, threads})
    rungs = [(rung, threads if rung == "threaded" else 1) for rung in RUNGS]
    return rungs + [(name, count) for name in ("torch", "minidl") for count in counts]


def climb(effort: Effort, threads: int, where: Environment) -> Iterator[Step]:
    """All lines at all sizes; a wrong product has a step that says so, and no time."""
    peaks: dict[int, float] = {}
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        peaks[count] = fma_rate(_C.fma_loop) / 1e9
    rates: dict[tuple[str, int], float] = {}  # the best at the size before: a busy machine excludes nobody
    for size in effort.sizes:
        source, flops = Source(torch.float32), 2.0 * size**3
        a, b = source.normal(size, size), source.normal(size, size)
        oracle = Work(lambda: None, partial(torch.matmul, a.double(), b.double()))
        for count, peak in peaks.items():
            torch.set_num_threads(count)
            step = partial(Step, threads=count, size=size, peak=peak, **where._asdict())
            works, errors = {}, {}
            for name, own in lines(threads):
                if own != count or flops > effort.longest * rates.get((name, count), inf):
                    continue
                work = product(name, a, b)
                try:
                    errors[name] = verify({"ours": work, "torch": product("torch", a, b)}, oracle)["ours"]
                    works[name] = work
                except RefusedError as reason:
                    yield step(name, refused=str(reason))
            for name, times in measure({n: w.run for n, w in works.items()}, effort.budget).items():
                spread = quantiles(times, "us", "us")
                rates[name, count] = flops / times.min() * 1e6
                yield step(name, gflops=flops / spread["us"] / 1e3, error=errors[name], **spread)


# ------------------------------------------------------------------------------------------- reporting


def write_csv(steps: Sequence[Step], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(f.name for f in fields(Step))
        for step in steps:
            writer.writerow(f"{v:.6g}" if isinstance(v, float) else v for v in asdict(step).values())


def gain(below: dict[int, Step], above: dict[int, Step]) -> str:
    """How many times faster `above` is, at the largest size that both have a time for."""
    both = [size for size in below if size in above and not below[size].refused and not above[size].refused]
    return f"{above[max(both)].gflops / below[max(both)].gflops:.1f}x at {max(both)}" if both else ""


def table(steps: Sequence[Step], threads: int) -> str:
    """GFLOP/s by rung and size, the gain over the rung below, and the share of what the machine can do."""
    sizes = sorted({step.size for step in steps})
    head = ["rung", "threads", *map(str, sizes), "over the rung below", "share of FMA peak"]
    rows = [f"| {' | '.join(head)} |", f"|---{'|--:' * (len(head) - 1)}|"]
    below: dict[int, Step] = {}
    for name, count in lines(threads):
        own = {step.size: step for step in steps if (step.rung, step.threads) == (name, count)}
        cells = [("refused" if own[s].refused else digits(own[s].gflops)) if s in own else "" for s in sizes]
        timed = [step for step in own.values() if not step.refused]
        share = f"{timed[-1].gflops / timed[-1].peak:.0%} at {timed[-1].size}" if timed else ""
        cells += [gain(below, own) if name in RUNGS else "", share]
        rows.append(f"| {' | '.join([name, str(count), *cells])} |")
        below = own
    return "\n".join(rows)


def section(steps: Sequence[Step], threads: int, link: str) -> str:
    """Table, plot and where they were taken, for table.md and for a README."""
    first = steps[0]
    peaks = {step.threads: f"{digits(step.peak)} GFLOP/s at {step.threads} thread(s)" for step in steps}
    return "\n\n".join(
        [
            f"{first.cpu}, {first.isa}, torch {first.torch}, {first.date}. FMA peak: {', '.join(peaks.values())}.",
            table(steps, threads),
            "GFLOP/s for square float32 matrices: the median over rounds in which all took turns in one process, "
            "each checked against float64 before. Nothing where a product would take too long.",
            f"![GFLOP/s over size]({link}ladder.png)",
        ]
    )


def publish(steps: Sequence[Step], threads: int, out: Path, readme: Path | None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_csv(steps, out / "ladder.csv")
    (out / "table.md").write_text(f"# The ladder\n\n{section(steps, threads, '')}\n", encoding="utf-8")
    try:
        from .plot import draw
    except ImportError:
        print("no plot: it needs matplotlib (pip install 'minidl[lessons]')", file=sys.stderr)
    else:
        draw(steps, out / "ladder.png")
    if readme:
        link = Path(os.path.relpath(out, readme.parent)).as_posix() + "/"
        text = readme.read_text(encoding="utf-8")
        readme.write_text(replace_section(text, section(steps, threads, link)), encoding="utf-8")


def main(tier: str, threads: int, where: Environment, out: Path, readme: Path | None) -> int:
    """Measure, write `out`/ladder.csv, table.md and ladder.png, print the table. 1 if a rung is wrong, else 0."""
    before = torch.get_num_threads()
    steps = []
    try:
        for step in climb(EFFORT[tier], threads, where):
            said = f"REFUSED {step.refused}" if step.refused else f"{digits(step.gflops):>6} GFLOP/s"
            print(f"{step.rung:<10} {step.size:>5}  {step.threads} thread(s)  {said}", flush=True)
            steps.append(step)
    finally:
        torch.set_num_threads(before)
    publish(steps, threads, out, readme)
    print(f"\n{table(steps, threads)}\n\nin {out}: ladder.csv, table.md, ladder.png")
    return 1 if any(step.refused for step in steps) else 0
