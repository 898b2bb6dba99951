"""One optimizer step over all parameters of a model, against torch's default, foreach and fused ones; clipping."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .harness import Case, Library, Source, Tier, Work

Shapes = list[tuple[int, ...]]


def resnet18() -> Shapes:
    """ResNet-18's 62 parameters, 11.7M in all: 20 convolutions, each with a norm, and the classifier."""
    convolutions: Shapes = [(64, 3, 7, 7)]
    inputs = 64
    for outputs in (64, 128, 256, 512):
        convolutions += [(outputs, inputs, 3, 3), *[(outputs, outputs, 3, 3)] * 3]
        if inputs != outputs:
            convolutions.append((outputs, inputs, 1, 1))
        inputs = outputs
    layers = [shape for conv in convolutions for shape in (conv, conv[:1], conv[:1])]
    return [*layers, (1000, 512), (1000,)]


def transformer() -> Shapes:
    """The 150 parameters, 100M in all, of a transformer with 12 layers of width 768."""
    norm: Shapes = [(768,), (768,)]
    attention: Shapes = [(2304, 768), (2304,), (768, 768), (768,)]
    mlp: Shapes = [(3072, 768), (3072,), (768, 3072), (768,)]
    layers = [*norm, *attention, *norm, *mlp] * 12
    return [(16384, 768), (1024, 768), *layers, *norm, (2048, 768), (2048,)]


def quartered(shapes: Shapes) -> Shapes:
    """As many tensors, and a sixteenth of the memory: in float64, four optimizers of 100M do not fit."""
    return [tuple(size // 4 for size in shape) for shape in shapes]


MODELS: dict[str, tuple[Shapes, Tier]] = {
    "xor": ([(4, 2), (4,), (1, 4), (1,)], "default"),
    "mnist": ([(128, 784), (128,), (64, 128), (64,), (10, 64), (10,)], "default"),
    "11M": (resnet18(), "default"),
    "100M": (transformer(), "full"),
}


class Algorithm(NamedTuple):
    cls: str
    arguments: dict[str, Any]
    floats: int  # moved a parameter: p and g in, p out; each state in and out
    variants: tuple[str, ...] = ("foreach", "fused")


ALGORITHMS = {
    "SGD": Algorithm("SGD", {"lr": 0.01}, 3),
    "SGD_momentum": Algorithm("SGD", {"lr": 0.01, "momentum": 0.9}, 5),
    "RMSprop": Algorithm("RMSprop", {"lr": 0.001}, 5, ("foreach",)),
    "Adam": Algorithm("Adam", {"lr": 0.001}, 7),
    "AdamW": Algorithm("AdamW", {"lr": 0.001}, 7),
}
HUGE = {"SGD_momentum", "RMSprop", "Adam"}  # of 100M, whose cases take longest, only these
QUICK = {("SGD", "mnist"), ("Adam", "mnist")}
BARS: dict[tuple[str, str], dict[str, float]] = {
    ("Adam", "xor"): {"torch": 50},
    ("Adam", "mnist"): {"torch": 5, "fused": 3},
    ("Adam", "11M"): {"best": 1},
    ("Adam", "100M"): {"best": 1},
    ("SGD_momentum", "11M"): {"best": 1},
    ("SGD_momentum", "100M"): {"best": 1},
    ("RMSprop", "mnist"): {"best": 5},
    ("RMSprop", "11M"): {"best": 3},
    ("RMSprop", "100M"): {"best": 2.5},
}
AT_BANDWIDTH = set(product(("Adam", "SGD_momentum"), ("11M", "100M")))


def setup(
    lib: Library, dtype: torch.dtype, *, cls: str, arguments: dict[str, Any], shapes: Shapes, **variant: bool
) -> Work:
    source = Source(dtype)
    params = [source.normal(*shape, grad=True) for shape in shapes]
    grads = [source.normal(*shape) for shape in shapes]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    optimizer = getattr(lib.optim, cls)(params, **arguments, **variant)

    def check() -> list[Tensor]:
        # Gradients that change from step to step: constant ones would let Adam with any betas pass.
        for scale in (1.0, -0.5, 2.0, 1.0):
            for p, g in zip(params, grads, strict=True):
                p.grad = g * scale
            optimizer.step()
        return params

    return Work(optimizer.step, check)


def case(op: str, model: str) -> Case:
    algorithm = ALGORITHMS[op]
    shapes, tier = MODELS[model]
    build = partial(setup, cls=algorithm.cls, arguments=algorithm.arguments)
    return Case(
        "optimizer",
        op,
        model,
        "step",
        partial(build, shapes=shapes),
        bytes=4.0 * algorithm.floats * sum(torch.Size(shape).numel() for shape in shapes),
        tier="quick" if (op, model) in QUICK else tier,
        bars=BARS.get((op, model), {}),
        share_bars={1: 0.8, 2: 0.8} if (op, model) in AT_BANDWIDTH else {},
        rivals={name: {name: True} for name in algorithm.variants},
        check=partial(build, shapes=quartered(shapes)) if model == "100M" else None,
    )


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
        for model in ("mnist", "11M"):
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
    for op, model in product(ALGORITHMS, MODELS):
        if model != "100M" or op in HUGE:
            yield case(op, model)
    yield from clip_cases()
