"""The whole eager training step of the lessons' models: zero_grad, forward, loss, backward, step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import minidl

from .harness import Case, Library, Source, Tier, Work

RIVALS: dict[str, dict[str, bool]] = {"fused": {"fused": True}, "compiled": {"fused": True, "compiled": True}}
STILL = 1e-12  # a learning rate that leaves the model where it is: every timed step does the same work


class Model(NamedTuple):
    net: Callable[[Any], Any]  # of a namespace like torch.nn
    loss: str
    optimizer: str
    lr: float
    data: Callable[[Source], tuple[Tensor, Tensor]]
    bars: dict[str, float]
    tier: Tier = "quick"
    rivals: tuple[str, ...] = ("fused",)
    converted: bool = False  # built from torch.nn and handed to minidl.convert, not from minidl.nn


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


def cnn_net(nn: Any) -> Any:
    from minidl.lessons.cnn import make_model

    return make_model(nn)


class Block(torch.nn.Module):
    """ResNet's basic block (He et al., arXiv:1512.03385, figure 2)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        nn = torch.nn
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18(nn: Any) -> Any:
    widths, layers = (64, 128, 256, 512), []
    for i, width in enumerate(widths):
        layers += [Block(widths[max(i - 1, 0)], width, 1 + (i > 0)), Block(width, width, 1)]
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def photographs(source: Source) -> tuple[Tensor, Tensor]:
    return source.normal(8, 3, 64, 64), source.classes(8, count=10)


MODELS = {
    "linear-regression": Model(lambda nn: nn.Linear(1, 1), "MSELoss", "SGD", 0.01, line, {"torch": 1.3}),
    "xor": Model(xor_net, "BCELoss", "Adam", 0.05, xor, {"torch": 2.5, "fused": 1.7}),
    # Not quick: half of it is torch's matrix product, and that is another one on each machine.
    "mnist": Model(
        mnist_net, "CrossEntropyLoss", "Adam", 0.001, digits, {"torch": 3.0, "fused": 1.7}, "default"
    ),
    "cnn": Model(
        cnn_net,
        "CrossEntropyLoss",
        "Adam",
        0.001,
        digits,
        {"torch": 1.5, "fused": 1.5, "compiled": 1.0},
        "default",
        ("fused", "compiled"),
    ),
    "resnet18": Model(
        resnet18, "CrossEntropyLoss", "SGD", 0.01, photographs, {"torch": 1.0}, "default", (), converted=True
    ),
}


def training(
    lib: Library, dtype: torch.dtype, model: Model, lr: float, compiled: bool = False, **variant: bool
) -> tuple[Any, Callable[[], Tensor]]:
    """A model that starts from the same weights in every library, and what trains it one step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = model.net(torch.nn)
    net = start if model.converted else model.net(lib.nn)
    net.load_state_dict(start.state_dict())
    if model.converted and lib.nn is not torch.nn:
        net = minidl.convert(net)
    net = net.to(dtype)
    forward = torch.compile(net) if compiled else net
    x, target = model.data(Source(dtype))
    loss_fn = getattr(lib.nn, model.loss)()
    optimizer = getattr(lib.optim, model.optimizer)(net.parameters(), lr=lr, **variant)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = loss_fn(forward(x), target)
        loss.backward()
        optimizer.step()
        return loss

    return net, step


def setup(lib: Library, dtype: torch.dtype, *, model: Model, **variant: bool) -> Work:
    def check() -> list[Tensor]:
        # Losses and the first gradients, not weights: Adam turns a gradient that is zero but for its rounding
        # into a whole step, in torch as well.
        net, step = training(lib, dtype, model, model.lr, **variant)
        for module in net.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # each library draws its own mask
        first = step()
        if (
            model.converted
        ):  # so many ReLUs that some flip under rounding, in torch as well: gradients then differ
            return [first]
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
            rivals={name: RIVALS[name] for name in model.rivals},
        )
