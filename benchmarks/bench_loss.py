"""Elementwise losses with their mean: forward, backward, and both as a training step meets them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from .harness import Case, Library, Mode, Source, Work, differentiable

Draw = Callable[[Source, int], tuple[Tensor, Tensor]]


def real(source: Source, n: int) -> tuple[Tensor, Tensor]:
    return source.normal(n, grad=True), source.normal(n)


def probability(source: Source, n: int) -> tuple[Tensor, Tensor]:
    # Away from 0 and 1, where a float64 oracle and any float32 answer must part.
    x = source.uniform(n).mul_(0.98).add_(0.01)
    return x.requires_grad_(), source.classes(n, count=2).to(source.dtype)


def logit(source: Source, n: int) -> tuple[Tensor, Tensor]:
    return source.normal(n, grad=True), source.classes(n, count=2).to(source.dtype)


OPS: dict[str, Draw] = {
    "mse_loss": real,
    "l1_loss": real,
    "smooth_l1_loss": real,
    "huber_loss": real,
    "binary_cross_entropy": probability,
    "binary_cross_entropy_with_logits": logit,
}
MODES: tuple[tuple[Mode, int], ...] = (("forward", 8), ("backward", 12), ("full", 20))  # bytes an element
QUICK = {("mse_loss", 10**6), ("binary_cross_entropy_with_logits", 10**3)}


def setup(lib: Library, dtype: torch.dtype, *, op: str, n: int, mode: Mode) -> Work:
    source = Source(dtype)
    return differentiable(mode, getattr(lib.F, op), OPS[op](source, n), source)


def cases() -> Iterator[Case]:
    for op in OPS:
        for n in (10**3, 10**5, 10**6):
            for mode, nbytes in MODES:
                yield Case(
                    "loss",
                    op,
                    f"{n:.0e}".replace("e+0", "e"),
                    mode,
                    partial(setup, op=op, n=n, mode=mode),
                    bytes=nbytes * n,
                    tier="quick" if (op, n) in QUICK else "default",
                    bar=0.9 if n == 10**6 else 0,
                )
