"""Verify, then time: ours and its rivals, alternating in one process at equal threads and equal precision."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from time import perf_counter, perf_counter_ns
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .ceiling import Ceilings

# forward, dx and dw are timed without autograd; dx and dw are the products of a linear layer's backward pass.
Mode = Literal["forward", "dx", "dw", "backward", "full", "step", "fit"]
RECORDED: tuple[Mode, ...] = ("backward", "full", "step", "fit")
Tier = Literal["quick", "default", "full"]
TIERS: tuple[Tier, ...] = ("quick", "default", "full")

# Long against the clock's resolution, short against a scheduler's quantum: a stall spoils one block.
BLOCK_NS = 500_000
LONG_NS = 50_000_000  # a call this long owes nothing to what the cache held before it
MIN_ROUNDS, MAX_ROUNDS = 7, 2000
LONG_SECONDS, LONG_ROUNDS = 5.0, 3  # where rounds take that long, so few must do
SETTLED = 0.02  # relative spread of a ratio over the root of its rounds, about its standard error
# The project's rule for float32: at most twice torch's own error against float64, plus some last places.
ERROR_FACTOR, ERROR_FLOOR = 2.0, 16 * torch.finfo(torch.float32).eps
# The ratio that a row is to reach whose case demands nothing else. Autograd around next to no work is the one thing
# that costs us more than torch: our node is an autograd::Function, torch's are generated code.
GENERAL_BAR, TINY_BAR, TINY_BYTES = 0.95, 0.8, 16_000


def size_label(n: int) -> str:
    """1000 as 1e3; what is no power of ten as it stands."""
    power = len(str(n)) - 1
    return f"1e{power}" if power > 2 and n == 10**power else str(n)


class Library(NamedTuple):
    """All that a case may call, ours or torch's by the same names: no row can compare different work."""

    F: Any
    nn: Any
    optim: Any
    matmul: Callable[[Tensor, Tensor], Tensor]
    linear_relu: Callable[[Tensor, Tensor, Tensor], Tensor]
    conv2d_relu: Callable[..., Tensor]


def torch_library() -> Library:
    F = torch.nn.functional
    return Library(
        F,
        torch.nn,
        torch.optim,
        torch.matmul,
        lambda x, w, b: F.relu(F.linear(x, w, b)),
        lambda x, w, b, **options: F.relu(F.conv2d(x, w, b, **options)),
    )


def minidl_library() -> Library:
    from minidl import functional as F
    from minidl import nn, optim

    return Library(
        F,
        nn,
        optim,
        F.matmul,
        partial(F.linear, activation="relu"),
        partial(F.conv2d, activation="relu"),
    )


class Work(NamedTuple):
    """A built case: `run` is timed as it stands, `check` gives the tensors to hold against float64."""

    run: Callable[[], Any]
    check: Callable[[], Any]


Setup = Callable[..., Work]  # of a Library, a dtype, and the options of a rival


@dataclass(frozen=True)
class Case:
    """One piece of work. Every side, and the float64 oracle, is built by a call of the same `setup`.

    `bars` are the ratios that this project demands of itself: by rival, or against the "best" of them.
    `share_bars` are shares of the ceiling, by thread count.
    """

    stem: str
    op: str
    shape: str
    mode: Mode
    setup: Setup
    flops: float = 0.0
    bytes: float = 0.0  # the least traffic: each operand once
    tier: Tier = "default"
    bars: Mapping[str, float] = field(default_factory=dict)
    share_bars: Mapping[int, float] = field(default_factory=dict)
    why: str = ""  # why this case may lose, in a line: shown where it does
    rivals: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # more of torch: options of `setup`
    check: Setup | None = None  # smaller work of the same kind, where `setup`'s is too big for float64

    def __str__(self) -> str:
        return f"{self.stem} {self.op} {self.shape} {self.mode}"

    def bar(self, rival: str) -> float:
        """The ratio demanded against this rival. To beat the best is to beat each, so "best" is for all."""
        tiny = self.mode in ("backward", "full") and self.bytes < TINY_BYTES
        return self.bars.get(rival, self.bars.get("best", TINY_BAR if tiny else GENERAL_BAR))


class Environment(NamedTuple):
    cpu: str
    isa: str
    torch: str
    date: str


