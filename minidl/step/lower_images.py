"""lower.py for normalisation, dropout and pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from minidl.step.lower import Lowering, UnloweredError, at, lowers
from minidl.step.values import Value

# ---- norm


def affine(p: Lowering, weight: Value | None, bias: Value | None, activation: str) -> tuple[Any, Any, bool]:
    return at(weight and p.contiguous(weight)), at(bias and p.contiguous(bias)), activation == "relu"


def second_or_last(p: Lowering, x: Value) -> Value:
    """x with its channels second or last in memory, the two orders that the kernels of batch norm walk."""
    if x.is_contiguous or _channels_innermost(x):
        return x
    return p.contiguous(x)


def _channels_innermost(x: Value) -> bool:
    order = [0, *range(2, len(x.shape)), 1]
    moved = x.viewed([x.shape[d] for d in order], [x.stride[d] for d in order])
    return len(x.shape) > 2 and moved.is_contiguous


def batch_shape(x: Value) -> tuple[int, int, int]:
    n, channels = x.shape[:2]
    if not x.is_contiguous:
        return x.numel // channels if channels else 0, channels, 1
    return n, channels, math.prod(x.shape[2:])


@lowers("minidl.batch_norm_forward")
def batch_norm_forward(
    p: Lowering,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    training: bool,
    eps: float,
    activation: str,
) -> None:
    x = second_or_last(p, input)
    y, stats = p.output(0), p.output(1)
    mean, var = (None if training else at(v) for v in (running_mean, running_var))
    a = affine(p, weight, bias, activation)
    p.call("batch_norm_forward", y.address, stats.address, x.address, mean, var, a, batch_shape(x), eps)


@lowers("minidl.batch_norm_update")
def batch_norm_update(
    p: Lowering, running_mean: Value, running_var: Value, stats: Value, momentum: float
) -> None:
    args = running_mean.address, running_var.address, stats.address, stats.shape[1], momentum
    p.call("batch_norm_update", *args, commit=True)


@lowers("minidl.batch_norm_backward")
def batch_norm_backward(
    p: Lowering,
    dy: Value,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    stats: Value,
    training: bool,
    activation: str,
    wanted: list[bool],
) -> None:
    x = second_or_last(p, input)
    dy = p.ordered(dy, x.stride)
    gradients = [at(p.output(i)) if want else None for i, want in enumerate(wanted)]
    args = dy.address, x.address, stats.address, affine(p, weight, bias, activation), batch_shape(x), training
    p.call("batch_norm_backward", *gradients, *args)


@lowers("minidl.group_norm_forward", "minidl.layer_norm_forward")
def group_norm_forward(
    p: Lowering,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    eps: float,
    activation: str,
    num_groups: int = 1,
    normalized_shape: Sequence[int] | None = None,
) -> None:
    x = p.contiguous(input)
    y, stats = p.output(0), p.output(1)
    shape = groups_shape(x, normalized_shape)
    a = affine(p, weight, bias, activation)
    p.call("group_norm_forward", y.address, stats.address, x.address, a, shape, num_groups, eps)


@lowers("minidl.group_norm_backward", "minidl.layer_norm_backward")
def group_norm_backward(
    p: Lowering,
    dy: Value,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    stats: Value,
    activation: str,
    wanted: list[bool],
    num_groups: int = 1,
    normalized_shape: Sequence[int] | None = None,
) -> None:
    x, dy = p.contiguous(input), p.contiguous(dy)
    gradients = [at(p.output(i)) if want else None for i, want in enumerate(wanted)]
    a, shape = affine(p, weight, bias, activation), groups_shape(x, normalized_shape)
    p.call("group_norm_backward", *gradients, dy.address, x.address, stats.address, a, shape, num_groups)


def groups_shape(x: Value, normalized_shape: Sequence[int] | None) -> tuple[int, int, int]:
    if normalized_shape is None:
        return x.shape[0], x.shape[1], math.prod(x.shape[2:])
    size = math.prod(normalized_shape)
    return math.prod(x.shape[: len(x.shape) - len(normalized_shape)]), size, 1


# ---- dropout


def _dropout(
    p: Lowering, y: Value, x: Value, state: Value, p_drop: float, channels: bool, last: bool
) -> None:
    x = p.contiguous(x, last)
    images, features = (x.shape[0], x.shape[1]) if channels else (1, x.numel)
    inner = math.prod(x.shape[2:]) if channels else 1
    threshold = 0 if p_drop == 1 else min(math.floor(p_drop * 2**32 + 0.5), 2**32 - 1)
    scale = 0.0 if p_drop == 1 else 1 / (1 - p_drop)
    mask = state.address, threshold, scale
    p.call("dropout", y.address, x.address, (images, features, inner, last), mask)


@lowers("minidl.dropout_forward")
def dropout_forward(p: Lowering, /, input: Value, channels: bool, generator: Any, **rest: float) -> None:
    if generator is not None:
        raise UnloweredError(p.node, "draws from a generator of its own")
    y, state = p.output(0), p.output(1)
    p.drawn.append(state.address.slot)
    _dropout(p, y, input, state, rest["p"], channels, input.is_channels_last)


@lowers("minidl.dropout_backward")
def dropout_backward(
    p: Lowering, /, dy: Value, state: Value, channels: bool, channels_last: bool, **rest: float
) -> None:
    _dropout(p, p.output(), dy, state, rest["p"], channels, channels_last)


# ---- pool


def pair(values: Sequence[int]) -> tuple[int, int]:
    return values[0], values[-1]


def axis(window: dict[str, Any], d: int, size: int, out: int) -> tuple[Any, ...]:
    """As csrc/ops/pool.h: without kernel_size, adaptive windows."""
    if window["kernel_size"]:
        stride = window["stride"] or window["kernel_size"]
        numbers = window["kernel_size"], stride, window["padding"], window.get("dilation", [1])
        return size, out, *(pair(v)[d] for v in numbers), False
    if out > 0 and size % out == 0:
        return size, out, size // out, size // out, 0, 1, False
    return size, out, min(size, size // out + 2) if out > 0 else 1, 1, 0, 1, True


def pool_shape(window: dict[str, Any], x: Sequence[int], y: Sequence[int], last: bool) -> tuple[Any, ...]:
    images = x[0] if len(x) == 4 else 1
    return images, x[-3], axis(window, 0, x[-2], y[-2]), axis(window, 1, x[-1], y[-1]), last


ADAPTIVE: dict[str, Any] = {"kernel_size": []}


def position_of(position: Value) -> tuple[Any, Any]:
    return (position.address, None) if position.dtype.itemsize == 1 else (None, position.address)


def _max_forward(p: Lowering, input: Value, window: dict[str, Any]) -> None:
    last = input.is_channels_last
    x = p.contiguous(input, last)
    y, position = p.output(0), p.output(1)
    shape = pool_shape(window, x.shape, y.shape, last)
    p.call("max_pool_forward", y.address, position_of(position), x.address, shape)


@lowers("minidl.max_pool2d_forward")
def max_pool2d_forward(p: Lowering, input: Value, ceil_mode: bool, indices: bool, **window: Any) -> None:
    _max_forward(p, input, window)


@lowers("minidl.adaptive_max_pool2d_forward")
def adaptive_max_pool2d_forward(p: Lowering, input: Value, output_size: Any, indices: bool) -> None:
    _max_forward(p, input, ADAPTIVE)


@lowers("minidl.max_pool2d_backward")
def max_pool2d_backward(
    p: Lowering, dy: Value, position: Value, input_size: Sequence[int], channels_last: bool, **window: Any
) -> None:
    dx, dy = p.output(), p.contiguous(dy, channels_last)
    shape = pool_shape(window, input_size, dy.shape, channels_last)
    position = p.contiguous(position, channels_last)
    p.call("max_pool_backward", dx.address, dy.address, position_of(position), shape)


def _divisor(count_include_pad: bool, divisor_override: int | None) -> tuple[float, bool]:
    return float(divisor_override or 0), count_include_pad


def _average(p: Lowering, input: Value, window: dict[str, Any], divisor: tuple[float, bool]) -> None:
    last = input.is_channels_last
    x, y = p.contiguous(input, last), p.output()
    p.call("avg_pool_forward", y.address, x.address, pool_shape(window, x.shape, y.shape, last), divisor)


@lowers("minidl.avg_pool2d")
def avg_pool2d(
    p: Lowering,
    input: Value,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    **window: Any,
) -> None:
    _average(p, input, window, _divisor(count_include_pad, divisor_override))


@lowers("minidl.adaptive_avg_pool2d")
def adaptive_avg_pool2d(p: Lowering, input: Value, output_size: Any) -> None:
    _average(p, input, ADAPTIVE, (0.0, False))


@lowers("minidl.avg_pool2d_backward")
def avg_pool2d_backward(
    p: Lowering,
    dy: Value,
    input_size: Sequence[int],
    channels_last: bool,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    **window: Any,
) -> None:
    dx, dy = p.output(), p.contiguous(dy, channels_last)
    shape = pool_shape(window, input_size, dy.shape, channels_last)
    p.call("avg_pool_backward", dx.address, dy.address, shape, _divisor(count_include_pad, divisor_override))
