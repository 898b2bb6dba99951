"""lower.py for sums, copies, activations, products and convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from minidl.step.lower import NONE, Lowering, UnloweredError, at, lowers
from minidl.step.memory import Slot
from minidl.step.values import Address, Value, contiguous_strides

# ---- what joins and rearranges


@lowers("aten.add")
def add(p: Lowering, self: Value, other: Any, alpha: Any = 1) -> None:
    if not isinstance(other, Value) or self.shape != other.shape or alpha != 1 or self.dtype != other.dtype:
        raise UnloweredError(p.node, "adds something else than two values of one shape")
    y = p.output()
    a, b = p.ordered(self, y.stride), p.ordered(other, y.stride)
    p.call("add", y.address, a.address, b.address, y.numel)


@lowers("aten.add_")
def count(p: Lowering, self: Value, other: Any, alpha: Any = 1) -> None:
    source = p.node.args[0]
    assert isinstance(source, Node)
    if self.dtype != torch.int64 or self.shape or other != 1 or source.op != "placeholder":
        raise UnloweredError(p.node, "works in place")
    p.counters.append(source)
    p.values[p.node] = self


@lowers("aten.cat")
def cat(p: Lowering, tensors: Any, dim: int = 0) -> None:
    y = p.output()
    offset, dim = y.address.offset, dim % max(len(y.shape), 1)
    for node in tensors:
        x = p.values[node]
        if x.numel == 0:
            continue
        p.copy(Value(Address(y.address.slot, offset), x.shape, y.stride, y.dtype), x)
        offset += x.shape[dim] * y.stride[dim] * y.dtype.itemsize


@lowers("aten.clone")
def clone(p: Lowering, self: Value, memory_format: Any = None) -> None:
    p.copy(p.output(), self)


@lowers("aten._to_copy")
def to_copy(p: Lowering, self: Value, **options: Any) -> None:
    p.copy(p.output(), self)  # which refuses other dtypes


@lowers("aten.copy_")
def copy_into(p: Lowering, self: Value, src: Value, non_blocking: bool = False) -> None:
    if self.shape != src.shape or p.slots[self.address.slot].bound:
        raise UnloweredError(p.node, "writes into what is not the plan's own")
    p.copy(self, src)
    p.values[p.node] = self


@lowers("aten.ones_like")
def ones_like(p: Lowering, self: Value, **options: Any) -> None:
    if self.shape:
        raise UnloweredError(p.node, "fills a tensor")
    if p.one is None:
        p.slots.append(Slot(0, bound=True))
        p.one = Address(len(p.slots) - 1, 0)
    p.values[p.node] = Value(p.one, (), (), p.dtype)


# ---- activation


@lowers("minidl.activation")
def activation(p: Lowering, x: Value, name: str, alpha: float, beta: float) -> None:
    y = p.output()
    x = p.ordered(x, y.stride)
    p.call("activation_forward", y.address, x.address, y.numel, (name, alpha, beta))


@lowers("minidl.activation_backward")
def activation_backward(p: Lowering, dy: Value, saved: Value, name: str, alpha: float, beta: float) -> None:
    dx = p.output()
    dy, saved = p.ordered(dy, dx.stride), p.ordered(saved, dx.stride)
    p.call("activation_backward", dx.address, dy.address, saved.address, dx.numel, (name, alpha, beta))


# ---- matmul


def gemm(
    p: Lowering, c: Value, a: Value, b: Value, bias: Value | None = None, activation: str = "none"
) -> None:
    """c = activation(a b + bias) for matrices, or batches of them; c is contiguous."""
    batch = a.shape[0] if len(a.shape) == 3 else 1
    (m, k), n = a.shape[-2:], b.shape[-1]

    def matrix(v: Value) -> tuple[Any, ...]:
        return v.address, *v.stride[-2:], v.stride[0] if len(v.shape) == 3 else 0

    epilogue = at(bias), (activation, 0.0, 0.0)
    p.call("gemm", c.address, n, m * n, matrix(a), matrix(b), batch, m, n, k, epilogue)


def rows(p: Lowering, v: Value) -> Value:
    """As a matrix of all the vectors of the last dimension."""
    if len(v.shape) == 2:
        return v
    if len(v.shape) == 1:
        return v.viewed((1, *v.shape), (v.shape[0] * v.stride[0], *v.stride))
    v = p.contiguous(v)
    shape = math.prod(v.shape[:-1]), v.shape[-1]
    return v.viewed(shape, contiguous_strides(shape))


@lowers("minidl.matmul")
def matmul(p: Lowering, a: Value, b: Value) -> None:
    y = p.output()
    if len(b.shape) == 1:
        b = b.viewed((b.shape[0], 1), (b.stride[0], 1))
    if len(b.shape) == 2 and (len(a.shape) <= 2 or a.is_contiguous):
        return gemm(p, y, rows(p, a), b)
    if len(a.shape) != 3 or len(b.shape) != 3 or a.shape[0] != b.shape[0]:
        raise UnloweredError(p.node, "broadcasts a batch of matrices")
    gemm(p, y, a, b)


@lowers("minidl.linear")
def linear(p: Lowering, input: Value, weight: Value, bias: Value | None, activation: str) -> None:
    gemm(p, p.output(), rows(p, input), weight.transposed(), bias and p.contiguous(bias), activation)


@lowers("minidl.linear_backward")
def linear_backward(
    p: Lowering,
    dy: Value,
    input: Value,
    weight: Value,
    output: Value | None,
    activation: str,
    wanted: list[bool],
) -> None:
    dx, dw, db = (p.output(i) if want else None for i, want in enumerate(wanted))
    dz = rows(p, dy)
    if activation != "none" or db:
        dz = p.contiguous(dz)
        m, n = dz.shape
        undone = p.new(dz.shape, dz.stride) if activation != "none" else None
        y = p.contiguous(rows(p, output)) if output and undone else None
        f = (activation, 0.0, 0.0)
        p.call("epilogue_backward", at(undone), at(db), dz.address, at(y), m, n, f)
        dz = undone or dz
    if dx:
        gemm(p, dx, dz, weight)
    if dw:
        gemm(p, dw, dz.transposed(), rows(p, input))


# ---- conv


def image(v: Value) -> tuple[Any, ...]:
    flat = len(v.shape) == 3  # one dimension: pictures of a single row
    row, height = (0, 1) if flat else (v.stride[2], v.shape[2])
    return v.address, v.stride[0], v.stride[1], row, v.stride[-1], height, v.shape[-1]


def pairs(values: Sequence[int], dims: int, missing: int) -> list[int]:
    values = list(values) * (dims if len(values) == 1 else 1)
    return [missing] * (2 - dims) + values


def conv_shape(x: Value, y: Value, w: Value, o: dict[str, Any]) -> tuple[Any, ...]:
    dims, groups = len(x.shape) - 2, o["groups"]

    def sizes(v: Value) -> list[int]:
        return pairs(v.shape[2:], dims, 1)

    stride, dilation = (pairs(o[key], dims, 1) for key in ("stride", "dilation"))
    padding = pairs(o["padding"], dims, 0)
    channels = w.shape[1], w.shape[0] // groups
    return x.shape[0], groups, *channels, sizes(x), sizes(y), sizes(w), stride, padding, dilation


@lowers("minidl.convolution")
def convolution(
    p: Lowering, input: Value, weight: Value, bias: Value | None, activation: str, **o: Any
) -> None:
    y = p.output()
    epilogue = at(bias and p.contiguous(bias)), (activation, 0.0, 0.0)
    if o["transposed"]:
        shape = conv_shape(y, input, weight, o)
        p.call("conv_backward_input", image(y), image(input), image(weight), shape, epilogue)
    else:
        p.call(
            "conv_forward", image(y), image(input), image(weight), conv_shape(input, y, weight, o), epilogue
        )


@lowers("minidl.convolution_backward")
def convolution_backward(
    p: Lowering,
    dy: Value,
    input: Value,
    weight: Value,
    output: Value | None,
    activation: str,
    wanted: list[bool],
    **o: Any,
) -> None:
    dx, dw, db = (p.output(i) if want else None for i, want in enumerate(wanted))
    dz = dy
    if activation != "none" or db:
        channels_last = (output if output and activation != "none" else dy).is_channels_last
        dz = p.contiguous(dy, channels_last)
        undone = p.new(dz.shape, dz.stride) if activation != "none" else None
        y = p.contiguous(output, channels_last) if output and undone else None
        n, channels, pixels = dz.shape[0], dz.shape[1], math.prod(dz.shape[2:])
        f = (activation, 0.0, 0.0)
        if channels_last:
            p.call("epilogue_backward", at(undone), at(db), dz.address, at(y), n * pixels, channels, f)
        else:
            shape = n, channels, pixels
            p.call("planes_epilogue_backward", at(undone), at(db), dz.address, at(y), shape, f)
        dz = undone or dz
    transposed = o["transposed"]
    shape = conv_shape(dz, input, weight, o) if transposed else conv_shape(input, dz, weight, o)
    if dx:
        kernel = "conv_forward" if transposed else "conv_backward_input"
        p.call(kernel, image(dx), image(dz), image(weight), shape, (None, NONE))
    if dw:
        of_y, of_x = (input, dz) if transposed else (dz, input)
        p.call("conv_backward_weight", image(dw), image(of_y), image(of_x), shape)
