"""Pooling in both memory formats: the sizes of small convolutional networks, and awkward ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch

from .harness import Case, Library, Mode, Source, Work, differentiable

Shape = tuple[int, int, int, int]
ORDERS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# op -> function, its arguments after the input, and shapes
OPS: dict[str, tuple[str, tuple[Any, ...], tuple[Shape, ...]]] = {
    "max_pool2d k2": ("max_pool2d", (2,), ((64, 32, 28, 28), (64, 64, 14, 14), (8, 3, 31, 33))),
    "max_pool2d k3 s2 p1": ("max_pool2d", (3, 2, 1), ((16, 64, 56, 56),)),
    "max_pool2d k3": ("max_pool2d", (3,), ((16, 64, 30, 30),)),
    "avg_pool2d k2": ("avg_pool2d", (2,), ((64, 32, 28, 28), (64, 64, 14, 14))),
    "avg_pool2d k3 s2 p1": ("avg_pool2d", (3, 2, 1), ((16, 64, 56, 56),)),
    "adaptive_avg_pool2d 1": ("adaptive_avg_pool2d", (1,), ((64, 512, 7, 7),)),
    "adaptive_avg_pool2d 5": ("adaptive_avg_pool2d", (5,), ((64, 64, 14, 14),)),
    "adaptive_max_pool2d 1": ("adaptive_max_pool2d", (1,), ((64, 512, 7, 7),)),
}
MODES: tuple[Mode, ...] = ("forward", "backward", "full")
MOVES = {"forward": 1, "backward": 1, "full": 2}  # times the input, which is read or its gradient written
QUICK = "max_pool2d k2", (64, 64, 14, 14)
BAR = 1.2


def setup(
    lib: Library,
    dtype: torch.dtype,
    *,
    function: str,
    args: tuple[Any, ...],
    shape: Shape,
    order: torch.memory_format,
    mode: Mode,
) -> Work:
    source = Source(dtype)
    x = source.normal(*shape).contiguous(memory_format=order).requires_grad_()
    pool: Callable = getattr(lib.F, function)
    return differentiable(mode, lambda t: pool(t, *args), [x], source)


def cases() -> Iterator[Case]:
    for (op, (function, args, shapes)), (name, order), mode in product(OPS.items(), ORDERS.items(), MODES):
        for shape in shapes:
            n, c, h, w = shape
            yield Case(
                "pool",
                op,
                f"{n}x{c}x{h}x{w} {name}",
                mode,
                partial(setup, function=function, args=args, shape=shape, order=order, mode=mode),
                bytes=4 * n * c * h * w * MOVES[mode],
                tier="quick" if (op, shape) == QUICK and mode == "full" else "default",
                bars={"torch": BAR},
            )
