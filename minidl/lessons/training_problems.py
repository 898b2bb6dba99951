"""Training problems: five ways in which training goes wrong, each with what cures it.

A network that learns its examples by heart; one that is too small for them; gradients that vanish on their way
back through many layers, and gradients that explode; steps that get nowhere. Each experiment makes a network ill,
shows the symptom, and trains it again from the same start with one thing changed.
"""

import math
import time
from argparse import Namespace
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from minidl import plot
from minidl.lessons import common
from minidl.plot import CurePanel

DEFAULTS = common.Defaults(epochs=300, quick_epochs=150, lr=0.01, batch_size=0)
DEPTH = 8  # hidden layers of the networks whose gradients vanish
HOPELESS = 1e6  # a training with such a loss is given up
HEALTHY = 0.5  # a cure's number is at most this share of the ill one's

# What an experiment returns: the number by which each variant is judged, the ill one's first, what that number is,
# and the picture. The smaller a number, the better.
Finding = tuple[dict[str, float], str, list[CurePanel]]


def make_model(
    nn: Any, widths: tuple[int, ...] = (2, 64, 64, 1), activation: str = "ReLU", dropout: float = 0.0
) -> torch.nn.Sequential:
    """A linear layer between each two of the widths; after all but the last an activation, and dropout."""
    layers: list[torch.nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), getattr(nn, activation)()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def moons(count: int, noise: float) -> tuple[Tensor, Tensor]:
    """Two half circles that reach into each other: points (count, 2) and classes (count, 1), 0.0 or 1.0."""
    angle, label = math.pi * torch.rand(count), (torch.arange(count) % 2).float()
    side = 1 - 2 * label
    x = torch.stack([side * angle.cos() + label, side * angle.sin() + label / 2], dim=1)
    return x + noise * torch.randn(count, 2), label.unsqueeze(1)


def wave() -> tuple[Tensor, Tensor]:
    """128 points of y = sin 3x from -2 to 2: x and y, (128, 1)."""
    x = torch.linspace(-2, 2, 128).unsqueeze(1)
    return x, (3 * x).sin()


def downhill(
    args: Namespace, model: torch.nn.Module, criterion: Any, optimizer: torch.optim.Optimizer, **options: bool
) -> Callable[[Tensor, Tensor], float]:
    """What takes one step downhill on examples and answers, and returns the loss before it."""
    compiled = common.compiled(args, model, criterion, optimizer, **options)

    def descend(x: Tensor, y: Tensor) -> float:
        if compiled:
            return compiled(x, y).item()
        optimizer.zero_grad()
        loss: Tensor = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return descend


def overfitting(backend: SimpleNamespace, args: Namespace) -> Finding:
    """50 noisy points and thousands of weights: soon the network knows the points instead of the moons."""
    x, y = (part.to(args.device) for part in moons(1000, noise=0.35))
    test_x, test_y = (part.to(args.device) for part in moons(1000, noise=0.35))
    criterion = backend.nn.BCEWithLogitsLoss()
    numbers: dict[str, float] = {}
    training: dict[str, list[float]] = {}
    testing: dict[str, list[float]] = {}
    for name, count, dropout, decay in (
        ("50 points", 50, 0.0, 0.0),
        ("dropout", 50, 0.8, 0.0),
        ("weight decay", 50, 0.0, 2.0),
        ("1000 points", 1000, 0.0, 0.0),
    ):
        torch.manual_seed(args.seed)
        model = make_model(backend.nn, dropout=dropout).to(args.device)
        optimizer = backend.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=decay)
        descend = downhill(args, model, criterion, optimizer)
        training[name], testing[name] = [], []
        for _ in range(args.epochs):
            model.train()  # dropout on
            training[name].append(descend(x[:count], y[:count]))
            model.eval()  # dropout off
            with torch.no_grad():
                testing[name].append(criterion(model(test_x), test_y).item())
        numbers[name] = testing[name][-1]
    panels = [
        CurePanel("On the points it learns from", "epoch", "cross entropy (log scale)", training),
        CurePanel("On 1000 points that it never saw", "epoch", "cross entropy", testing, log=False),
    ]
    return numbers, "test loss", panels


