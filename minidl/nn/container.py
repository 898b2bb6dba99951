"""``Sequential``: torch's container, which runs a layer and its activation in one pass where nobody can tell."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.module import _has_any_global_hook

from minidl import functional as F
from minidl.nn.activation import ReLU, Sigmoid, Tanh
from minidl.nn.conv import Conv1d, Conv2d, convolved
from minidl.nn.linear import Linear
from minidl.nn.normalization import BatchNorm1d, BatchNorm2d, GroupNorm, LayerNorm, batch_normalized

# Of the layers that can compute an activation too: how, and which ones.
_FUSED: dict[type[Module], tuple[Callable[[Any, Tensor, str], Tensor], set[type[Module]]]] = {
    Linear: (lambda m, x, f: F.linear(x, m.weight, m.bias, f), {ReLU, Sigmoid, Tanh}),
    Conv1d: (convolved, {ReLU, Sigmoid, Tanh}),
    Conv2d: (convolved, {ReLU, Sigmoid, Tanh}),
    BatchNorm1d: (batch_normalized, {ReLU}),
    BatchNorm2d: (batch_normalized, {ReLU}),
    LayerNorm: (lambda m, x, f: F.layer_norm(x, m.normalized_shape, m.weight, m.bias, m.eps, f), {ReLU}),
    GroupNorm: (lambda m, x, f: F.group_norm(x, m.num_groups, m.weight, m.bias, m.eps, f), {ReLU}),
}
_ACTIVATIONS: dict[type[Module], str] = {ReLU: "relu", Sigmoid: "sigmoid", Tanh: "tanh"}
_FORWARDS: dict[type[Module], Any] = {kind: kind.forward for kind in (*_FUSED, *_ACTIVATIONS)}
_CALL = Module.__call__


class Sequential(torch.nn.Sequential):
    """:class:`torch.nn.Sequential`, which makes one call for a ``Linear`` or a convolution and the ``ReLU``,
    ``Sigmoid`` or ``Tanh`` after it, and for a normalisation and its ``ReLU``: one node of the graph instead of two,
    and a pass less either way.

    The bits of results and gradients stay the same. The two are called in turn where something may look between
    them: if one of them has a hook, is of another class (a subclass, parametrized, quantised, torch's own), has a
    patched ``forward`` or is compiled by itself, or if the ReLU works in place; and all are called in turn while
    global module hooks are registered or ``torch.fx`` or ``torch.jit`` trace modules.
    """

    def forward(self, input: Tensor) -> Tensor:
        modules = [*self]
        i = 0
        while i < len(modules):
            activation = _fused_activation(modules[i : i + 2])
            if activation is None:
                input = modules[i](input)
                i += 1
            else:
                fused, _ = _FUSED[type(modules[i])]
                input = fused(modules[i], input, activation)
                i += 2
        return input

    def __add__(self, other: torch.nn.Sequential) -> "Sequential":
        return Sequential(*super().__add__(other))

    def __mul__(self, other: int) -> "Sequential":
        return Sequential(*super().__mul__(other))


def _fused_activation(pair: list[Module]) -> str | None:
    """The activation that the first module computes too if called for both; None if they are to be called in turn.

    Asked anew in each forward: hooks and patches come and go.
    """
    if len(pair) < 2 or type(pair[0]) not in _FUSED:
        return None
    layer, activation = pair
    _, activations = _FUSED[type(layer)]
    if (
        type(activation) not in activations
        or not _is_plain(layer)
        or not _is_plain(activation)
        or _is_watched()
    ):
        return None
    name = _ACTIVATIONS[type(activation)]
    return None if name == "relu" and activation.inplace else name


def _is_plain(module: Module) -> bool:
    """Whether a call of ``module`` is its class's own ``forward`` and nothing else."""
    own = module.__dict__  # attributes are slower to read, by Module's __getattr__
    return not (
        own["_forward_pre_hooks"]
        or own["_forward_hooks"]
        or own["_backward_pre_hooks"]
        or own["_backward_hooks"]
        or "forward" in own
        or own.get("_compiled_call_impl")
        or type(module).forward is not _FORWARDS[type(module)]
    )


def _is_watched() -> bool:
    """Whether calls of modules are seen from outside: by global hooks, or by torch.fx or torch.jit, which trace."""
    return bool(Module.__call__ is not _CALL or torch._C._get_tracing_state() or _has_any_global_hook())
