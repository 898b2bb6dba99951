"""Linear regression: learn y = 2x + 1 from the four points x = 1, 2, 3, 4.

One weight, one bias, and all of deep learning's loop: predict, measure the error, ask for its slope, take a
small step downhill. After the course's 1000 epochs the line is nearly right; the lesson then goes on until
weight, bias and the prediction for x = 5 agree with 2, 1 and 11 to three decimals.
"""

import math
import time
from argparse import Namespace
from typing import Any

import torch

from minidl import plot
from minidl.lessons import common

DEFAULTS = common.Defaults(epochs=1000, quick_epochs=200, lr=0.01, batch_size=0)
EXPECTED = (2.0, 1.0, 11.0)  # weight, bias, prediction for x = 5
PATIENCE = 20_000  # epochs after which it gives up


def make_model(nn: Any) -> torch.nn.Linear:
    return nn.Linear(1, 1)


def learned(model: torch.nn.Linear, device: torch.device) -> tuple[float, float, float]:
    """Weight, bias and the prediction for x = 5."""
    with torch.no_grad():
        five = model(torch.tensor([[5.0]], device=device))
    return model.weight.item(), model.bias.item(), five.item()


def agrees(values: tuple[float, ...]) -> bool:
    return all(round(value, 3) == expected for value, expected in zip(values, EXPECTED, strict=True))


def show(epoch: int, values: tuple[float, ...]) -> None:
    common.say(f"after {epoch} epochs, beside the course's values:")
    names = ("weight", "bias", "prediction for x = 5")
    for name, value, expected in zip(names, values, EXPECTED, strict=True):
        common.say(f"  {name:20} {value:7.3f}   {expected:7.3f}")


def run(args: Namespace) -> common.Result:
    backend = common.backend(args.backend)
    nn, optim = backend.nn, backend.optim
    torch.manual_seed(args.seed)

    x = torch.tensor([[1.0], [2.0], [3.0], [4.0]], device=args.device)
    y = 2 * x + 1

    model = make_model(nn).to(args.device)
    criterion = nn.MSELoss()
    optimizer = optim.SGD(model.parameters(), lr=args.lr)

    compiled = common.compiled(args, model, criterion, optimizer)
    losses, lines = [], [(0, *learned(model, args.device))]
    started = time.perf_counter()
    for epoch in common.bar(range(1, args.epochs + PATIENCE + 1), "epochs"):
        if compiled:
            loss = compiled(x, y)
        else:
            optimizer.zero_grad()
            prediction = model(x)
            loss = criterion(prediction, y)
            loss.backward()
            optimizer.step()

        losses.append(loss.item())
        if epoch in (1, 2, 5, 20, 100, 500):
            lines.append((epoch, *learned(model, args.device)))
        if epoch == args.epochs:
            show(epoch, learned(model, args.device))
        # Looking costs a forward pass, so from here on only now and then.
        if epoch >= args.epochs and epoch % 10 == 0 and agrees(learned(model, args.device)):
            break
        if not math.isfinite(losses[-1]):
            break
    seconds = time.perf_counter() - started

    values = learned(model, args.device)
    if epoch != args.epochs:
        show(epoch, values)
    with common.pictures(args) as save:
        save("loss", plot.loss_curve(losses, common.title(args, "Loss"), ylabel="mean squared error"))
        points = list(zip(x.flatten().tolist(), y.flatten().tolist(), strict=True))
        lines.append((epoch, *values))
        save("line", plot.line_fit(points, lines, common.title(args, "The line as it learns")))

    target = "weight, bias and prediction agree with 2.0, 1.0 and 11.0 to three decimals"
    return common.Result(losses[-1], None, seconds, target, agrees(values))


def main(argv: list[str] | None = None) -> int:
    return common.command("linear-regression", __doc__, run, DEFAULTS, argv)


if __name__ == "__main__":
    from minidl.cli import run_as_module

    raise SystemExit(run_as_module("linear-regression"))