def underfitting(backend: SimpleNamespace, args: Namespace) -> Finding:
    """Two hidden neurons make two bends, and the wave has four: no training mends that."""
    x, y = (part.to(args.device) for part in wave())
    criterion = backend.nn.MSELoss()
    numbers, curves, fits = {}, {}, {"what is asked for": y.flatten().tolist()}
    for name, widths in (
        ("2 neurons", (1, 2, 1)),
        ("64 neurons", (1, 64, 1)),
        ("3 layers of 8", (1, 8, 8, 8, 1)),
    ):
        torch.manual_seed(args.seed)
        model = make_model(backend.nn, widths, "Tanh").to(args.device)
        optimizer = backend.optim.Adam(model.parameters(), lr=args.lr)
        descend = downhill(args, model, criterion, optimizer)
        curves[name] = [descend(x, y) for _ in range(args.epochs)]
        with torch.no_grad():
            fits[name] = model(x).flatten().tolist()
        numbers[name] = curves[name][-1]
    panels = [
        CurePanel("Training", "epoch", "mean squared error (log scale)", curves),
        CurePanel("What it learned", "x", "y", fits, xs=x.flatten().tolist(), log=False),
    ]
    return numbers, "training loss", panels


def make_chain(nn: Any, kind: str, width: int = 16) -> torch.nn.Sequential:
    """DEPTH hidden layers of one kind: "sigmoid", "ReLU", "batch norm" or "skip connections" (with sigmoids)."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(width, width)
            self.sigmoid = nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.sigmoid(self.fc(x))

    layers: list[torch.nn.Module] = [nn.Linear(2, width)]
    for _ in range(DEPTH):
        if kind == "skip connections":
            layers.append(Skip())
            continue
        layers.append(nn.Linear(width, width))
        if kind == "batch norm":
            layers.append(nn.BatchNorm1d(width))
        layers.append(nn.ReLU() if kind == "ReLU" else nn.Sigmoid())
    model = nn.Sequential(*layers, nn.Linear(width, 1))
    if kind == "ReLU":  # the start that keeps the size of what passes: He et al., arXiv:1502.01852
        for weight in matrices(model):
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
    return model


def matrices(model: torch.nn.Module) -> list[Tensor]:
    """The weights of the linear layers, first layer first."""
    return [parameter for parameter in model.parameters() if parameter.dim() == 2]


def vanishing(backend: SimpleNamespace, args: Namespace) -> Finding:
    """A sigmoid's slope is at most 1/4, and the gradient is multiplied by it in each layer on its way back."""
    x, y = (part.to(args.device) for part in moons(200, noise=0.1))
    criterion = backend.nn.BCEWithLogitsLoss()
    numbers: dict[str, float] = {}
    norms: dict[str, list[float]] = {}
    curves: dict[str, list[float]] = {}
    for name in ("sigmoid", "ReLU", "batch norm", "skip connections"):
        torch.manual_seed(args.seed)
        model = make_chain(backend.nn, name).to(args.device)
        optimizer = backend.optim.SGD(model.parameters(), lr=5 * args.lr, momentum=0.9)
        descend = downhill(args, model, criterion, optimizer, keep_grads=True)
        curves[name] = [descend(x, y)]
        norms[name] = [weight.grad.norm().item() for weight in matrices(model) if weight.grad is not None]
        curves[name] += [descend(x, y) for _ in range(1, args.epochs)]
        numbers[name] = curves[name][-1]
    panels = [
        CurePanel(
            "At the first step", "layer (1 is next to the input)", "norm of the gradient (log scale)", norms
        ),
        CurePanel("Training", "epoch", "cross entropy (log scale)", curves),
    ]
    return numbers, "training loss", panels


def exploding(backend: SimpleNamespace, args: Namespace) -> Finding:
    """Weights that are too large multiply on the way back, and one step of that size ruins the network."""
    x, y = (part.to(args.device) for part in wave())
    nn, criterion = backend.nn, backend.nn.MSELoss()
    numbers: dict[str, float] = {}
    norms: dict[str, list[float]] = {}
    curves: dict[str, list[float]] = {}
    for name, lr, most in (
        ("SGD", args.lr, math.inf),
        ("norm clipped to 1", args.lr, 1.0),
        ("learning rate / 50", args.lr / 50, math.inf),
    ):
        torch.manual_seed(args.seed)
        model = make_model(nn, (1, 64, 64, 64, 64, 1)).to(args.device)
        for weight in matrices(model):
            with torch.no_grad():
                nn.init.kaiming_normal_(weight).mul_(1.5)
        optimizer = backend.optim.SGD(model.parameters(), lr=lr)
        curves[name], norms[name], numbers[name] = [], [], math.inf
        for _ in range(args.epochs):  # with --compiled too: gradients are clipped between backward and update
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            if not loss.item() < HOPELESS:
                break
            loss.backward()
            curves[name].append(loss.item())
            norms[name].append(nn.utils.clip_grad_norm_(model.parameters(), most).item())
            optimizer.step()
        else:
            numbers[name] = curves[name][-1]
    panels = [
        CurePanel("The gradient before it is clipped", "step", "norm (log scale)", norms),
        CurePanel("Training", "step", "mean squared error (log scale)", curves),
    ]
    return numbers, "training loss", panels


