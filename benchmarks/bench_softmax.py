"""Softmax, log_softmax, nll and cross entropy, from ten classes to a language model's vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

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


def setup(lib: Library, dtype: torch.dtype, *, op: str, shape: tuple[int, int], mode: Mode) -> Work:
    source = Source(dtype)
    logits = source.normal(*shape, grad=True)
    if op in ("softmax", "log_softmax"):
        return differentiable(mode, partial(getattr(lib.F, op), dim=1), [logits], source)
    target = source.classes(shape[0], count=shape[1])
    return differentiable(mode, getattr(lib.F, op), [logits, target], source)


def cases() -> Iterator[Case]:
    for op, modes in PASSES.items():
        for (n, c), tier in SHAPES.items():
            for mode, passes in modes.items():
                yield Case(
                    "softmax",
                    op,
                    f"{n}x{c}",
                    mode,
                    partial(setup, op=op, shape=(n, c), mode=mode),
                    bytes=4 * n * c * passes,
                    tier=tier if op == "cross_entropy" or tier != "quick" else "default",
                )
