"""Elementwise losses with their mean: forward, backward, and both as a training step meets them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from .harness import Case, Library, Mode, Source, Tier, Work, differentiable, size_label

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
BYTES: dict[Mode, int] = {"forward": 8, "backward": 12, "full": 20}  # an element
MAIN = ("mse_loss", "binary_cross_entropy_with_logits")
QUICK = {("mse_loss", 10**6), ("binary_cross_entropy_with_logits", 10**3)}


def setup(lib: Library, dtype: torch.dtype, *, op: str, n: int, mode: Mode) -> Work:
    source = Source(dtype)
    return differentiable(mode, getattr(lib.F, op), OPS[op](source, n), source)


def tier(op: str, n: int) -> Tier:
    if n > 10**6:
        return "full"
    return "quick" if (op, n) in QUICK else "default"


def case(op: str, n: int, mode: Mode) -> Case:
    barred = op in MAIN and mode == "full" and n in (10**5, 10**7)
    return Case(
        "loss",
        op,
        size_label(n),
        mode,
        partial(setup, op=op, n=n, mode=mode),
        bytes=BYTES[mode] * n,
        tier=tier(op, n),
        bars={"torch": 2.0} if barred else {},
    )


def cases() -> Iterator[Case]:
    for op in OPS:
        for n in (10**3, 10**5, 10**6) if op in MAIN else (10**3, 10**6):
            for mode in BYTES:
                yield case(op, n, mode)
    for op in MAIN:
        yield case(op, 10**7, "full")
