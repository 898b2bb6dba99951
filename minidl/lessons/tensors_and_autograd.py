"""Tensors and autograd: the two things that all training stands on, as a session at Python's prompt.

A tensor is an array of numbers with a shape, a dtype and a device. Autograd writes down each operation on tensors
that require a gradient, and `backward()` walks back through what was written, by the chain rule. Each snippet
below is printed line by line with what Python answers. Two of the graphs that autograd wrote are then drawn, and a
line is fitted with and without `zero_grad()`.
"""

import ast
import time
from argparse import Namespace
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from minidl import plot
from minidl.lessons import common

DEFAULTS = common.Defaults(flags=())


@dataclass(frozen=True)
class Snippet:
    """Code to run and show, and what some expressions must be afterwards."""

    title: str
    code: str
    expected: dict[str, Any] = field(default_factory=dict)


SNIPPETS = (
    Snippet(
        "a tensor has a shape, a dtype and a device",
        """\
x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], device=device)
x
x.shape
x.dtype
x.device
torch.tensor([1, 2, 3]).dtype  # whole numbers stay whole numbers
x.T.shape
x.reshape(3, 2)
""",
        {
            "tuple(x.shape)": (2, 3),
            "x.dtype": torch.float32,
            "x.device.type == device.type": True,
            "torch.tensor([1, 2, 3]).dtype": torch.int64,
            "tuple(x.T.shape)": (3, 2),
            "x.reshape(3, 2).tolist()": [[1, 2], [3, 4], [5, 6]],
        },
    ),
    Snippet(
        "broadcasting: a dimension of size 1 is repeated as often as the other tensor needs",
        """\
row = torch.tensor([10.0, 20.0, 30.0])  # shape (3,)
column = torch.tensor([[1.0], [2.0]])  # shape (2, 1)
row + column  # shape (2, 3)
""",
        {"(row + column).tolist()": [[11, 21, 31], [12, 22, 32]]},
    ),
    Snippet(
        "y = 3x^2, so dy/dx = 6x: at x = 2 that is 12",
        """\
x = torch.tensor(2.0, requires_grad=True, device=device)
y = 3 * x**2
y.backward()
x.grad
""",
        {"y.item()": 12.0, "x.grad.item()": 12.0},
    ),
    Snippet(
        "a*b + a: two ways lead from y to a, and their slopes add up to b + 1",
        """\
a = torch.tensor(2.0, requires_grad=True, device=device)
b = torch.tensor(3.0, requires_grad=True, device=device)
y = a * b + a
y.grad_fn.name()  # the last operation, ...
[node.name() for node, _ in y.grad_fn.next_functions]  # ... and where its inputs came from
y.backward()
a.grad, b.grad
""",
        {"y.item()": 8.0, "a.grad.item()": 4.0, "b.grad.item()": 2.0},
    ),
    Snippet(
        "xW + b: dx = dy W^T, dW = x^T dy, db = the sum of dy over the rows",
        """\
x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True, device=device)
W = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], requires_grad=True, device=device)
b = torch.tensor([0.5, 0.0, -0.5], requires_grad=True, device=device)
y = matmul(x, W) + b
y
y.sum().backward()  # so dy is 1 everywhere
x.grad
W.grad
b.grad
""",
        {
            "y.tolist()": [[9.5, 12, 14.5], [19.5, 26, 32.5]],
            "x.grad.tolist()": [[6, 15], [6, 15]],
            "W.grad.tolist()": [[4, 4, 4], [6, 6, 6]],
            "b.grad.tolist()": [2, 2, 2],
        },
    ),
    Snippet(
        "a network and its loss: one graph, whose leaves are the parameters (minidl makes Linear and ReLU one node)",
        """\
model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).to(device)
loss = F.mse_loss(model(x.detach()), torch.ones(2, 1, device=device))
loss.grad_fn.name()
loss.backward()
[tuple(p.grad.shape) for p in model.parameters()]
""",
        {"[tuple(p.grad.shape) for p in model.parameters()]": [(3, 2), (3,), (1, 3), (1,)]},
    ),
    Snippet(
        "where no gradient is wanted, nothing is written down",
        """\
with torch.no_grad():
    prediction = model(x)
prediction.requires_grad
model(x).requires_grad
model(x).detach().requires_grad
""",
        {
            "prediction.requires_grad": False,
            "model(x).requires_grad": True,
            "model(x).detach().requires_grad": False,
        },
    ),
    Snippet(
        "backward() adds to the gradient that is there: forget zero_grad(), and 12 becomes 36",
        """\
x = torch.tensor(2.0, requires_grad=True, device=device)
for _ in range(3):
    (3 * x**2).backward()
    print(x.grad.item())
forgotten = x.grad.item()
x.grad = None  # what zero_grad() does
(3 * x**2).backward()
x.grad.item()
""",
        {"forgotten": 36.0, "x.grad.item()": 12.0},
    ),
)


