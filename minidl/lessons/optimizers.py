"""Optimizers: SGD, Momentum, RMSProp, Adam and AdamW, from the same start down the same ravine.

Where one input is large and another small, the loss is a ravine: steep across, nearly flat along its floor. A
learning rate that the walls bear makes SGD zigzag between them and crawl along the floor. Momentum adds up what
successive slopes agree on and cancels what they do not; RMSProp divides each slope by its usual size; Adam does
both; AdamW shrinks the weights a little besides. Then the five train the mnist lesson's network, all from the
same start and on the same batches.
"""

import time
from argparse import Namespace
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from minidl import data, plot
from minidl.lessons import common, mnist

DEFAULTS = common.Defaults(batch_size=64, flags=("epochs", "batch-size", "data", "data-root", "compiled"))


@dataclass(frozen=True)
class Racer:
    """A class of optim, and its arguments in the ravine and for the network."""

    kind: str
    ravine: dict[str, float]
    network: dict[str, float]


RACERS = {
    "SGD": Racer("SGD", {"lr": 0.097}, {"lr": 0.01}),
    "Momentum": Racer("SGD", {"lr": 0.03, "momentum": 0.9}, {"lr": 0.01, "momentum": 0.9}),
    "RMSProp": Racer("RMSprop", {"lr": 0.1}, {"lr": 0.001}),
    "Adam": Racer("Adam", {"lr": 0.3}, {"lr": 0.001}),
    "AdamW": Racer("AdamW", {"lr": 0.3}, {"lr": 0.001, "weight_decay": 0.5}),
}
INPUTS = ((0.3, 0.0), (0.0, 4.5))  # two examples: the one sees only a small input, the other only a large one
STEPS = 400
GOAL = 0.01  # the loss at which a racer has arrived
EPOCHS = {"mnist": 2, "fashion": 2, "digits": 20, "other": 2}
QUICK_EPOCHS = {"mnist": 1, "fashion": 1, "digits": 15, "other": 1}
IMAGES = 12_800  # that the network trains on, at most: five trainings take five times as long


def make_optimizer(backend: SimpleNamespace, name: str, where: str, parameters: Any) -> torch.optim.Optimizer:
    racer = RACERS[name]
    return getattr(backend.optim, racer.kind)(parameters, **getattr(racer, where))


def race(backend: SimpleNamespace, name: str, start: Tensor, args: Namespace) -> tuple[Tensor, list[float]]:
    """The path (STEPS, 2) of weights (along the ravine, across it) and the losses, in STEPS steps."""
    inputs = torch.tensor(INPUTS, device=args.device)
    answers = torch.zeros(2, 1, device=args.device)  # so the lowest point is (0, 0)
    model = backend.nn.Linear(2, 1, bias=False).to(args.device)
    with torch.no_grad():
        model.weight.copy_(start)
    criterion = backend.nn.MSELoss()
    optimizer = make_optimizer(backend, name, "ravine", model.parameters())
    compiled = common.compiled(args, model, criterion, optimizer)
    path, losses = [], []
    for _ in range(STEPS):
        path.append(model.weight.flatten().tolist())
        if compiled:
            loss = compiled(inputs, answers)
        else:
            optimizer.zero_grad()
            loss = criterion(model(inputs), answers)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    return torch.tensor(path), losses


def arrival(losses: list[float]) -> int:
    """After how many steps the loss is at most GOAL and stays so; the number of losses if it does not."""
    return max((step + 1 for step, loss in enumerate(losses) if not loss <= GOAL), default=0)


def zigzags(across: Tensor) -> int:
    """How often a path crosses the floor of the ravine, as long as it is more than 0.01 away from it."""
    across = across[across.abs() > 0.01]
    return int((across[1:] * across[:-1] < 0).sum())


@dataclass(frozen=True)
class Training:
    """How a training of the network went."""

    losses: Tensor  # of each step
    accuracy: float  # on the test images
    size: float  # the norm of all weights at the end

    def mean(self) -> float:
        """Over all steps: small for who learns early."""
        return self.losses.mean().item()

    def last(self) -> float:
        """The mean of the last ten steps."""
        return self.losses[-10:].mean().item()


def train(backend: SimpleNamespace, name: str, dataset: data.Dataset, args: Namespace) -> Training:
    torch.manual_seed(args.seed)  # each optimizer gets the same start and the same batches
    images = dataset.train_x
    model = mnist.make_model(backend.nn, images[0].numel(), len(dataset.labels)).to(args.device)
    loader = mnist.batches(images, dataset.train_y, args.batch_size)
    criterion = backend.nn.CrossEntropyLoss()
    optimizer = make_optimizer(backend, name, "network", model.parameters())
    compiled = common.compiled(args, model, criterion, optimizer)
    losses = []
    for _ in range(args.epochs):
        if compiled:
            losses += compiled.fit(images, dataset.train_y, batch_size=args.batch_size).flatten().tolist()
            continue
        for x, y in common.bar(loader, name):
            x, y = x.to(args.device), y.to(args.device)
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    predictions = mnist.predict(model, dataset.test_x, args.device)
    accuracy = (predictions == dataset.test_y).float().mean().item()
    with torch.no_grad():
        size = sum(p.square().sum().item() for p in model.parameters()) ** 0.5
    return Training(torch.tensor(losses), accuracy, size)


