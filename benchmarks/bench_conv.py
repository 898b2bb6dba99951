"""Convolutions: the course's classifiers, ResNet's layers, a group a channel, a transposed one; both memory orders."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from .harness import Case, Library, Mode, Source, Tier, Work, differentiable


class Layer(NamedTuple):
    n: int
    channels: int
    side: int
    out: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    op: str = "conv2d"

    def __str__(self) -> str:
        kernel = f" {self.kernel}x{self.kernel}" + (f"/{self.stride}" if self.stride > 1 else "")
        groups = f" groups {self.groups}" if self.groups > 1 else ""
        return f"{self.n}x{self.channels}x{self.side}x{self.side}->{self.out}{kernel}{groups}"

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def out_side(self) -> int:
        if self.op == "conv_transpose2d":
            return (self.side - 1) * self.stride - 2 * self.padding + self.kernel
        return (self.side + 2 * self.padding - self.kernel) // self.stride + 1


# What the bars are set for, and what else a network has: strides, 1x1, 5x5, deep and small, depthwise, odd.
MAIN = (Layer(64, 1, 28, 32), Layer(64, 32, 14, 64), Layer(64, 3, 32, 64), Layer(16, 64, 56, 64))
OTHERS = (
    Layer(16, 64, 56, 128, stride=2),
    Layer(16, 64, 56, 128, kernel=1, stride=2),
    Layer(16, 64, 28, 64, kernel=1),
    Layer(8, 3, 64, 64, kernel=7, stride=2),
    Layer(8, 512, 2, 512),
    Layer(64, 6, 14, 16, kernel=5),
    Layer(16, 64, 28, 64, groups=64),
    Layer(7, 13, 17, 11),
    Layer(16, 64, 14, 32, kernel=4, stride=2, op="conv_transpose2d"),
)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BARS: dict[tuple[str, Mode], float] = {
    ("contiguous", "forward"): 1.05,
    ("channels_last", "forward"): 0.95,
    ("contiguous", "full"): 0.95,
    ("channels_last", "full"): 0.95,
}
QUICK = {(MAIN[0], "conv2d", "contiguous", "full")}  # oneDNN's pace for the others is another on each machine


def setup(lib: Library, dtype: torch.dtype, *, layer: Layer, op: str, memory_format: str, mode: Mode) -> Work:
    source = Source(dtype)
    form = FORMATS[memory_format]

    def operand(*shape: int, grad: bool) -> Tensor:
        return source.normal(*shape).contiguous(memory_format=form).requires_grad_(grad)

    # A picture, unlike a feature map, needs no gradient.
    x = operand(layer.n, layer.channels, layer.side, layer.side, grad=layer.channels > 3)
    per_group = layer.channels // layer.groups, layer.out
    shape = per_group[::-1] if layer.op == "conv2d" else per_group
    w = operand(*shape, layer.kernel, layer.kernel, grad=True)
    b = source.normal(layer.out)
    if (
        op == "conv2d_relu"
    ):  # half of the channels on, half off: no element near the kink, where rounding decides
        b = b + b.sign() * 8 * (layer.channels * layer.kernel**2) ** 0.5
    options = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
    function = lib.conv2d_relu if op == "conv2d_relu" else getattr(lib.F, layer.op)
    return differentiable(mode, partial(function, **options), [x, w, b.requires_grad_()], source)


def case(layer: Layer, op: str, memory_format: str, mode: Mode) -> Case:
    pixels = layer.side if layer.op == "conv_transpose2d" else layer.out_side
    product_flops = 2.0 * layer.n * pixels**2 * layer.out * layer.channels / layer.groups * layer.kernel**2
    products = {"forward": 1, "full": 3 if layer.channels > 3 else 2}[mode]
    floats = layer.n * (layer.channels * layer.side**2 + layer.out * layer.out_side**2)
    tier: Tier = "default" if layer in MAIN else "full"
    if (layer, op, memory_format, mode) in QUICK:
        tier = "quick"
    bars = (
        {"torch": 1.15}
        if op == "conv2d_relu"
        else {"torch": BARS[memory_format, mode]}
        if layer in MAIN
        else {}
    )
    return Case(
        "conv",
        f"{op}, {memory_format}",
        str(layer),
        mode,
        partial(setup, layer=layer, op=op, memory_format=memory_format, mode=mode),
        flops=product_flops * products,
        bytes=4.0 * floats * products,
        tier=tier,
        bars=bars,
        why="oneDNN runs at 80-90 % of the FMA rate here",
    )


def cases() -> Iterator[Case]:
    modes: tuple[Mode, ...] = ("forward", "full")
    for layer, memory_format, mode in product(MAIN + OTHERS, FORMATS, modes):
        yield case(layer, layer.op, memory_format, mode)
    for layer, memory_format, mode in product(MAIN, FORMATS, modes):
        yield case(layer, "conv2d_relu", memory_format, mode)
