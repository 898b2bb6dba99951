"""lower.py for losses and softmax."""

from __future__ import annotations

import math
from typing import Any

import torch

from minidl.step.lower import Lowering, UnloweredError, at, lowers
from minidl.step.values import Value

KINDS = ("mse", "l1", "smooth_l1", "huber", "bce", "bce_with_logits")  # numbered as LossKind


def loss_params(kind: str, reduction: int, beta: float) -> tuple[int, int, float]:
    if kind == "smooth_l1" and beta == 0:
        kind = "l1"
    return KINDS.index(kind), reduction, beta


def operands(
    p: Lowering, input: Value, target: Value, weight: Value | None, pos_weight: Value | None
) -> tuple[Value, Any, Any, Any]:
    """input in one block, and the addresses of the others in its order."""
    x = input if input.is_dense else p.contiguous(input)

    def like_x(v: Value | None) -> Any:
        if v is None:
            return None
        lead = len(x.shape) - len(v.shape)
        stride = (0,) * lead + tuple(0 if n == 1 else s for n, s in zip(v.shape, v.stride, strict=True))
        return p.ordered(v.viewed(x.shape, stride), x.stride).address

    return x, p.ordered(target, x.stride).address, like_x(weight), like_x(pos_weight)


@lowers("minidl.loss")
def loss(
    p: Lowering,
    input: Value,
    target: Value,
    kind: str,
    reduction: int,
    weight: Value | None,
    pos_weight: Value | None,
    beta: float,
) -> None:
    x, t, w, pos = operands(p, input, target, weight, pos_weight)
    if kind == "bce":
        p.call("check_unit_interval", x.address, x.numel, False)
        p.call("check_unit_interval", t, x.numel, True)
    y = p.output()
    p.call("loss_forward", y.address, x.address, t, w, pos, x.numel, loss_params(kind, reduction, beta))


@lowers("minidl.loss_backward")
def loss_backward(
    p: Lowering,
    dy: Value,
    input: Value,
    target: Value,
    kind: str,
    reduction: int,
    weight: Value | None,
    pos_weight: Value | None,
    beta: float,
    wrt_target: bool,
) -> None:
    x, t, w, pos = operands(p, input, target, weight, pos_weight)
    if reduction == 0:
        dy = p.ordered(dy, x.stride)
    params = loss_params(kind, reduction, beta)
    p.call("loss_backward", p.output().address, dy.address, x.address, t, w, pos, x.numel, params, wrt_target)


def class_shape(v: Value, dim: int) -> tuple[int, int, int]:
    if not v.shape:
        return 1, 1, 1
    dim %= len(v.shape)
    return math.prod(v.shape[:dim]), v.shape[dim], math.prod(v.shape[dim + 1 :])


@lowers("minidl.softmax")
def softmax(p: Lowering, input: Value, dim: int, log: bool) -> None:
    y, x = p.output(), p.contiguous(input)
    p.call("softmax_forward", y.address, x.address, class_shape(x, dim), log)


@lowers("minidl.softmax_backward")
def softmax_backward(p: Lowering, dy: Value, output: Value, dim: int, log: bool) -> None:
    dx, dy, y = p.output(), p.contiguous(dy), p.contiguous(output)
    p.call("softmax_backward", dx.address, dy.address, y.address, class_shape(y, dim), log)


class Classification:
    """The operands of cross_entropy and nll_loss."""

    def __init__(
        self,
        p: Lowering,
        input: Value,
        target: Value,
        weight: Value | None,
        ignore_index: int,
        label_smoothing: float = 0.0,
        probabilities: bool = False,
    ) -> None:
        self.x = p.contiguous(input)
        self.shape = class_shape(self.x, 0 if len(input.shape) == 1 else 1)
        self.ignore_index = ignore_index
        self.probabilities = probabilities and target.shape == input.shape
        if not self.probabilities and (target.dtype != torch.int64 or not target.is_contiguous):
            raise UnloweredError(p.node, "takes class indices that are not int64, one after the other")
        self.t = p.contiguous(target).address if self.probabilities else target.address
        index, probability = (None, self.t) if self.probabilities else (self.t, None)
        w = at(weight and p.contiguous(weight))
        self.target = index, probability, w, ignore_index, max(label_smoothing, 0.0)

    def check(self, p: Lowering) -> None:
        outer, classes, inner = self.shape
        if not self.probabilities:
            p.call("check_target", self.t, outer * inner, classes, self.ignore_index)


@lowers("minidl.cross_entropy_forward")
def cross_entropy_forward(
    p: Lowering,
    input: Value,
    target: Value,
    weight: Value | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
) -> None:
    c = Classification(p, input, target, weight, ignore_index, label_smoothing, probabilities=True)
    c.check(p)
    loss, stats, total = (p.output(i).address for i in range(3))
    p.call("cross_entropy_forward", loss, stats, total, c.x.address, c.target, c.shape, reduction)


@lowers("minidl.cross_entropy_backward")
def cross_entropy_backward(
    p: Lowering,
    dy: Value,
    input: Value,
    target: Value,
    stats: Value,
    total_weight: Value,
    weight: Value | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
) -> None:
    c = Classification(p, input, target, weight, ignore_index, label_smoothing, probabilities=True)
    saved = stats.address, total_weight.address
    p.call(
        "cross_entropy_backward",
        p.output().address,
        p.contiguous(dy).address,
        c.x.address,
        *saved,
        c.target,
        c.shape,
        reduction,
    )


@lowers("minidl.nll_loss_forward")
def nll_loss_forward(
    p: Lowering, input: Value, target: Value, weight: Value | None, reduction: int, ignore_index: int
) -> None:
    c = Classification(p, input, target, weight, ignore_index)
    c.check(p)
    loss, total = (p.output(i).address for i in range(2))
    p.call("nll_loss_forward", loss, total, c.x.address, c.target, c.shape, reduction)


@lowers("minidl.nll_loss_backward")
def nll_loss_backward(
    p: Lowering,
    dy: Value,
    input: Value,
    target: Value,
    total_weight: Value,
    weight: Value | None,
    reduction: int,
    ignore_index: int,
) -> None:
    c = Classification(p, input, target, weight, ignore_index)
    dx, dy = p.output(), p.contiguous(dy)
    p.call("nll_loss_backward", dx.address, dy.address, total_weight.address, c.target, c.shape, reduction)
