"""Losses: one number that says how wrong a prediction is, and a slope that says which way is better.

The right answer is 1. A model that says 0.9 is nearly right: (1 - 0.9)^2 = 0.01. One that says 0.1 is wrong:
(1 - 0.1)^2 = 0.81. The lesson puts MSE, MAE, BCE and CE beside each other, with the gradients that autograd
finds. Then it fits a line to points of which one is far off: MSE squares that error and bends the line towards
it, MAE and Huber do not.
"""

import math
import time
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from minidl import plot
from minidl.lessons import common

DEFAULTS = common.Defaults(epochs=800, quick_epochs=400, lr=0.05, flags=("epochs", "lr", "compiled"))
FORMULAS = {  # p, the share given to the right answer -> the loss, its slope
    "MSE": (lambda p: (1 - p) ** 2, lambda p: -2 * (1 - p)),
    "MAE": (lambda p: 1 - p, lambda p: -1),
    "BCE": (lambda p: -math.log(p), lambda p: -1 / p),
    "CE": (lambda p: -math.log(p), lambda p: p - 1),
}
COURSE = {0.9: 0.01, 0.1: 0.81}  # prediction -> its squared error
TRUTH = (2.0, 1.0)  # weight and bias of the line to be found
OUTLIER = -12.0  # how far the last point is off the line
NEAR, FAR = 0.5, 1.5  # distances from the true line


