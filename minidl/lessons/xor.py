"""XOR: true where exactly one of two inputs is true.

No straight line separates the answers, so the network needs a hidden layer: 2 inputs, 4 ReLUs, 1 sigmoid.
The picture shows the boundary that it bends over the epochs. Some seeds start badly: a ReLU that is off for
every input gets no gradient and stays off. The lesson says when that happened, and what share of 100 seeds
learns.
"""

import time
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from minidl import TrainStep, plot
from minidl.lessons import common

DEFAULTS = common.Defaults(epochs=2000, quick_epochs=500, lr=0.05, batch_size=0)
INPUTS = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
ANSWERS = [[0.0], [1.0], [1.0], [0.0]]


def make_model(nn: Any) -> torch.nn.Sequential:
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1), nn.Sigmoid())


def share_of_seeds(backend: SimpleNamespace, args: Namespace, seeds: int) -> tuple[int, int]:
    """Train one model a seed, all at once: how many learn XOR, and how many end with every hidden ReLU off.

    Each parameter of all the models is stacked into one tensor, (seeds, ...). The losses are summed, so each
    model gets the gradient of its own loss, and Adam treats every number by itself: each model trains as it
    would alone, in a hundredth of the steps.
    """
    F, matmul = backend.F, backend.matmul
    starts = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        starts.append(make_model(backend.nn).state_dict())
    stacked = {key: torch.stack([start[key] for start in starts]).to(args.device) for key in starts[0]}
    w1 = stacked["0.weight"].mT.contiguous().requires_grad_()  # (seeds, 2, 4)
    b1 = stacked["0.bias"].unsqueeze(1).requires_grad_()
    w2 = stacked["2.weight"].mT.contiguous().requires_grad_()  # (seeds, 4, 1)
    b2 = stacked["2.bias"].unsqueeze(1).requires_grad_()
    x = torch.tensor(INPUTS, device=args.device)
    y = torch.tensor(ANSWERS, device=args.device).expand(seeds, 4, 1).contiguous()
    optimizer = backend.optim.Adam([w1, b1, w2, b2], lr=args.lr)

    for _ in common.bar(range(args.epochs), f"{seeds} seeds"):
        optimizer.zero_grad()
        hidden = F.relu(matmul(x, w1) + b1)
        prediction = F.sigmoid(matmul(hidden, w2) + b2)
        loss = F.binary_cross_entropy(prediction, y, reduction="sum") / 4
        loss.backward()
        optimizer.step()

    right = (prediction.round() == y).flatten(1).all(dim=1)
    dead = (hidden == 0).flatten(1).all(dim=1)
    return int(right.sum()), int(dead.sum())


def share_one_by_one(backend: SimpleNamespace, args: Namespace, seeds: int) -> tuple[int, int]:
    """The same counts from one model that learns, is looked at, and starts again with the next seed.

    Compiled, a whole training is a native loop so short that a hundred of them need no trick.
    """
    x, y = torch.tensor(INPUTS), torch.tensor(ANSWERS)
    model = make_model(backend.nn)
    optimizer = backend.optim.Adam(model.parameters(), lr=args.lr)
    step = TrainStep(model, backend.nn.BCELoss(), optimizer)
    learned = dead = 0
    for seed in common.bar(range(seeds), f"{seeds} seeds"):
        torch.manual_seed(seed)
        for layer in model:
            if isinstance(layer, torch.nn.Linear):
                layer.reset_parameters()
        for state in optimizer.state.values():  # set to zero, not cleared: the plan that knows it stays
            for tensor in state.values():
                tensor.zero_()
        step.fit(x, y, epochs=args.epochs, shuffle=False)
        with torch.no_grad():
            learned += bool((model(x).round() == y).all())
            dead += bool((model[:2](x) == 0).all())
    return learned, dead


def boundary(model: torch.nn.Module, device: torch.device) -> Tensor:
    """The model's answers on a grid over [-0.5, 1.5] x [-0.5, 1.5]: a row for each second input."""
    steps = torch.linspace(-0.5, 1.5, 101, device=device)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    with torch.no_grad():
        return model(torch.stack([columns, rows], dim=-1).reshape(-1, 2)).reshape(101, 101).cpu()


def run(args: Namespace) -> common.Result:
    backend = common.backend(args.backend)
    nn, optim = backend.nn, backend.optim
    torch.manual_seed(args.seed)

    x = torch.tensor(INPUTS, device=args.device)
    y = torch.tensor(ANSWERS, device=args.device)

    model = make_model(nn).to(args.device)
    criterion = nn.BCELoss()
    optimizer = optim.Adam(model.parameters(), lr=args.lr)

    compiled = common.compiled(args, model, criterion, optimizer)
    losses, snapshots = [], [(0, boundary(model, args.device))]
    started = time.perf_counter()
    for epoch in common.bar(range(1, args.epochs + 1), "epochs"):
        if compiled:
            loss = compiled(x, y)
        else:
            optimizer.zero_grad()
            prediction = model(x)
            loss = criterion(prediction, y)
            loss.backward()
            optimizer.step()

        losses.append(loss.item())
        if epoch in (10, 25, 50, 100) and epoch < args.epochs:
            snapshots.append((epoch, boundary(model, args.device)))
        if epoch % max(1, args.epochs // 10) == 0:
            common.say(f"epoch {epoch:5}/{args.epochs}  loss {losses[-1]:.5f}")
    seconds = time.perf_counter() - started

    with torch.no_grad():
        prediction = model(x)
        off = int((model[:2](x) == 0).all(dim=0).sum())  # hidden units that no input switches on
    for (a, b), output, (answer,) in zip(INPUTS, prediction.flatten().tolist(), ANSWERS, strict=True):
        print(f"{a:.0f} xor {b:.0f} = {output:.4f}, rounded {output:.0f} (should be {answer:.0f})")
    accuracy = (prediction.round() == y).float().mean().item()
    print(f"hidden ReLUs that are off for all four inputs: {off} of 4")
    if accuracy < 1:
        if off == 4:
            print(f"seed {args.seed} died: no hidden ReLU is on, so no gradient reaches the first layer")
        else:
            print(f"seed {args.seed} is stuck: every small step would make the loss larger")
        print("another start may learn: try --seed 0")

    seeds = 20 if args.quick else 100
    share = share_one_by_one if compiled else share_of_seeds
    learned, dead = share(backend, args, seeds)
    stuck = seeds - learned - dead
    print(f"of the seeds 0 to {seeds - 1}, {learned} learn XOR, {dead} died, {stuck} are stuck half-way")

    with common.pictures(args) as save:
        save("loss", plot.loss_curve(losses, common.title(args, "Loss"), ylabel="binary cross entropy"))
        snapshots.append((args.epochs, boundary(model, args.device)))
        title = common.title(args, "Decision boundary over epochs")
        save("boundary", plot.decision_boundary(snapshots, (-0.5, 1.5), x.cpu(), y.flatten().cpu(), title))

    target = "all four answers right and the loss below 0.01"
    reached = accuracy == 1 and losses[-1] < 0.01
    return common.Result(losses[-1], accuracy, seconds, target, reached)


def main(argv: list[str] | None = None) -> int:
    return common.command("xor", __doc__, run, DEFAULTS, argv)


if __name__ == "__main__":
    from minidl.cli import run_as_module

    raise SystemExit(run_as_module("xor"))
