"""Dropout: a random word for each element, forward, and once more backward, where torch keeps a mask."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from .harness import Case, Library, Mode, Source, Work, differentiable, size_label

P = 0.5
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "dropout": ((64, 128), (64, 9216), (10**6,)),
    "dropout2d": ((64, 64, 14, 14),),
}
BYTES: dict[Mode, int] = {"forward": 8, "backward": 8, "full": 16}  # an element: x, y; dy, dx; both
BAR = 1.2


def setup(lib: Library, dtype: torch.dtype, *, op: str, shape: tuple[int, ...], mode: Mode) -> Work:
    source = Source(dtype)
    x = source.normal(*shape, grad=True)
    run = differentiable(mode, partial(getattr(lib.F, op), p=P), [x], source).run
    again = Source(dtype)  # which gives x, and then the dy of `differentiable`
    inputs = [again.normal(*shape) for _ in range(2)]

    def check() -> Tensor:
        """What is dropped is each side's own; the others are held against their value, as they stand in for all."""
        y, of = (run(), inputs[0]) if mode == "forward" else (run()[0], inputs[1])
        return torch.where(y == 0, of / (1 - P), y)

    return Work(run, check)


def cases() -> Iterator[Case]:
    for op, shapes in SHAPES.items():
        for shape in shapes:
            n = torch.Size(shape).numel()
            for mode in BYTES:
                yield Case(
                    "dropout",
                    op,
                    size_label(n) if len(shape) == 1 else "x".join(map(str, shape)),
                    mode,
                    partial(setup, op=op, shape=shape, mode=mode),
                    bytes=BYTES[mode] * n,
                    tier="quick" if shape == (64, 9216) and mode == "full" else "default",
                    bars={"torch": BAR} if mode == "full" else {},
                    why="torch kept the mask, which is made again here" if mode == "backward" else "",
                )
