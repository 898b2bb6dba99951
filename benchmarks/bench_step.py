"""The whole eager training step of the lessons' models: zero_grad, forward, loss, backward, step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .harness import Case, Library, Source, Tier, Work

STILL = 1e-12  # a learning rate that leaves the model where it is: every timed step does the same work


class Model(NamedTuple):
    net: Callable[[Any], Any]  # of a namespace like torch.nn
    loss: str
    optimizer: str
    lr: float
    data: Callable[[Source], tuple[Tensor, Tensor]]
    bars: dict[str, float]
    tier: Tier = "quick"


def line(source: Source) -> tuple[Tensor, Tensor]:
    x = torch.arange(1, 5, dtype=source.dtype).reshape(4, 1)
    return x, 2 * x + 1


def xor(source: Source) -> tuple[Tensor, Tensor]:
    x = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=source.dtype)
    return x, torch.tensor([[0], [1], [1], [0]], dtype=source.dtype)


def digits(source: Source) -> tuple[Tensor, Tensor]:
    return source.uniform(64, 1, 28, 28), source.classes(64, count=10)


def xor_net(nn: Any) -> Any:
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1), nn.Sigmoid())


def mnist_net(nn: Any) -> Any:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )


MODELS = {
    "linear-regression": Model(lambda nn: nn.Linear(1, 1), "MSELoss", "SGD", 0.01, line, {"torch": 1.3}),
    "xor": Model(xor_net, "BCELoss", "Adam", 0.05, xor, {"torch": 2.5, "fused": 1.7}),
    # Not quick: half of it is torch's matrix product, and that is another one on each machine.
    "mnist": Model(
        mnist_net, "CrossEntropyLoss", "Adam", 0.001, digits, {"torch": 3.0, "fused": 1.7}, "default"
    ),
}


def training(
    lib: Library, dtype: torch.dtype, model: Model, lr: float, **variant: bool
) -> tuple[Any, Callable[[], Tensor]]:
    """A model that starts from the same weights in every library, and what trains it one step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = model.net(torch.nn)
    net = model.net(lib.nn).to(dtype)
    net.load_state_dict(start.state_dict())
    x, target = model.data(Source(dtype))
    loss_fn = getattr(lib.nn, model.loss)()
    optimizer = getattr(lib.optim, model.optimizer)(net.parameters(), lr=lr, **variant)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = loss_fn(net(x), target)
        loss.backward()
        optimizer.step()
        return loss

    return net, step


def setup(lib: Library, dtype: torch.dtype, *, model: Model, **variant: bool) -> Work:
    def check() -> list[Tensor]:
        # Losses and the first gradients, not weights: Adam turns a gradient that is zero but for its rounding
        # into a whole step, in torch as well.
        net, step = training(lib, dtype, model, model.lr, **variant)
        first = step()
        grads = [p.grad.clone() for p in net.parameters()]
        return [first, *grads, step(), step()]

    return Work(training(lib, dtype, model, STILL, **variant)[1], check)


def cases() -> Iterator[Case]:
    for name, model in MODELS.items():
        yield Case(
            "step",
            name,
            model.optimizer,
            "step",
            partial(setup, model=model),
            tier=model.tier,
            bars=model.bars,
            rivals={"fused": {"fused": True}},
        )
