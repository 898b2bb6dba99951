"""Training steps of the lessons' models by minidl.TrainStep: one call a step, and the native loop of `fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

import minidl

from .bench_step import MODELS, RIVALS, STILL, Model, digits, line, training, xor
from .harness import Case, Library, Source, Work, minidl_library

EAGER = "eager"  # the rival that is minidl itself, step by step
BATCHES = {1: 8.0, 8: 4.0, 64: 3.0, 512: 1.5}  # of the mnist model, and the bars
WIDTHS = (784, 128, 64, 10)
LOOP = 1000  # steps of a row of `fit`, in which its own call is lost


@dataclass(frozen=True)
class Row:
    """A model of bench_step's, on a batch; `bar` is demanded against each of torch's ways to train it."""

    name: str
    data: Callable[[Source], tuple[Tensor, Tensor]]
    shape: str
    bar: float
    fit_bar: float = 0.0  # 0: no row of `fit`, whose step takes as long as a call
    flops: float = 0.0
    share_bars: Mapping[int, float] = field(default_factory=dict)


def images(source: Source, batch: int) -> tuple[Tensor, Tensor]:
    return source.uniform(batch, 1, 28, 28), source.classes(batch, count=10)


def mnist_flops(batch: int) -> float:
    """Of the products in a step: y and dw of each layer, dx of all but the first."""
    products = [inputs * outputs for inputs, outputs in pairwise(WIDTHS)]
    return 2.0 * batch * (3 * sum(products) - products[0])


ROWS = (
    Row("linear-regression", line, "4x1", 250, 600),
    # Not quick: torch.compile alone takes most of a minute.
    Row("xor", xor, "4x2", 250, 600),
    *(
        Row(
            "mnist",
            partial(images, batch=batch),
            str(batch),
            bar,
            flops=mnist_flops(batch),
            share_bars={1: 0.8, 2: 0.7} if batch == 64 else {},
        )
        for batch, bar in BATCHES.items()
    ),
    Row("cnn", digits, "64", 1.5),
)


def planned(model: Model, lr: float, **options: bool) -> tuple[minidl.TrainStep, Tensor, Tensor]:
    """A TrainStep that starts where the rivals do, and its batch."""
    net, _ = training(minidl_library(), torch.float32, model, lr)
    optimizer = getattr(minidl.optim, model.optimizer)(net.parameters(), lr=lr)
    step = minidl.TrainStep(net, getattr(minidl.nn, model.loss)(), optimizer, **options)
    return step, *model.data(Source(torch.float32))


def without_dropout(net: torch.nn.Module) -> torch.nn.Module:
    """Each library draws its own mask, so a check compares without."""
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return net


def ours(model: Model, fit: bool) -> Work:
    def check() -> list[Tensor]:
        step, x, y = planned(model, model.lr, keep_grads=True)
        net = without_dropout(step.model)
        first = step(x, y)
        grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        if fit:
            return [first, *grads, *step.fit(x, y, epochs=2, shuffle=False).flatten().float()]
        return [first, *grads, step(x, y), step(x, y)]

    step, x, y = planned(model, STILL)
    run = partial(step.fit, x, y, epochs=LOOP, shuffle=False) if fit else partial(step, x, y)
    return Work(run, check)


def theirs(lib: Library, dtype: torch.dtype, model: Model, fit: bool, **variant: bool) -> Work:
    def check() -> list[Tensor]:
        net, step = training(lib, dtype, model, model.lr, **variant)
        without_dropout(net)
        first = step()
        grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        return [first, *grads, step(), step()]

    _, step = training(lib, dtype, model, STILL, **variant)

    def loop() -> None:
        for _ in range(LOOP):
            step()

    return Work(loop if fit else step, check)


def setup(
    lib: Library, dtype: torch.dtype, *, model: Model, fit: bool = False, eager: bool = False, **variant: bool
) -> Work:
    if "compiled" in variant:
        torch._dynamo.reset()  # else torch gives up compiling after the eighth shape, and runs the rest eagerly
    if eager:
        return theirs(minidl_library(), dtype, model, fit)
    if lib.nn is minidl.nn:
        return ours(model, fit)
    return theirs(lib, dtype, model, fit, **variant)


def cases() -> Iterator[Case]:
    for row in ROWS:
        model = MODELS[row.name]._replace(data=row.data)
        case = partial(
            Case,
            "train_step",
            row.name,
            flops=row.flops,
            share_bars=row.share_bars,
            rivals={**RIVALS, EAGER: {EAGER: True}},
        )
        yield case(
            row.shape,
            "step",
            partial(setup, model=model),
            bars={"best": row.bar, EAGER: 1.0},
        )
        if row.fit_bar:
            yield case(
                f"{row.shape}, {LOOP} steps",
                "fit",
                partial(setup, model=model, fit=True),
                bars={"best": row.fit_bar, EAGER: 1.0},
            )