@dataclass(frozen=True)
class Row:
    """One line of a CSV: a case, at a thread count, against one rival. Times in microseconds a call."""

    stem: str
    op: str
    shape: str
    mode: str
    threads: int
    rival: str
    ours_us: float = float("nan")
    ours_p20: float = float("nan")
    ours_p80: float = float("nan")
    rival_us: float = float("nan")
    rival_p20: float = float("nan")
    rival_p80: float = float("nan")
    ratio: float = float("nan")  # the rival's time over ours: above 1, ours is faster
    ratio_p20: float = float("nan")
    ratio_p80: float = float("nan")
    rate: float = float("nan")
    unit: str = ""
    share: float = float("nan")  # of the ceiling named by `limit`
    limit: str = ""
    ours_error: float = float("nan")
    rival_error: float = float("nan")
    rounds: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    bar: float = 0.0
    share_bar: float = 0.0
    why: str = ""
    refused: str = ""  # why there is no time: ours is wrong, or raised
    cpu: str = ""
    isa: str = ""
    torch: str = ""
    date: str = ""

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.stem} {self.op} {self.shape} {self.mode}, {threads}, against {self.rival}"

    def misses(self, slack: float = 1.0) -> list[str]:
        """The bars, each times `slack`, that this row stays below. A refused row was not measured."""
        if self.refused:
            return []
        bar, share_bar = slack * self.bar, slack * self.share_bar
        found = []
        if not self.ratio >= bar:  # so that NaN misses
            found.append(f"ratio {self.ratio:.4g}, bar {bar:.4g}")
        if share_bar and not self.share >= share_bar:
            found.append(f"{self.share:.1%} of {self.limit}, bar {share_bar:.1%}")
        return found


