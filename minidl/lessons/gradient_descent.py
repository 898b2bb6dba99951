"""Gradient descent: walk down a mountain in the fog, where all you feel is the slope under your feet.

The height is the loss of a line y = wx + b for four points of y = 2x + 1; where you stand is w and b. Each step
goes against the slope, w <- w - η dL/dw, and b alike. First three steps by hand, beside those of the library's
optimizer. Then four walks from the same place, for a learning rate η that is too small, one that fits, one
that overshoots the valley at each step, and one so large that each step ends higher than it began.
"""

import time
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from minidl import plot
from minidl.lessons import common

DEFAULTS = common.Defaults(epochs=40, quick_epochs=40, flags=("epochs", "compiled"))
X = (-3.0, -1.0, 1.0, 3.0)
LOWEST = (2.0, 1.0)  # w and b of the line through the points
# The slope along w changes by 2 * mean(x^2) = 10 where w changes by 1. A step of more than 2 / 10 times the slope
# then lands on the other side of the valley, and higher.
RATES = {"crawls": 0.005, "fits": 0.08, "overshoots": 0.19, "diverges": 0.21}
ROUNDING = 1e-6  # float32 has seven digits


def make_model(nn: Any) -> torch.nn.Linear:
    return nn.Linear(1, 1)


def by_hand(w: float, b: float, lr: float, steps: int) -> list[tuple[float, float, float, float]]:
    """(w, dL/dw, b, dL/db) before each step and after the last, with nothing but arithmetic."""
    rows = []
    for _ in range(steps + 1):
        errors = [w * x + b - (LOWEST[0] * x + LOWEST[1]) for x in X]
        # L is the mean of error^2. The chain rule: 2 * error, times what the error changes by where w or b does.
        dw = sum(2 * error * x for error, x in zip(errors, X, strict=True)) / len(X)
        db = sum(2 * error for error in errors) / len(X)
        rows.append((w, dw, b, db))
        w = w - lr * dw
        b = b - lr * db
    return rows


def descend(
    backend: SimpleNamespace, args: Namespace, start: tuple[float, float], lr: float, steps: int
) -> Tensor:
    """The walk (steps + 1, 3) of the library's optimizer: w, b and the loss there, in float64."""
    x = torch.tensor(X, device=args.device).unsqueeze(1)
    y = LOWEST[0] * x + LOWEST[1]
    model = make_model(backend.nn).to(args.device)
    with torch.no_grad():
        model.weight.fill_(start[0])
        model.bias.fill_(start[1])
    criterion = backend.nn.MSELoss()
    optimizer = backend.optim.SGD(model.parameters(), lr=lr)
    compiled = common.compiled(args, model, criterion, optimizer)
    walk = []
    for _ in range(steps + 1):
        place = model.weight.item(), model.bias.item()
        if compiled:
            loss = compiled(x, y)
        else:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
        walk.append((*place, loss.item()))
    return torch.tensor(walk, dtype=torch.float64)


def crossings(w: Tensor) -> int:
    """How often a walk crosses the floor of the valley, as long as it is more than a thousandth away from it."""
    off = w - LOWEST[0]
    off = off[off.abs() > 1e-3]
    return int((off[1:] * off[:-1] < 0).sum())


def ending(walk: Tensor) -> str:
    """What a walk did: one of the names of RATES."""
    w, _, loss = walk.T
    if not loss[-1] < loss[0]:
        return "diverges"
    if loss[-1] > 0.01 * loss[0]:
        return "crawls"
    return "overshoots" if crossings(w) > 5 else "fits"


def show(rows: list[tuple[float, float, float, float]], walk: Tensor) -> float:
    """Print the steps by hand beside the library's, and return the largest difference between them."""
    print(f"three steps by hand, η = {RATES['fits']}, and where optim.SGD stands:")
    w, dw, b, db = rows[0]
    print(f"  w <- w - η dL/dw = {w:.5f} - {RATES['fits']} * ({dw:.4f}) = {rows[1][0]:.5f}")
    print(f"  b <- b - η dL/db = {b:.5f} - {RATES['fits']} * ({db:.4f}) = {rows[1][2]:.5f}")
    print("  step        w    dL/dw    optim's w         b    dL/db    optim's b")
    for step, ((w, dw, b, db), (its_w, its_b, _)) in enumerate(zip(rows, walk.tolist(), strict=True)):
        print(f"  {step:4} {w:8.5f} {dw:8.4f}     {its_w:8.5f}  {b:8.5f} {db:8.4f}     {its_b:8.5f}")
    return max(
        abs(hand - its) / max(1.0, abs(hand))
        for row, place in zip(rows, walk.tolist(), strict=True)
        for hand, its in zip(row[::2], place[:2], strict=True)
    )