def show(snippet: Snippet, names: dict[str, Any]) -> None:
    """Print and run the code as Python's prompt does, statement by statement, with and into `names`."""
    print(f"\n# {snippet.title}")
    lines = snippet.code.splitlines()
    for statement in ast.parse(snippet.code).body:
        source = lines[statement.lineno - 1 : statement.end_lineno]
        print(">>> " + "\n... ".join(source))
        # "single" is the prompt's own mode: it prints the value of an expression.
        exec(compile("\n".join(source) + "\n", f"<{snippet.title}>", "single"), names)


def mistakes(snippet: Snippet, names: dict[str, Any]) -> list[str]:
    """The expressions that are not what they must be."""
    found = {expression: eval(expression, names) for expression in snippet.expected}
    return [
        f"{expression} is {found[expression]}, not {expected}"
        for expression, expected in snippet.expected.items()
        if found[expression] != expected
    ]


def walk(root: Any, leaves: dict[str, Tensor]) -> plot.Graph:
    """The graph that backward() walks from the node `root`, along `next_functions`, down to the leaves."""
    numbers, labels, edges = {root: 0}, [], []
    waiting = [root]
    for node in waiting:  # grows while it is walked through
        name = node.name().removeprefix("torch::autograd::")
        mine = [leaf for leaf, tensor in leaves.items() if getattr(node, "variable", None) is tensor]
        labels.append("\n".join([name, *mine]))
        for following, _ in node.next_functions:
            if following is None:  # an input that requires no gradient
                continue
            if following not in numbers:
                numbers[following] = len(waiting)
                waiting.append(following)
            edges.append((numbers[node], numbers[following]))
    return plot.Graph(labels, edges)


def make_model(nn: Any) -> torch.nn.Linear:
    return nn.Linear(1, 1)


def fit(backend: SimpleNamespace, args: Namespace, forget: bool) -> list[float]:
    """The losses of 200 steps of the linear-regression lesson, with zero_grad() or without."""
    torch.manual_seed(args.seed)
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0]], device=args.device)
    y = 2 * x + 1
    model = make_model(backend.nn).to(args.device)
    criterion = backend.nn.MSELoss()
    optimizer = backend.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(200):
        if not forget:
            optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def late(losses: list[float]) -> float:
    """The mean of the last fifty losses: without zero_grad() a single one may happen to be small."""
    return sum(losses[-50:]) / 50


def run(args: Namespace) -> common.Result:
    backend = common.backend(args.backend)
    torch.manual_seed(args.seed)
    names: dict[str, Any] = {"torch": torch, "device": args.device, **vars(backend)}

    wrong, graphs = [], {}
    for snippet in SNIPPETS:
        show(snippet, names)
        wrong += mistakes(snippet, names)
        if "a * b + a" in snippet.code:
            graphs["y = a*b + a"] = walk(names["y"].grad_fn, {"a": names["a"], "b": names["b"]})
        if "loss =" in snippet.code:
            parameters = dict(names["model"].named_parameters())
            graphs["the loss of Linear, ReLU, Linear"] = walk(names["loss"].grad_fn, parameters)
    for line in wrong:
        print(f"unexpected: {line}")

    started = time.perf_counter()
    kept, forgotten = fit(backend, args, forget=False), fit(backend, args, forget=True)
    seconds = time.perf_counter() - started
    print("\nfitting a line, 200 steps; the loss")
    print("  step   with zero_grad()   without")
    for step in (1, 2, 5, 10, 20, 50, 100, 200):
        print(f"  {step:4}   {kept[step - 1]:16.4f}   {forgotten[step - 1]:7.4f}")
    print(f"  mean of the last 50: {late(kept):.4f} with, {late(forgotten):.4f} without")

    with common.pictures(args) as save:
        save(
            "graph", plot.graphs(graphs, common.title(args, "What autograd wrote down, and backward() walks"))
        )
        steps = list(range(1, 201))
        curves = {"with zero_grad()": (steps, kept), "without: gradients pile up": (steps, forgotten)}
        panel = plot.Panel("", "step", "mean squared error (log scale)", curves, log=True)
        save("zero-grad", plot.curves([panel], common.title(args, "What happens if you forget zero_grad()")))

    claims = {
        f"all {sum(len(snippet.expected) for snippet in SNIPPETS)} results are the expected ones": not wrong,
        "with zero_grad() the mean of the last 50 losses is below 0.2": late(kept) < 0.2,
        "without it, more than ten times as large": late(forgotten) > 10 * late(kept),
    }
    target = "every snippet gives what it should, and a line is learned with zero_grad() but not without"
    return common.Result(kept[-1], None, seconds, target, common.holds(claims))


def main(argv: list[str] | None = None) -> int:
    return common.command("tensors-and-autograd", __doc__, run, DEFAULTS, argv)


if __name__ == "__main__":
    from minidl.cli import run_as_module

    raise SystemExit(run_as_module("tensors-and-autograd"))
