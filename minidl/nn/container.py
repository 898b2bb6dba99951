"""``Sequential``: torch's container, which runs a layer and its activation in one pass where nobody can tell."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.module import _has_any_global_hook

from minidl import functional as F
from minidl.nn.activation import ReLU, Sigmoid, Tanh
from minidl.nn.linear import Linear

_ACTIVATIONS: dict[type[Module], str] = {ReLU: "relu", Sigmoid: "sigmoid", Tanh: "tanh"}
_FORWARDS: dict[type[Module], Any] = {
    Linear: Linear.forward,
    ReLU: ReLU.forward,
    Sigmoid: Sigmoid.forward,
    Tanh: Tanh.forward,
}
_CALL = Module.__call__


class Sequential(torch.nn.Sequential):
    """:class:`torch.nn.Sequential`, which calls :func:`minidl.functional.linear` once for a ``Linear`` and the
    ``ReLU``, ``Sigmoid`` or ``Tanh`` after it: one node of the graph instead of two, and a pass less either way.

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
                input = F.linear(input, modules[i].weight, modules[i].bias, activation)
                i += 2
        return input

    def __add__(self, other: torch.nn.Sequential) -> "Sequential":
        return Sequential(*super().__add__(other))

    def __mul__(self, other: int) -> "Sequential":
        return Sequential(*super().__mul__(other))


def _fused_activation(pair: list[Module]) -> str | None:
    """The activation that ``linear`` computes too if called for both modules; None if they are to be called in turn.

    Asked anew in each forward: hooks and patches come and go.
    """
    if len(pair) < 2 or type(pair[0]) is not Linear:
        return None
    linear, activation = pair
    name = _ACTIVATIONS.get(type(activation))
    if name is None or not _is_plain(linear) or not _is_plain(activation) or _is_watched():
        return None
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