def landscape(backend: SimpleNamespace, device: torch.device) -> plot.Surface:
    """The loss for each w and b around the lowest point."""
    w = torch.linspace(LOWEST[0] - 3, LOWEST[0] + 3, 121)
    b = torch.linspace(LOWEST[1] - 5, LOWEST[1] + 5, 121)
    x = torch.tensor(X)
    prediction = w[:, None, None] * x + b[None, :, None]  # (121, 121, 4): each point, for each w and b
    truth = (LOWEST[0] * x + LOWEST[1]).expand_as(prediction)
    losses = backend.F.mse_loss(prediction.to(device), truth.to(device), reduction="none").mean(dim=2).cpu()
    return plot.Surface(b, w, losses, LOWEST[::-1], "b", "w")


def run(args: Namespace) -> common.Result:
    backend = common.backend(args.backend)
    torch.manual_seed(args.seed)

    # Somewhere on the mountain: the seed chooses the side and the distance.
    side = torch.randint(2, (2,)) * 2 - 1
    away = torch.tensor([1.0, 3.0]) + torch.tensor([0.5, 1.0]) * torch.rand(2)
    w, b = (torch.tensor(LOWEST) + side * away).tolist()

    error = show(by_hand(w, b, RATES["fits"], 3), descend(backend, args, (w, b), RATES["fits"], 3))

    started = time.perf_counter()
    walks = {name: descend(backend, args, (w, b), lr, args.epochs) for name, lr in RATES.items()}
    seconds = time.perf_counter() - started

    endings = {name: ending(walk) for name, walk in walks.items()}
    print(f"from w = {w:.3f}, b = {b:.3f}, loss {walks['fits'][0, 2]:.3f}, {args.epochs} steps:")
    for name, walk in walks.items():
        end_w, end_b, loss = walk[-1].tolist()
        print(
            f"  η = {RATES[name]:<5}  {endings[name]:10}  w = {end_w:9.4f}, b = {end_b:7.4f}, loss {loss:9.3g}, "
            f"{crossings(walk[:, 0]):2} times across the valley"
        )

    with common.pictures(args) as save:
        surface = landscape(backend, args.device)
        names = {name: f"η = {lr}: {name}" for name, lr in RATES.items()}
        paths = {names[name]: walk[:, [1, 0]] for name, walk in walks.items()}
        title = common.title(args, f"Four learning rates, {args.epochs} steps each, seen from above")
        save("paths", plot.descents(surface, paths, title, (4.3, 2.9)))
        paths = {names[name]: walks[name][:, [1, 0, 2]] for name in ("fits", "overshoots", "diverges")}
        title = common.title(args, "The loss is a mountain, seen from the side")
        save("mountain", plot.mountain(surface, paths, title))
        steps = list(range(args.epochs + 1))
        losses = {names[name]: (steps, walk[:, 2].tolist()) for name, walk in walks.items()}
        panel = plot.Panel("", "step", "mean squared error (log scale)", losses, log=True)
        save("loss", plot.curves([panel], common.title(args, "The loss on the way")))

    claims = {"three steps by hand end where the library's end, but for rounding": error <= ROUNDING}
    claims |= {f"η = {lr} {name}": endings[name] == name for name, lr in RATES.items()}
    target = (
        "the steps by hand are the library's, and each of the four learning rates does what its name says"
    )
    return common.Result(walks["fits"][-1, 2].item(), None, seconds, target, common.holds(claims))


def main(argv: list[str] | None = None) -> int:
    return common.command("gradient-descent", __doc__, run, DEFAULTS, argv)


if __name__ == "__main__":
    from minidl.cli import run_as_module

    raise SystemExit(run_as_module("gradient-descent"))