class Source:
    """Random inputs drawn in float32 from one seed, then cast: all sides and the oracle see the same."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, grad: bool = False) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype).requires_grad_(grad)

    def uniform(self, *shape: int, grad: bool = False) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(self.dtype).requires_grad_(grad)

    def classes(self, *shape: int, count: int) -> Tensor:
        return torch.randint(count, shape, generator=self.generator)


def differentiable(mode: Mode, op: Callable[..., Tensor], inputs: Sequence[Tensor], source: Source) -> Work:
    """The work of one differentiable call: forward alone, backward alone with a random dy, or both."""
    forward = partial(op, *inputs)
    if mode == "forward":
        return Work(forward, forward)
    leaves = [t for t in inputs if t.requires_grad]
    y = forward()
    dy = torch.empty_like(y).copy_(source.normal(*y.shape))  # in y's memory order, as a network's would be
    backward = partial(torch.autograd.grad, y, leaves, dy, retain_graph=True)

    def full() -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(), leaves, dy)

    run = backward if mode == "backward" else full
    return Work(run, run)


# ---------------------------------------------------------------------------------------------- verify


class RefusedError(Exception):
    """Ours computes something else: its time means nothing."""


def tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def largest_error(got: Any, want: Any, dtype: torch.dtype) -> float:
    """The largest deviation from float64 relative to the largest value, over all tensors; NaN stays NaN."""
    got, want = tensors(got), tensors(want)
    if [(t.shape, t.dtype) for t in got] != [(t.shape, dtype) for t in want]:
        raise RefusedError(f"shapes or dtypes {[(tuple(t.shape), t.dtype) for t in got]}")
    errors = [0.0]
    for g, w in zip(got, want, strict=True):
        if w.numel():
            scale = w.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            errors.append(((g.double() - w).abs().max() / scale).item())
    return float(np.max(errors))  # unlike max(), keeps a NaN


def verify(sides: Mapping[str, Work], oracle: Work) -> dict[str, float]:
    """Every side's error; raises where ours is not as good as the first rival's allows."""
    want = [t.detach().clone() for t in tensors(oracle.check())]
    errors = {
        name: largest_error([t.detach() for t in tensors(work.check())], want, torch.float32)
        for name, work in sides.items()
    }
    allowed = ERROR_FACTOR * errors["torch"] + ERROR_FLOOR
    if not errors["ours"] <= allowed:
        raise RefusedError(f"error {errors['ours']:.1e} against float64, allowed {allowed:.1e}")
    return errors


# ------------------------------------------------------------------------------------------------ time


def block_ns(run: Callable[[], Any], loops: int) -> int:
    start = perf_counter_ns()
    run()  # untimed: brings this side's data back into the cache after the other side's block
    first = perf_counter_ns() - start
    if loops == 1 and first > LONG_NS:
        return first
    start = perf_counter_ns()
    for _ in repeat(None, loops):
        run()
    return perf_counter_ns() - start


def calibrate(run: Callable[[], Any]) -> int:
    """Calls that fill a block. The best of three, lest a stall pass a microsecond's work off as a block."""
    loops = 1
    while (elapsed := min(block_ns(run, loops) for _ in range(3))) < BLOCK_NS:
        loops = max(2 * loops, min(10 * loops, loops * BLOCK_NS // max(elapsed, 1)))
    return loops


def settled(times: Mapping[str, list[float]]) -> bool:
    """Whether every ratio's median is known well, by its spread alone: who wins plays no part."""
    ours = np.asarray(times["ours"])
    for other in times.values():
        median, p20, p80 = np.quantile(np.asarray(other) / ours, (0.5, 0.2, 0.8))
        if (p80 - p20) / math.sqrt(len(ours)) > SETTLED * median:
            return False
    return True


def measure(
    runs: Mapping[str, Callable[[], Any]], budget: float, patience: float = 1.0, seed: int = 0
) -> dict[str, np.ndarray]:
    """Microseconds a call of each side, one block a round, in a random order within each round.

    Not torch.utils.benchmark: its Timer measures one statement to the end before the next begins, so that a
    drifting clock or a busy neighbour lands on one side. Here a round's blocks are neighbours in time, and
    the ratio is taken inside a round. Where a busy machine blurs the ratio, up to `patience` times the budget
    is spent on more rounds.
    """
    loops = {name: calibrate(run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, rng = list(runs), random.Random(seed)
    gc.collect()
    gc.disable()
    try:
        start = perf_counter()
        for done in range(1, MAX_ROUNDS + 1):
            rng.shuffle(order)
            for name in order:
                times[name].append(block_ns(runs[name], loops[name]) / loops[name] / 1e3)
            spent = perf_counter() - start
            if done < (MIN_ROUNDS if spent < LONG_SECONDS else LONG_ROUNDS):
                continue
            if spent > budget and (spent > patience * budget or settled(times)):
                break
    finally:
        gc.enable()
    return {name: np.asarray(t) for name, t in times.items()}


def quantiles(values: np.ndarray, name: str, median: str) -> dict[str, Any]:
    keys = (median, f"{name}_p20", f"{name}_p80")
    return dict(zip(keys, map(float, np.quantile(values, (0.5, 0.2, 0.8))), strict=True))


# ----------------------------------------------------------------------------------------------- a case


def against_ceiling(case: Case, ceilings: Ceilings, microseconds: float) -> dict[str, Any]:
    """Our rate, and the share of what the machine allows that it is."""
    floor, limit = ceilings.floor(case.flops, case.bytes)
    if not limit:
        return {}
    amount, unit = (case.flops, "GFLOP/s") if limit == "FMA" else (case.bytes, "GB/s")
    seconds = microseconds / 1e6
    return {"rate": amount / seconds / 1e9, "unit": unit, "share": floor / seconds, "limit": limit}


class Effort(NamedTuple):
    """Seconds of timing a case, and how many times that where the machine is noisy."""

    budget: float
    patience: float = 1.0


def build(setup: Setup, case: Case, ours: Library) -> dict[str, Work]:
    """Ours, plain torch, and torch's variants."""
    theirs, f32 = torch_library(), torch.float32
    sides = {"ours": setup(ours, f32), "torch": setup(theirs, f32)}
    return sides | {name: setup(theirs, f32, **options) for name, options in case.rivals.items()}


def checked(case: Case, ours: Library) -> tuple[dict[str, Work], dict[str, float]]:
    """The sides to time, and their errors; raises where ours is wrong."""
    setup = case.check or case.setup
    sides = build(setup, case, ours)
    errors = verify(sides, setup(torch_library(), torch.float64))
    return build(case.setup, case, ours) if case.check else sides, errors


def bench(
    case: Case, ours: Library, ceilings: Ceilings, threads: int, effort: Effort, environment: Environment
) -> list[Row]:
    """Check and time one case at one thread count: a row a rival, or one row that says why it was refused."""
    torch.set_num_threads(threads)
    row = partial(
        Row,
        case.stem,
        case.op,
        case.shape,
        case.mode,
        threads,
        flops=case.flops,
        bytes=case.bytes,
        share_bar=case.share_bars.get(threads, 0.0),
        why=case.why,
        **environment._asdict(),
    )
    try:
        with torch.set_grad_enabled(case.mode in RECORDED):
            sides, errors = checked(case, ours)
            times = measure({name: work.run for name, work in sides.items()}, *effort)
    except Exception as reason:  # a case that raises is a finding to report, not the end of the run
        return [row(rival="torch", refused=f"{type(reason).__name__}: {reason}".splitlines()[0])]

    mine = times.pop("ours")
    common = quantiles(mine, "ours", "ours_us")
    common |= against_ceiling(case, ceilings, common["ours_us"])
    common |= {"ours_error": errors["ours"], "rounds": len(mine)}
    return [
        row(
            rival=name,
            bar=case.bar(name),
            **common,
            **quantiles(other, "rival", "rival_us"),
            **quantiles(other / mine, "ratio", "ratio"),
            rival_error=errors[name],
        )
        for name, other in times.items()
    ]
