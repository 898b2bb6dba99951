"""A simple classifier: is the sum of a point's coordinates positive?

The course's SimpleNN (2-4-1) learns it from 100 random points, fed in batches of 10 by a DataLoader. It is
then asked about 1000 points that it has never seen.
"""

import time
from argparse import Namespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from minidl import plot
from minidl.lessons import common

DEFAULTS = common.Defaults(epochs=100, quick_epochs=40, lr=0.01, batch_size=10)


def make_model(nn: Any) -> torch.nn.Module:
    class SimpleNN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(2, 4)
            self.relu = nn.ReLU()
            self.fc2 = nn.Linear(4, 1)
            self.sigmoid = nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.fc1(x))
            return self.sigmoid(self.fc2(x))

    return SimpleNN()


def random_points(count: int) -> tuple[Tensor, Tensor]:
    """Points (count, 2) of a normal distribution, and their labels (count, 1): 1.0 where x0 + x1 > 0."""
    x = torch.randn(count, 2)
    return x, (x.sum(dim=1, keepdim=True) > 0).float()


def run(args: Namespace) -> common.Result:
    backend = common.backend(args.backend)
    nn, optim = backend.nn, backend.optim
    torch.manual_seed(args.seed)

    x, y = random_points(100)
    loader = DataLoader(TensorDataset(x, y), batch_size=args.batch_size, shuffle=True)

    model = make_model(nn).to(args.device)
    print(model)
    criterion = nn.BCELoss()
    optimizer = optim.Adam(model.parameters(), lr=args.lr)

    compiled = common.compiled(args, model, criterion, optimizer)
    losses = []
    started = time.perf_counter()
    for epoch in common.bar(range(1, args.epochs + 1), "epochs"):
        total = 0.0
        for batch_x, batch_y in loader:
            batch_x, batch_y = batch_x.to(args.device), batch_y.to(args.device)
            if compiled:
                loss = compiled(batch_x, batch_y)
            else:
                optimizer.zero_grad()
                prediction = model(batch_x)
                loss = criterion(prediction, batch_y)
                loss.backward()
                optimizer.step()
            total += loss.item() * len(batch_x)

        losses.append(total / len(x))
        if epoch % max(1, args.epochs // 10) == 0:
            common.say(f"epoch {epoch:3}/{args.epochs}  loss {losses[-1]:.4f}")
    seconds = time.perf_counter() - started

    for name, parameter in model.named_parameters():
        numbers = ", ".join(f"{number:.3f}" for number in parameter.flatten().tolist())
        print(f"{name} {tuple(parameter.shape)}: {numbers}")
    new_x, new_y = random_points(1000)
    with torch.no_grad():
        prediction = model(new_x.to(args.device)).cpu()
    accuracy = (prediction.round() == new_y).float().mean().item()
    print(f"right about {accuracy:.1%} of 1000 new points")

    with common.pictures(args) as save:
        save("loss", plot.loss_curve(losses, common.title(args, "Loss"), ylabel="binary cross entropy"))
        steps = torch.linspace(-3.5, 3.5, 101, device=args.device)
        rows, columns = torch.meshgrid(steps, steps, indexing="ij")
        with torch.no_grad():
            grid = model(torch.stack([columns, rows], dim=-1).reshape(-1, 2)).reshape(101, 101).cpu()
        title = common.title(args, "Learned from 100 points")
        save("boundary", plot.decision_boundary([(args.epochs, grid)], (-3.5, 3.5), x, y.flatten(), title))

    wanted = 0.9 if args.quick else 0.95
    target = f"at least {wanted:.0%} of 1000 new points right"
    return common.Result(losses[-1], accuracy, seconds, target, accuracy >= wanted)


def main(argv: list[str] | None = None) -> int:
    return common.command("simple-classifier", __doc__, run, DEFAULTS, argv)


if __name__ == "__main__":
    from minidl.cli import run_as_module

    raise SystemExit(run_as_module("simple-classifier"))
