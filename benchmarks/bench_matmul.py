"""Matrix products: matmul, linear, and linear with a fused relu. Big, small, odd and batched."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch

from .harness import Case, Library, Mode, Source, Tier, Work, differentiable

Shape = tuple[int, ...]  # (batch..., m, k, n)


class Group(NamedTuple):
    """Cases of the same kind, by what is demanded of them."""

    op: str
    shapes: tuple[Shape, ...]
    modes: tuple[Mode, ...]
    bar: float | None = None
    at_peak: bool = False


def square(n: int) -> Shape:
    return n, n, n


ODD = (127, 131, 129)
PEAK_SHARES = {1: 0.88, 2: 0.8}  # of the FMA rate, by threads
MNIST = ((64, 784, 128), (64, 128, 64), (64, 64, 10))
GROUPS = (
    Group("matmul", (square(64), square(128)), ("forward",)),
    Group("matmul", tuple(square(2**i) for i in range(8, 12)), ("forward",), bar=1.1, at_peak=True),
    Group("matmul", (square(512), square(1024)), ("full",)),
    Group("matmul", (ODD, (32, 64, 64, 64)), ("forward", "backward", "full")),
    Group("linear", MNIST, ("forward", "dx", "dw"), bar=1.15),
    Group("linear", ((1, 4096, 4096),), ("forward", "dx", "dw"), bar=1.0),
    Group("linear", MNIST, ("full",)),
    Group("linear", (ODD, square(512)), ("forward", "backward", "full")),
    Group("linear", ((256, 4096, 1024),), ("forward", "full")),
    Group("linear_relu", ((64, 784, 128), (32, 1024, 1024), (256, 4096, 1024)), ("forward", "full"), bar=1.2),
    # Calls alone: without autograd, and with all of it.
    Group("linear", ((4, 2, 4),), ("forward",), bar=2.0),
    Group("linear", ((4, 2, 4),), ("full",)),
)
# None whose bar depends on how fast torch's library is on a machine: quick runs on any.
QUICK: set[tuple[str, Shape, Mode]] = {("linear", (4, 2, 4), "full"), ("linear", (64, 784, 128), "full")}
PRODUCTS: dict[Mode, int] = {"forward": 1, "dx": 1, "dw": 1, "backward": 2, "full": 3}


def setup(lib: Library, dtype: torch.dtype, *, op: str, shape: Shape, mode: Mode) -> Work:
    source = Source(dtype)
    *batch, m, k, n = shape
    if mode in ("dx", "dw"):
        dy = source.normal(m, n)
        factors = (dy, source.normal(n, k)) if mode == "dx" else (dy.t(), source.normal(m, k))
        run = partial(lib.matmul, *factors)
        return Work(run, run)
    x = source.normal(*batch, m, k, grad=True)
    if op == "matmul":
        return differentiable(mode, lib.matmul, [x, source.normal(*batch, k, n, grad=True)], source)
    w, b = source.normal(n, k, grad=True), source.normal(n)
    if op == "linear":
        return differentiable(mode, lib.F.linear, [x, w, b.requires_grad_()], source)
    # Half of the units on, half off, by a wide margin: of many sums near 0 rounding turns some over, in torch as well,
    # and with them whole elements of the gradients.
    b = (b + b.sign() * 6 * k**0.5).requires_grad_()
    return differentiable(mode, lib.linear_relu, [x, w, b], source)


def tier(op: str, shape: Shape, mode: Mode, flops: float) -> Tier:
    if (op, shape, mode) in QUICK:
        return "quick"
    return "full" if flops > 2e9 and shape != square(1024) else "default"


def why(shape: Shape, mode: Mode) -> str:
    if shape == ODD:
        return "the one column beside two panels takes a pass of its own"
    if shape[0] == 1:
        return "W is read once, at the pace of memory, by both"
    if mode in ("dx", "dw"):
        return "k is short: after every 128 or 64 steps a tile is written out"
    return "torch's product is MKL's, tuned for this processor; both wait for L2 and L3"


def case(group: Group, shape: Shape, mode: Mode) -> Case:
    *batch, m, k, n = shape
    count = batch[0] if batch else 1
    flops = 2.0 * count * m * k * n * PRODUCTS[mode]
    floats = m * k + k * n + m * n  # of one product; x and w, or dx and dw, once more where both are computed
    floats += m * k + k * n if mode in ("backward", "full") else 0
    plain = group.op == "matmul" or m == k == n
    return Case(
        "matmul",
        group.op,
        "x".join(map(str, shape)) if plain else f"{m}x{k}->{n}",
        mode,
        partial(setup, op=group.op, shape=shape, mode=mode),
        flops=flops,
        bytes=4.0 * count * floats,
        tier=tier(group.op, shape, mode, flops),
        bars={} if group.bar is None else {"torch": group.bar},
        share_bars=PEAK_SHARES if group.at_peak else {},
        why=why(shape, mode),
    )


def cases() -> Iterator[Case]:
    for group in GROUPS:
        for shape in group.shapes:
            for mode in group.modes:
                yield case(group, shape, mode)
