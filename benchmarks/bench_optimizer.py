"""One optimizer step over all parameters of a model, against torch's default, foreach and fused ones; clipping."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .harness import Case, Library, Setup, Source, Tier, Work

Shapes = list[tuple[int, ...]]

MODELS: dict[str, tuple[Shapes, Tier]] = {
    "xor": ([(4, 2), (4,), (1, 4), (1,)], "default"),
    "mnist": ([(128, 784), (128,), (64, 128), (64,), (10, 64), (10,)], "default"),
    "10M": ([(1000, 1000)] * 10, "full"),
}
# name: class, arguments, floats moved a parameter (p and g in, p out; each state in and out), rivals
OPTIMIZERS: dict[str, tuple[str, dict[str, Any], int, tuple[str, ...]]] = {
    "SGD": ("SGD", {"lr": 0.01}, 3, ("foreach", "fused")),
    "SGD_momentum": ("SGD", {"lr": 0.01, "momentum": 0.9}, 5, ("foreach", "fused")),
    "RMSprop": ("RMSprop", {"lr": 0.001}, 5, ("foreach",)),
    "Adam": ("Adam", {"lr": 0.001}, 7, ("foreach", "fused")),
    "AdamW": ("AdamW", {"lr": 0.001}, 7, ("foreach", "fused")),
}
QUICK = {("SGD", "mnist"), ("Adam", "xor"), ("Adam", "mnist")}


def setup(
    lib: Library, dtype: torch.dtype, *, cls: str, arguments: dict[str, Any], shapes: Shapes, **variant: bool
) -> Work:
    source = Source(dtype)
    params = [source.normal(*shape, grad=True) for shape in shapes]
    grads = [source.normal(*shape) for shape in shapes]
    optimizer = getattr(lib.optim, cls)(params, **arguments, **variant)

    def check() -> list[Tensor]:
        # Gradients that change from step to step: constant ones would let Adam with any betas pass.
        for scale in (1.0, -0.5, 2.0, 1.0):
            for p, g in zip(params, grads, strict=True):
                p.grad = g * scale
            optimizer.step()
        return params

    return Work(optimizer.step, check)


def clip_setup(
    lib: Library, dtype: torch.dtype, *, function: str, shapes: Shapes, arguments: tuple[float, ...]
) -> Work:
    source = Source(dtype)
    params = [source.normal(*shape, grad=True) for shape in shapes]
    grads = [source.normal(*shape) for shape in shapes]
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    clip = partial(getattr(lib.nn.utils, function), params, *arguments)

    def check() -> list[Tensor]:
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        norm = clip()
        return [*(p.grad for p in params if p.grad is not None), *([] if norm is None else [norm])]

    return Work(clip, check)


# name: function, arguments, floats moved an element. A norm of -1 turns the gradients round, so that every call
# has something to scale; one of infinity never does, as in most steps of a training.
CLIPPING: dict[str, tuple[str, tuple[float, ...], int]] = {
    "clip_grad_norm_": ("clip_grad_norm_", (-1.0,), 3),
    "clip_grad_norm_within": ("clip_grad_norm_", (float("inf"),), 1),
    "clip_grad_value_": ("clip_grad_value_", (0.5,), 2),
}


def clip_cases() -> Iterator[Case]:
    for op, (function, arguments, floats) in CLIPPING.items():
        for model in ("mnist", "10M"):
            shapes, tier = MODELS[model]
            yield Case(
                "optimizer",
                op,
                model,
                "step",
                partial(clip_setup, function=function, shapes=shapes, arguments=arguments),
                bytes=4.0 * floats * sum(torch.Size(shape).numel() for shape in shapes),
                tier=tier,
            )


def cases() -> Iterator[Case]:
    yield from clip_cases()
    for op, (cls, arguments, floats, variants) in OPTIMIZERS.items():
        for model, (shapes, tier) in MODELS.items():
            build = partial(setup, cls=cls, arguments=arguments, shapes=shapes)
            rivals: dict[str, Setup] = {name: partial(build, **{name: True}) for name in variants}
            yield Case(
                "optimizer",
                op,
                model,
                "step",
                build,
                bytes=4.0 * floats * sum(torch.Size(shape).numel() for shape in shapes),
                tier="quick" if (op, model) in QUICK else tier,
                bar=2.0 if (op, model) == ("Adam", "mnist") else 0,
                rivals=rivals,
            )
