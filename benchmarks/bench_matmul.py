"""Matrix products: matmul, linear, and linear with a fused relu. Big, small, odd and batched."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from .harness import Case, Library, Mode, Source, Tier, Work, differentiable

# (batch..., m, k, n) to tier. A bar stands where the project demands to be level with torch's library.
MATMUL: dict[tuple[int, ...], Tier] = {
    (128, 128, 128): "full",
    (256, 256, 256): "full",
    (512, 512, 512): "quick",
    (1024, 1024, 1024): "default",
    (2048, 2048, 2048): "full",
    (127, 131, 129): "default",
    (32, 64, 64, 64): "default",
}
LINEAR: dict[tuple[int, ...], Tier] = {
    (4, 2, 4): "quick",
    (64, 64, 10): "default",
    (64, 784, 128): "quick",
    (1, 4096, 1024): "default",
    (256, 4096, 1024): "full",
    (127, 131, 129): "default",
    (512, 512, 512): "default",
    (1024, 1024, 1024): "default",
}
BARRED = {(512, 512, 512), (1024, 1024, 1024), (64, 784, 128)}
MODES: tuple[Mode, ...] = ("forward", "backward", "full")


def setup(lib: Library, dtype: torch.dtype, *, op: str, shape: tuple[int, ...], mode: Mode) -> Work:
    source = Source(dtype)
    *batch, m, k, n = shape
    x = source.normal(*batch, m, k, grad=True)
    if op == "matmul":
        return differentiable(mode, lib.matmul, [x, source.normal(*batch, k, n, grad=True)], source)
    w, b = source.normal(n, k, grad=True), source.normal(n, grad=True)
    return differentiable(mode, lib.linear_relu if op == "linear_relu" else lib.F.linear, [x, w, b], source)


def case(op: str, shape: tuple[int, ...], mode: Mode, tier: Tier) -> Case:
    *batch, m, k, n = shape
    count = batch[0] if batch else 1
    products = {"forward": 1, "backward": 2, "full": 3}[mode]
    floats = {"forward": 0, "backward": m * k + k * n, "full": m * k + k * n}[mode] + m * k + k * n + m * n
    label = "x".join(map(str, shape)) if op == "matmul" or m == k == n else f"{m}x{k}->{n}"
    return Case(
        "matmul",
        op,
        label,
        mode,
        partial(setup, op=op, shape=shape, mode=mode),
        flops=2.0 * count * m * k * n * products,
        bytes=4.0 * count * floats,
        tier=tier,
        bar=0.9 if shape in BARRED else 0,
    )


def cases() -> Iterator[Case]:
    for op, shapes in (("matmul", MATMUL), ("linear", LINEAR), ("linear_relu", LINEAR)):
        for shape, tier in shapes.items():
            for mode in MODES:
                quick = mode != "backward" and op != "linear_relu"
                yield case(op, shape, mode, "default" if tier == "quick" and not quick else tier)