def ravine(backend: SimpleNamespace, device: torch.device) -> plot.Surface:
    along, across = torch.linspace(-12, 12, 121), torch.linspace(-3, 3, 61)
    rows, columns = torch.meshgrid(across, along, indexing="ij")
    weights = torch.stack([columns.flatten(), rows.flatten()]).to(device)  # (2, 61 * 121)
    predictions = backend.matmul(torch.tensor(INPUTS, device=device), weights)
    losses = backend.F.mse_loss(predictions, torch.zeros_like(predictions), reduction="none").mean(dim=0)
    labels = "weight of the small input", "weight of the large input"
    return plot.Surface(along, across, losses.reshape(61, 121).cpu(), (0.0, 0.0), *labels)


def judge(
    arrivals: dict[str, int], crossings: dict[str, int], trainings: dict[str, Training]
) -> dict[str, bool]:
    """The lesson's claims, and whether they came out."""
    slow, mean = arrivals["SGD"], trainings["SGD"].mean()
    return {
        f"in the ravine, all five arrive within {STEPS} steps": max(arrivals.values()) < STEPS,
        "Momentum, RMSProp, Adam and AdamW each need at most half of SGD's steps": all(
            arrivals[name] <= slow / 2 for name in RACERS if name != "SGD"
        ),
        "Momentum zigzags at most half as often as SGD": crossings["Momentum"] <= crossings["SGD"] / 2,
        "the network's mean loss over all steps is at most 3/4 of SGD's with each of the four": all(
            trainings[name].mean() <= 0.75 * mean for name in RACERS if name != "SGD"
        ),
        "AdamW's weights end at least 2% smaller than Adam's": trainings["AdamW"].size
        <= 0.98 * trainings["Adam"].size,
    }


def run(args: Namespace) -> common.Result:
    backend = common.backend(args.backend)
    dataset = data.load(args.data, args.data_root)
    dataset = replace(dataset, train_x=dataset.train_x[:IMAGES], train_y=dataset.train_y[:IMAGES])
    args.epochs = args.epochs or (QUICK_EPOCHS if args.quick else EPOCHS)[dataset.kind]
    torch.manual_seed(args.seed)

    # High up on a wall, far from the lowest point: the seed chooses the side and the distance.
    start = (torch.randint(2, (2,)) * 2 - 1) * (torch.tensor([9.0, 1.5]) + torch.rand(2))
    started = time.perf_counter()
    races = {name: race(backend, name, start, args) for name in RACERS}
    arrivals = {name: arrival(losses) for name, (_, losses) in races.items()}
    crossings = {name: zigzags(path[:, 1]) for name, (path, _) in races.items()}
    place = ", ".join(f"{weight:.2f}" for weight in start.tolist())
    print(f"the ravine, from ({place}); until the loss stays below {GOAL}:")
    for name, racer in RACERS.items():
        options = ", ".join(f"{key} {value:g}" for key, value in racer.ravine.items())
        print(
            f"  {name:8} {arrivals[name]:4} steps, {crossings[name]:3} times across its floor   ({options})"
        )

    print(f"the network of the mnist lesson, {args.epochs} epochs with {len(dataset.train_x)} images:")
    trainings = {}
    for name, racer in RACERS.items():
        training = trainings[name] = train(backend, name, dataset, args)
        options = ", ".join(f"{key} {value:g}" for key, value in racer.network.items())
        common.say(
            f"  {name:8} mean loss {training.mean():.3f}, at the end {training.last():.3f}, test accuracy "
            f"{training.accuracy:.3f}, norm of the weights {training.size:5.2f}   ({options})"
        )
    seconds = time.perf_counter() - started

    with common.pictures(args) as save:
        paths = {
            f"{name}: {arrivals[name]} steps, {crossings[name]} times across": path[: arrivals[name] + 1]
            for name, (path, _) in races.items()
        }
        title = common.title(args, "Five ways down a ravine")
        save("ravine", plot.descents(ravine(backend, args.device), paths, title, (5.0, 2.4)))
        steps = list(range(STEPS))
        downhill = {name: (steps, losses) for name, (_, losses) in races.items()}
        smooth = {
            name: training.losses.unfold(0, 10, 1).mean(dim=1).tolist()
            for name, training in trainings.items()
        }
        learning = {name: (list(range(10, 10 + len(losses))), losses) for name, losses in smooth.items()}
        panels = (
            plot.Panel("In the ravine", "step", "loss (log scale)", downhill, (1e-5, 100), log=True),
            plot.Panel(
                f"The network, on {dataset.name}", "step", "cross entropy, mean of the last 10", learning
            ),
        )
        save("loss", plot.curves(panels, common.title(args, "Who gets down first?")))

    target = "momentum and its successors are at least twice as fast as SGD in the ravine, and ahead on the network"
    reached = common.holds(judge(arrivals, crossings, trainings))
    return common.Result(trainings["Adam"].last(), trainings["Adam"].accuracy, seconds, target, reached)


def main(argv: list[str] | None = None) -> int:
    return common.command("optimizers", __doc__, run, DEFAULTS, argv)


if __name__ == "__main__":
    from minidl.cli import run_as_module

    raise SystemExit(run_as_module("optimizers"))
