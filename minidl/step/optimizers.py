"""The optimizer's part of a plan: which kernel updates which tensors, with state that is the optimizer's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minidl import optim
from minidl.step.capture import EAGERLY, UnsupportedError

Group = dict[str, Any]


@dataclass(frozen=True)
class Algorithm:
    kernel: str
    state: Callable[[Group], tuple[str | None, ...]]  # the names of OptimizerTensor::state that a group has
    counts: bool  # whether state has "step"


_ADAM = Algorithm(
    "adam_step", lambda g: ("exp_avg", "exp_avg_sq", "max_exp_avg_sq" if g["amsgrad"] else None), counts=True
)
_RMSPROP = Algorithm(
    "rmsprop_step",
    lambda g: (
        "square_avg",
        "momentum_buffer" if g["momentum"] > 0 else None,
        "grad_avg" if g["centered"] else None,
    ),
    counts=True,
)
_SGD = Algorithm(
    "sgd_step", lambda g: ("momentum_buffer" if g["momentum"] != 0 else None, None, None), counts=False
)
# torch's own classes keep the same state in the same places.
ALGORITHMS: dict[type, Algorithm] = {
    optim.SGD: _SGD,
    optim.RMSprop: _RMSPROP,
    optim.Adam: _ADAM,
    optim.AdamW: _ADAM,
    torch.optim.SGD: _SGD,
    torch.optim.RMSprop: _RMSPROP,
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
}


def algorithm_of(optimizer: torch.optim.Optimizer) -> Algorithm:
    """UnsupportedError for an optimizer that no kernel computes, or whose hooks a step would have to call."""
    name = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
    if type(optimizer) not in ALGORITHMS:
        known = "SGD, RMSprop, Adam and AdamW of minidl.optim or torch.optim"
        raise UnsupportedError(
            f"minidl.TrainStep: no plan for optimizer {name}; there are {known}. {EAGERLY}"
        )
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise UnsupportedError(
            f"minidl.TrainStep: the optimizer {name} has step hooks, which a plan cannot call. {EAGERLY}"
        )
    for group in optimizer.param_groups:
        if group.get("differentiable"):
            raise UnsupportedError(f"minidl.TrainStep: a plan has no differentiable=True. {EAGERLY}")
        if group.get("capturable") and not all(p.is_cuda for p in group["params"]):
            raise UnsupportedError(f"minidl.TrainStep: capturable=True is for parameters on a GPU. {EAGERLY}")
    return ALGORITHMS[type(optimizer)]


def make_state(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> None:
    """Let torch's class create the state of those parameters that have none, as their first step would."""
    if not ALGORITHMS[type(optimizer)].counts:
        return  # SGD's buffers begin as gradients, which are not known yet
    kept = [p.grad for p in params]
    try:
        for p in params:
            p.grad = torch.empty_like(p)
        for group in optimizer.param_groups:
            mine = {**group, "params": [p for p in group["params"] if any(p is q for q in params)]}
            optimizer._init_group(mine, *([] for _ in range(6)))  # type: ignore[attr-defined]
    finally:
        for p, grad in zip(params, kept, strict=True):
            p.grad = grad


def rows(
    optimizer: torch.optim.Optimizer,
    group: Group,
    grads: dict[Tensor, int],
    products: dict[Tensor, int],
    pending: list[tuple[Any, str, Tensor]],
) -> list[tuple[Any, ...]]:
    """Of each parameter with a gradient: itself, its gradient's slot, its state, its step, whether its momentum buffer
    begins as the gradient, and the number of the product that is its gradient, or -1. Momentum buffers that begin so go
    to `pending`: they become state when a step has filled them."""
    algorithm = ALGORITHMS[type(optimizer)]
    result = []
    for p in group["params"]:
        if p not in grads:
            continue
        state, found, first = optimizer.state.get(p, {}), [], False
        for name in algorithm.state(group):
            tensor = state.get(name) if name else None
            if name and tensor is None:
                tensor, first = torch.empty_like(p), True
                pending.append((p, name, tensor))
            found.append(tensor)
        step = state["step"] if algorithm.counts else None
        if step is not None and step.is_cuda and step.dtype != torch.float32:
            raise UnsupportedError(f"minidl.TrainStep: a step of {step.dtype} on a GPU. {EAGERLY}")
        result.append((p, grads[p], found, step, first, products.get(p, -1)))
    return sorted(result, key=lambda row: row[-1] >= 0)
