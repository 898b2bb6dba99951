"""Activations computed in the pass of the layer before them, forward and backward."""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, Node

Arguments = dict[Node, dict[str, Any]]

# Layer -> what undoes it, and which activations it can compute too. The outputs of those with statistics are tuples.
LAYERS = {
    "minidl.linear": ("minidl.linear_backward", {"relu", "sigmoid", "tanh"}),
    "minidl.convolution": ("minidl.convolution_backward", {"relu", "sigmoid", "tanh"}),
    "minidl.batch_norm_forward": ("minidl.batch_norm_backward", {"relu"}),
    "minidl.layer_norm_forward": ("minidl.layer_norm_backward", {"relu"}),
    "minidl.group_norm_forward": ("minidl.group_norm_backward", {"relu"}),
}


def fuse(graph: Graph, arguments: Arguments, name: Any) -> dict[Node, Node]:
    """Rewrite `arguments`; a node that is no longer to be computed -> the node whose value it has.

    Only where nobody else sees the value between the two. Bits stay the same: kernels.def says so of its epilogues.
    """
    same: dict[Node, Node] = {}
    for node in graph.nodes:
        if name(node) != "minidl.activation":
            continue
        before = arguments[node]["x"]
        layer = before.args[0] if name(before) == "getitem" else before
        backward, activations = LAYERS.get(name(layer), ("", set()))
        f = arguments[node]["name"]
        if f not in activations or arguments[layer]["activation"] != "none" or len(before.users) > 1:
            continue
        arguments[layer]["activation"] = f
        same[node] = before
        _fuse_backward(graph, arguments, name, node, backward)
    _drop_fused_backward(graph, arguments, name, same)
    return same


def _root(node: Any, name: Any) -> Any:
    while isinstance(node, Node) and name(node) in ("aten.detach", "aten.alias"):
        node = node.args[0]
    return node


def _fuse_backward(graph: Graph, arguments: Arguments, name: Any, activation: Node, backward: str) -> None:
    for node in graph.nodes:
        if (
            name(node) != "minidl.activation_backward"
            or _root(arguments[node]["saved"], name) is not activation
        ):
            continue
        users = list(node.users)
        if len(users) != 1 or name(users[0]) != backward or arguments[users[0]]["dy"] is not node:
            continue
        undone = arguments[users[0]]
        undone["dy"] = arguments[node]["dy"]
        undone["activation"] = arguments[activation]["name"]
        if "output" in undone:
            undone["output"] = activation
        arguments[node]["fused"] = True


def _drop_fused_backward(graph: Graph, arguments: Arguments, name: Any, same: dict[Node, Node]) -> None:
    for node in graph.nodes:
        if name(node) == "minidl.activation_backward" and arguments[node].pop("fused", False):
            same[node] = arguments[node]["dy"]