def slow_convergence(backend: SimpleNamespace, args: Namespace) -> Finding:
    """The learning rate is safe and far too small: Adam finds a step for each weight, a schedule begins with more."""
    x, y = (part.to(args.device) for part in moons(200, noise=0.1))
    optim, criterion = backend.optim, backend.nn.BCEWithLogitsLoss()
    schedulers, large = optim.lr_scheduler, 50 * args.lr
    numbers: dict[str, float] = {}
    rates: dict[str, list[float]] = {}
    curves: dict[str, list[float]] = {}
    for name in ("SGD", "Adam", "cosine schedule", "one cycle, momentum"):
        torch.manual_seed(args.seed)
        model = make_model(backend.nn, (2, 32, 32, 1)).to(args.device)
        optimizer = (optim.Adam if name == "Adam" else optim.SGD)(model.parameters(), lr=args.lr)
        scheduler = schedulers.ConstantLR(optimizer, factor=1)
        if name == "cosine schedule":
            optimizer = optim.SGD(model.parameters(), lr=large)
            scheduler = schedulers.CosineAnnealingLR(optimizer, args.epochs)
        elif name == "one cycle, momentum":
            scheduler = schedulers.OneCycleLR(optimizer, max_lr=large, total_steps=args.epochs + 1)
        descend = downhill(args, model, criterion, optimizer)
        curves[name], rates[name] = [], []
        for _ in range(args.epochs):
            rates[name].append(scheduler.get_last_lr()[0])
            curves[name].append(descend(x, y))
            scheduler.step()
        numbers[name] = curves[name][-1]
    panels = [
        CurePanel("The learning rate", "epoch", "learning rate (log scale)", rates),
        CurePanel("Training", "epoch", "cross entropy (log scale)", curves),
    ]
    return numbers, "training loss", panels


EXPERIMENTS = {
    "overfitting": overfitting,
    "underfitting": underfitting,
    "vanishing-gradients": vanishing,
    "exploding-gradients": exploding,
    "slow-convergence": slow_convergence,
}


def cured(numbers: dict[str, float]) -> bool:
    """Whether each number after the first, the ill one's, is at most HEALTHY times that."""
    ill, *others = numbers.values()
    return all(math.isfinite(number) and number <= HEALTHY * ill for number in others)


def run(args: Namespace) -> common.Result:
    backend = common.backend(args.backend)
    findings, seconds = {}, 0.0
    for problem, experiment in EXPERIMENTS.items():
        torch.manual_seed(args.seed)
        started = time.perf_counter()
        numbers, what, _ = findings[problem] = experiment(backend, args)
        seconds += time.perf_counter() - started
        common.say(f"{problem}: {' '.join((experiment.__doc__ or '').split())}")
        for rank, (name, number) in enumerate(numbers.items()):
            common.say(f"  {'ill ' if rank == 0 else 'cure'}  {name:20} {what} {number:10.4f}")
        common.say(f"  {'cured' if cured(numbers) else 'NOT CURED'}")

    with common.pictures(args) as save:
        for problem, (numbers, what, panels) in findings.items():
            title = common.title(args, f"{problem.replace('-', ' ').capitalize()} and its cures")
            save(problem, plot.cures(panels, numbers, f"{what} at the end", title))

    failed = [problem for problem, (numbers, _, _) in findings.items() if not cured(numbers)]
    target = f"every cure ends at {HEALTHY:.0%} of the ill loss or below" + (
        f" (not in {', '.join(failed)})" if failed else ""
    )
    loss = max(number for numbers, _, _ in findings.values() for number in list(numbers.values())[1:])
    return common.Result(loss, None, seconds, target, not failed)


def main(argv: list[str] | None = None) -> int:
    return common.command("training-problems", __doc__, run, DEFAULTS, argv)


if __name__ == "__main__":
    from minidl.cli import run_as_module

    raise SystemExit(run_as_module("training-problems"))
