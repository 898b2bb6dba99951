"""From a captured graph to calls of kernels: what csrc/ops does for each operator, decided beforehand."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from minidl.step.fuse import fuse
from minidl.step.memory import Slot
from minidl.step.values import Address, Value, contiguous_strides, copy_shape

Call = tuple[str, tuple[Any, ...]]
NONE = ("none", 0.0, 0.0)  # no activation


class UnloweredError(Exception):
    """An operator that has no place in a plan, and why."""

    def __init__(self, node: Node, why: str) -> None:
        super().__init__(why)
        self.node = node
        self.why = why


LOWERINGS: dict[str, Callable[..., None]] = {}
VIEWS = {
    f"aten.{name}"
    for name in (
        *("view", "_unsafe_view", "reshape", "t", "transpose", "permute", "unsqueeze", "squeeze"),
        *("expand", "detach", "alias", "slice", "select"),
    )
}


def lowers(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def register(function: Callable[..., None]) -> Callable[..., None]:
        LOWERINGS.update(dict.fromkeys(names, function))
        return function

    return register


def op_name(node: Any) -> str:
    """minidl.linear for torch.ops.minidl.linear.default; getitem for operator.getitem."""
    if not isinstance(node, Node) or node.op != "call_function":
        return ""
    if node.target is operator.getitem:
        return "getitem"
    schema = getattr(node.target, "_schema", None)
    return schema.name.replace("::", ".") if schema else str(node.target)


def arguments_of(node: Node) -> dict[str, Any]:
    """All arguments by name, defaults included."""
    result: dict[str, Any] = {}
    for i, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if i < len(node.args):
            result[argument.name] = node.args[i]
        else:
            result[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return result


class Lowering:
    """The calls of one step, in order, and the memory that they need."""

    node: Node  # being lowered

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.slots: list[Slot] = []
        self.calls: list[Call] = []
        self.commits: list[Call] = []  # made when nothing can go wrong any more
        self.drawn: list[int] = []
        self.counters: list[Node] = []
        self.one: Address | None = None  # of a number 1
        self.values: dict[Node, Any] = {}

    # ---- memory

    def bound(self, like: Tensor) -> Value:
        """A value that lies elsewhere, with the strides of `like`."""
        self.slots.append(Slot(0, bound=True))
        return Value(Address(len(self.slots) - 1, 0), tuple(like.shape), like.stride(), like.dtype)

    def new(self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype | None = None) -> Value:
        dtype = dtype or self.dtype
        self.slots.append(Slot(max(math.prod(shape), 1) * dtype.itemsize))
        return Value(Address(len(self.slots) - 1, 0), tuple(shape), tuple(stride), dtype)

    def output(self, index: int | None = None) -> Value:
        """A new value for the current node, or for the index-th of its results."""
        like = self.node.meta["val"]
        like = like if index is None else like[index]
        value = self.new(like.shape, like.stride(), like.dtype)
        if index is None:
            self.values[self.node] = value
        else:
            self.values.setdefault(self.node, {})[index] = value
        return value

    def call(self, kernel: str, *arguments: Any, commit: bool = False) -> None:
        (self.commits if commit else self.calls).append((kernel, arguments))

    def value(self, node: Node | None) -> Value | None:
        return None if node is None else self.values[node]

    def ordered(self, v: Value, stride: Sequence[int]) -> Value:
        """v itself where it has these strides, else a copy that has."""
        if v.has_strides(stride):
            return v.viewed(v.shape, stride)
        copy = self.new(v.shape, stride, v.dtype)
        self.copy(copy, v)
        return copy

    def contiguous(self, v: Value, channels_last: bool = False) -> Value:
        return self.ordered(v, contiguous_strides(v.shape, channels_last))

    def copy(self, to: Value, source: Value) -> None:
        shape = copy_shape(to.shape, to.stride, source.stride)
        if shape is None or to.dtype != self.dtype or source.dtype != self.dtype:
            raise UnloweredError(self.node, "needs a copy of a kind that a plan has not")
        if to.numel:
            self.call("strided_copy", to.address, source.address, shape)

    # ---- the graph

    def lower(self, graph: torch.fx.Graph, inputs: dict[Node, Value]) -> None:
        self.values.update(inputs)
        arguments = {
            n: arguments_of(n) for n in graph.nodes if n.op == "call_function" and op_name(n) != "getitem"
        }
        same = fuse(graph, arguments, op_name)
        for node in graph.nodes:
            if node.op != "call_function":
                if node.op == "get_attr":
                    raise UnloweredError(node, "is a tensor that is neither a parameter nor a buffer")
                continue
            self.node = node
            name = op_name(node)
            if node in same:
                self.values[node] = self.values[same[node]]
            elif name == "getitem":
                self.values[node] = self.values[node.all_input_nodes[0]].get(node.args[1])
            elif name in VIEWS:
                self.view(node, name, arguments[node])
            elif name in LOWERINGS:
                given = {
                    key: self.value(a) if isinstance(a, Node) or a is None else a
                    for key, a in arguments[node].items()
                }
                LOWERINGS[name](self, **given)
            else:
                raise UnloweredError(node, "is not among what a plan can call")

    def view(self, node: Node, name: str, arguments: dict[str, Any]) -> None:
        base, like = self.values[node.all_input_nodes[0]], node.meta["val"]
        offset = base.address.offset
        if name in (
            "aten.slice",
            "aten.select",
        ):  # the graph's values do not say where in their storage they begin
            first = arguments["index"] if name == "aten.select" else arguments["start"] or 0
            dim = arguments["dim"]
            first = max(first + base.shape[dim], 0) if first < 0 else min(first, base.shape[dim])
            offset += first * base.stride[dim] * base.dtype.itemsize
        self.values[node] = Value(
            Address(base.address.slot, offset), tuple(like.shape), like.stride(), like.dtype
        )

    def lifetimes(self, last: Sequence[Address], first: Sequence[int]) -> None:
        """Say of each slot when it lives; those of `last` to the end, those in `first` from the beginning."""
        calls = [*self.calls, *self.commits]
        for i, (_, arguments) in enumerate(calls):
            for address in addresses(arguments):
                slot = self.slots[address.slot]
                slot.first = i if slot.first < 0 else slot.first
                slot.last = i
        for address in last:
            self.slots[address.slot].last = len(calls)
        for i in first:
            self.slots[i].first = 0


def addresses(arguments: Any) -> list[Address]:
    if isinstance(arguments, Address):
        return [arguments]
    if isinstance(arguments, (tuple, list)):
        return [address for argument in arguments for address in addresses(argument)]
    return []


def at(v: Value | None) -> Address | None:
    return None if v is None else v.address
