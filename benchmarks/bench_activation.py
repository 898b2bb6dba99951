"""Activations, elementwise: forward and backward, from cache-resident to beyond."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from .harness import Case, Library, Mode, Source, Tier, Work, differentiable

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
# Bytes an element: x and y; then dy, x or y, and dx.
MODES: tuple[tuple[Mode, int], ...] = (("forward", 8), ("backward", 12))
QUICK = {("relu", 10**6), ("gelu", 10**6), ("sigmoid", 10**3)}


def setup(lib: Library, dtype: torch.dtype, *, op: str, n: int, mode: Mode) -> Work:
    source = Source(dtype)
    return differentiable(mode, OPS[op](lib), [source.normal(n, grad=True)], source)


def tier(op: str, n: int) -> Tier:
    if n > 10**6:
        return "full"
    return "quick" if (op, n) in QUICK else "default"


def cases() -> Iterator[Case]:
    for op in OPS:
        for n in (10**3, 10**5, 10**6, 10**7):
            for mode, nbytes in MODES:
                yield Case(
                    "activation",
                    op,
                    f"{n:.0e}".replace("e+0", "e"),
                    mode,
                    partial(setup, op=op, n=n, mode=mode),
                    bytes=nbytes * n,
                    tier=tier(op, n),
                    bar=0.9 if n == 10**6 else 0,
                )
