"""Softmax, log_softmax, nll and cross entropy, from ten classes to a language model's vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch

from .harness import Case, Library, Mode, Source, Tier, Work, differentiable

SHAPES: dict[tuple[int, int], Tier] = {
    (64, 10): "quick",
    (256, 1000): "quick",
    (64, 32768): "default",
    (512, 50257): "full",
}
# Passes over the (n, c) matrix that cannot be avoided: logits in, result out.
PASSES: dict[str, dict[Mode, int]] = {
    "softmax": {"forward": 2, "backward": 3},
    "log_softmax": {"forward": 2, "backward": 3},
    "nll_loss": {"forward": 0, "backward": 1},
    "cross_entropy": {"forward": 1, "backward": 2, "full": 3},
}
# Of cross entropy's full pass, which neither writes probabilities nor reads them back.
FULL_BARS = {(64, 10): 1.7, (256, 1000): 2.3, (64, 32768): 2.3, (512, 50257): 5.0}
QUICK = {("cross_entropy", "forward"), ("cross_entropy", "backward")}  # not full: a bar with little to spare


def setup(lib: Library, dtype: torch.dtype, *, op: str, shape: tuple[int, int], mode: Mode) -> Work:
    source = Source(dtype)
    logits = source.normal(*shape, grad=True)
    if op in ("softmax", "log_softmax"):
        return differentiable(mode, partial(getattr(lib.F, op), dim=1), [logits], source)
    target = source.classes(shape[0], count=shape[1])
    return differentiable(mode, getattr(lib.F, op), [logits, target], source)


def tier(op: str, shape: tuple[int, int], mode: Mode) -> Tier:
    return "default" if SHAPES[shape] == "quick" and (op, mode) not in QUICK else SHAPES[shape]


def cases() -> Iterator[Case]:
    for op, modes in PASSES.items():
        for shape, (mode, passes) in product(SHAPES, modes.items()):
            if shape == (512, 50257) and op != "cross_entropy":
                continue  # seconds each, and the row of 32768 classes shows the same
            n, c = shape
            yield Case(
                "softmax",
                op,
                f"{n}x{c}",
                mode,
                partial(setup, op=op, shape=shape, mode=mode),
                bytes=4 * n * c * passes,
                tier=tier(op, shape, mode),
                bars={"torch": FULL_BARS[shape]} if mode == "full" else {},
                why="the gradient is zero but for one element a row: memory takes the time"
                if op == "nll_loss"
                else "",
            )
