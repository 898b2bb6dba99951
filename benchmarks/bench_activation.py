"""Activations, elementwise: forward and backward, from cache-resident to beyond."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from .harness import Case, Library, Mode, Source, Tier, Work, differentiable, size_label

OPS: dict[str, Callable[[Library], Callable]] = {
    "relu": lambda lib: lib.F.relu,
    "leaky_relu": lambda lib: lib.F.leaky_relu,
    "sigmoid": lambda lib: lib.F.sigmoid,
    "tanh": lambda lib: lib.F.tanh,
    "gelu": lambda lib: lib.F.gelu,
    "gelu_tanh": lambda lib: partial(lib.F.gelu, approximate="tanh"),
    "silu": lambda lib: lib.F.silu,
    "softplus": lambda lib: lib.F.softplus,
}
BYTES: dict[Mode, int] = {"forward": 8, "backward": 12, "full": 20}  # an element: x, y; dy, x or y, dx; both
MAIN = {"relu", "sigmoid", "tanh", "gelu"}
EXPONENTIAL = {"sigmoid", "tanh"}  # where arithmetic, not memory, sets the time, and ours is cheaper
TINY = 8
QUICK = {("relu", TINY), ("relu", 10**6), ("gelu", 10**6), ("silu", 10**3)}


def setup(lib: Library, dtype: torch.dtype, *, op: str, n: int, mode: Mode) -> Work:
    source = Source(dtype)
    return differentiable(mode, OPS[op](lib), [source.normal(n, grad=True)], source)


def tier(op: str, n: int) -> Tier:
    if n > 10**6:
        return "full"
    return "quick" if (op, n) in QUICK else "default"


def bars(op: str, n: int) -> dict[str, float]:
    if op not in MAIN or n == TINY:
        return {}
    return {"torch": 1.5 if op in EXPONENTIAL or n > 10**6 else 0.97}


def case(op: str, n: int, mode: Mode) -> Case:
    return Case(
        "activation",
        op,
        size_label(n),
        mode,
        partial(setup, op=op, n=n, mode=mode),
        bytes=BYTES[mode] * n,
        tier=tier(op, n),
        bars=bars(op, n),
        why="both move the same bytes, and the bytes take the time" if n >= 10**5 else "",
    )


def cases() -> Iterator[Case]:
    yield case("relu", TINY, "full")
    for op in OPS:
        for n in (10**3, 10**4, 10**5, 10**6, 10**7) if op in MAIN else (10**3, 10**6):
            yield case(op, n, "forward")
            yield case(op, n, "backward")
