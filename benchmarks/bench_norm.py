"""Normalisations as they stand in models: batch norm with the ReLU after it, layer norm and group norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from .harness import Case, Library, Mode, Source, Tier, Work

Shape = tuple[int, ...]
FORMATS = {"": torch.contiguous_format, " channels_last": torch.channels_last}
# Passes over the tensor: x twice in training, as a mean is known at its end, and y; then dy and x twice, and dx.
PASSES: dict[Mode, int] = {"forward": 3, "full": 8}
BATCHES: dict[Shape, Tier] = {
    (64, 128): "quick",
    (64, 32, 28, 28): "quick",
    (64, 64, 14, 14): "default",
    (16, 64, 56, 56): "default",
}
LAYERS: dict[Shape, Tier] = {(512, 768): "quick", (8, 1024, 1024): "default"}
GROUPS: dict[Shape, Tier] = {(16, 64, 56, 56): "default"}


def batch_norm_relu(nn: Any, shape: Shape) -> Any:
    norm = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    net = nn.Sequential(norm(shape[1]), nn.ReLU())
    with (
        torch.no_grad()
    ):  # far from 0, for a ReLU that rounding turns over is a whole element of the gradients
        net[0].bias.copy_(torch.arange(shape[1]) % 2 * 16 - 8)
    return net


NETS: dict[str, Callable[[Any, Shape], Any]] = {
    "batch_norm_relu": batch_norm_relu,
    "layer_norm": lambda nn, shape: nn.LayerNorm(shape[-1]),
    "group_norm": lambda nn, shape: nn.GroupNorm(32, shape[1]),
}


def setup(
    lib: Library, dtype: torch.dtype, *, op: str, shape: Shape, memory: torch.memory_format, mode: Mode
) -> Work:
    source = Source(dtype)
    net = NETS[op](lib.nn, shape).to(dtype)
    x = source.normal(*shape).contiguous(memory_format=memory).requires_grad_()
    dy = source.normal(*shape).contiguous(memory_format=memory)
    leaves = [x, *net.parameters()]

    def full() -> tuple[Tensor, ...]:
        return torch.autograd.grad(net(x), leaves, dy)

    run = partial(net, x) if mode == "forward" else full
    return Work(run, run)


def case(op: str, shape: Shape, form: str, mode: Mode, tier: Tier) -> Case:
    return Case(
        "norm",
        op,
        "x".join(map(str, shape)) + form,
        mode,
        partial(setup, op=op, shape=shape, memory=FORMATS[form], mode=mode),
        bytes=4.0 * prod(shape) * PASSES[mode],
        tier=tier,
        bars={"torch": 1.2} if mode == "full" else {},
    )


def cases() -> Iterator[Case]:
    for shape, tier in BATCHES.items():
        for form in FORMATS if len(shape) == 4 else ("",):
            yield case("batch_norm_relu", shape, form, "full", tier)
            yield case("batch_norm_relu", shape, form, "forward", "default")
    for op, shapes in (("layer_norm", LAYERS), ("group_norm", GROUPS)):
        for shape, tier in shapes.items():
            yield case(op, shape, "", "full", tier)
            yield case(op, shape, "", "forward", "default")