def losses_of(backend: SimpleNamespace, p: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Each loss (N,) of the predictions p (N,) where 1 is right, and its gradient (N,), from autograd.

    MSE, MAE and BCE take the prediction itself. CE takes a score for each class and turns the scores into shares
    by softmax: here two classes, with scores that give the right one the share p. Its gradient is that of the
    right class's score.
    """
    F = backend.F
    right, first_class = torch.ones_like(p), torch.zeros(len(p), dtype=torch.long, device=p.device)
    scores = torch.stack([p, 1 - p], dim=1).log()
    results = {}
    for name, x, loss_of in (
        ("MSE", p, lambda x: F.mse_loss(x, right, reduction="none")),
        ("MAE", p, lambda x: F.l1_loss(x, right, reduction="none")),
        ("BCE", p, lambda x: F.binary_cross_entropy(x, right, reduction="none")),
        ("CE", scores, lambda x: F.cross_entropy(x, first_class, reduction="none")),
    ):
        x = x.clone().requires_grad_()
        loss = loss_of(x)
        # No loss depends on another prediction, so from their sum each gets its own gradient.
        (slope,) = torch.autograd.grad(loss.sum(), x)
        results[name] = loss.detach().cpu(), slope.reshape(len(p), -1)[:, 0].cpu()
    return results


def largest_error(p: Tensor, results: dict[str, tuple[Tensor, Tensor]]) -> float:
    """How far values and gradients are from the formulas, and the squared errors from the course's numbers.

    Relative to the expected number where that is larger than 1.
    """
    expected, found = [], []
    for name, formulas in FORMULAS.items():
        for formula, numbers in zip(formulas, results[name], strict=True):
            expected += [formula(x) for x in p.tolist()]
            found += numbers.tolist()
    for x, number in zip(p.tolist(), results["MSE"][0].tolist(), strict=True):
        if round(x, 6) in COURSE:
            expected.append(COURSE[round(x, 6)])
            found.append(number)
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(found, expected, strict=True))


def show(p: Tensor, results: dict[str, tuple[Tensor, Tensor]]) -> None:
    print("the right answer is 1; loss and gradient of each prediction:")
    print("  prediction" + "".join(f"{name:>9}    slope" for name in results))
    for row, prediction in enumerate(p.tolist()):
        numbers = [f"{loss[row]:9.4f}{slope[row]:9.4f}" for loss, slope in results.values()]
        print(f"  {prediction:10.2f}" + "".join(numbers))


def make_model(nn: Any) -> torch.nn.Linear:
    return nn.Linear(1, 1)


def points_with_outlier() -> tuple[Tensor, Tensor]:
    """Twenty points near the true line, x and y (20, 1), the last of them far below it."""
    weight, bias = TRUTH
    x = torch.linspace(-2, 2, 20).unsqueeze(1)
    y = weight * x + bias + 0.1 * torch.randn(20, 1)
    y[-1] += OUTLIER
    return x, y


def fit(backend: SimpleNamespace, criterion: Any, x: Tensor, y: Tensor, args: Namespace) -> tuple[Any, float]:
    """Weight and bias of the line fitted under `criterion`, and its last loss."""
    torch.manual_seed(args.seed)  # each fit starts from the same line
    model = make_model(backend.nn).to(args.device)
    optimizer = backend.optim.Adam(model.parameters(), lr=args.lr)
    # MAE's slope does not shrink near its goal, so the steps must: down to a hundredth.
    scheduler = backend.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / args.epochs))
    compiled = common.compiled(args, model, criterion, optimizer)
    for _ in common.bar(range(args.epochs), type(criterion).__name__):
        if compiled:
            loss = compiled(x, y)
        else:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
        scheduler.step()
    return (model.weight.item(), model.bias.item()), loss.item()


def distance(line: tuple[float, float]) -> float:
    """How far a line is from the true one, at most, for x from -2 to 2."""
    weight, bias = line[0] - TRUTH[0], line[1] - TRUTH[1]
    return 2 * abs(weight) + abs(bias)


def run(args: Namespace) -> common.Result:
    backend = common.backend(args.backend)
    nn = backend.nn
    torch.manual_seed(args.seed)

    p = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1], device=args.device)
    results = losses_of(backend, p)
    show(p, results)
    error = largest_error(p, results)

    x, y = points_with_outlier()
    x, y = x.to(args.device), y.to(args.device)
    fits, last = {}, {}
    started = time.perf_counter()
    for name, criterion in (("MSE", nn.MSELoss()), ("MAE", nn.L1Loss()), ("Huber", nn.HuberLoss())):
        fits[name], last[name] = fit(backend, criterion, x, y, args)
    seconds = time.perf_counter() - started

    print(
        f"20 points near y = {TRUTH[0]:g}x + {TRUTH[1]:g}, one of them {-OUTLIER:g} too low; the line fitted under"
    )
    away = {name: distance(line) for name, line in fits.items()}
    for name, (weight, bias) in fits.items():
        print(f"  {name:6} y = {weight:6.3f}x {bias:+.3f}, up to {away[name]:.3f} from the true line")

    with common.pictures(args) as save:
        p = torch.linspace(0.02, 1, 197, device=args.device)[:-1]
        shares, curves = p.tolist(), losses_of(backend, p)
        values, slopes = (
            {name: (shares, numbers[kind].tolist()) for name, numbers in curves.items()} for kind in (0, 1)
        )
        across = "what the model gives the right answer"
        marks = [(x, squared, f"MSE {squared:g}") for x, squared in COURSE.items()]
        panels = (
            plot.Panel(
                "How wrong? (BCE and CE say the same)", across, "loss", values, (-0.1, 4), marks=marks
            ),
            plot.Panel("How steep? (CE: along its score)", across, "gradient", slopes, (-10.5, 0.5)),
        )
        save("curves", plot.curves(panels, common.title(args, "Four losses and their gradients")))
        title = common.title(args, "One outlier bends the line of MSE, not those of MAE and Huber")
        points = x.flatten().tolist(), y.flatten().tolist()
        save("outlier", plot.fitted_lines(*points, len(x) - 1, TRUTH, fits, title))

    claims = {
        "losses and slopes agree with their formulas to within 1e-6": error <= 1e-6,
        f"the lines of MAE and Huber stay within {NEAR} of the true one": max(away["MAE"], away["Huber"])
        <= NEAR,
        f"the line of MSE does not stay within {FAR}": away["MSE"] > FAR,
    }
    target = (
        f"losses to within 1e-6; the outlier moves MSE by more than {FAR}, MAE and Huber by at most {NEAR}"
    )
    return common.Result(last["MAE"], None, seconds, target, common.holds(claims))


def main(argv: list[str] | None = None) -> int:
    return common.command("losses", __doc__, run, DEFAULTS, argv)


if __name__ == "__main__":
    from minidl.cli import run_as_module

    raise SystemExit(run_as_module("losses"))
