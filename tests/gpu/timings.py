"""Times the CUDA kernels against torch at equal precision and against the device's own limits.

Kernel times from CUDA events around a captured graph of many calls, so that launches from Python do not count;
ours and torch's take turns; the median of the turns. Writes gpu-<device>.csv into the folder given, and a table.
"""

from __future__ import annotations

import contextlib
import csv
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as TF
from torch import Tensor

import minidl.functional as F
from minidl import TrainStep, nn, optim

Work = Callable[[], object]


def captured(work: Work, calls: int) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            work()
    return graph


def microseconds(works: list[Work], calls: int = 20, turns: int = 9) -> list[float]:
    """The median time of a call of each."""
    graphs = [captured(work, calls) for work in works]
    times: list[list[float]] = [[] for _ in works]
    for _ in range(turns):
        for graph, taken in zip(graphs, times, strict=True):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            taken.append(start.elapsed_time(end) * 1000 / calls)
    return [statistics.median(taken[1:]) for taken in times]


def eager_microseconds(work: Work, calls: int = 100, turns: int = 5) -> float:
    """The median time of a call from Python, launches included."""
    times = []
    for _ in range(turns):
        torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / calls)
    return statistics.median(times)


class Report:
    """Rows, each a case with its bar, beside the device's limits: of copies, and of torch's largest products."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []
        big = torch.randn(1 << 28, device="cuda")
        copy = torch.empty_like(big)
        (copy_time,) = microseconds([lambda: copy.copy_(big)], calls=5)
        self.bandwidth = 2 * big.nbytes / copy_time / 1e3  # GB/s
        self.ceilings = {}  # TFLOP/s
        for name, dtype in (
            ("float32", torch.float32),
            ("tf32", torch.float32),
            ("bfloat16", torch.bfloat16),
        ):
            a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
            with precision("high" if name == "tf32" else "highest"):
                (time,) = microseconds([lambda a=a, b=b: a @ b], calls=3, turns=5)
            self.ceilings[name] = 2 * 8192**3 / time / 1e6
        print(
            f"{torch.cuda.get_device_name()}, torch {torch.__version__}: copies at {self.bandwidth:.0f} GB/s"
        )
        print("products by torch, TFLOP/s:", {name: round(rate) for name, rate in self.ceilings.items()})

    def add(
        self, name: str, bar: float, ours: Work, theirs: Work, calls: int = 20, **work: float | str
    ) -> None:
        """`work` is what `put` takes."""
        mine, torchs = microseconds([ours, theirs], calls)
        self.put(name, bar, mine, torchs, **work)

    def put(
        self,
        name: str,
        bar: float,
        mine: float,
        torchs: float,
        flop: float = 0,
        moved: float = 0,
        kind: str = "float32",
    ) -> None:
        """flop: operations of a product of that kind; moved: bytes that have to be."""
        row = {"case": name, "ours_us": round(mine, 2), "torch_us": round(torchs, 2)}
        row |= {"ratio": round(torchs / mine, 3), "bar": bar}
        row |= {"tflops": round(flop / mine / 1e6, 1), "gb_per_s": round(moved / mine / 1e3)}
        row["share_of_product"] = round(flop / mine / 1e6 / self.ceilings[kind], 3)
        row["share_of_copy"] = round(moved / mine / 1e3 / self.bandwidth, 3)
        self.rows.append(row)
        print(row, flush=True)


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Of products and convolutions of float32, ours and torch's: "high" is tf32."""
    torch.set_float32_matmul_precision(name)
    torch.backends.cudnn.allow_tf32 = name == "high"
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def gradients(f: Callable[..., torch.Tensor], *leaves: torch.Tensor) -> Work:
    """Forward and backward of f, with a gradient that is ready."""
    dy = torch.randn_like(f(*leaves))
    return lambda: torch.autograd.grad(f(*leaves), leaves, dy)


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", requires_grad=True)


def products(report: Report) -> None:
    for kind, sizes, bar in (
        ("float32", (512, 4096), 0.85),
        ("tf32", (4096,), 0.5),
        ("bfloat16", (512, 4096, 8192), 0.5),
    ):
        dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
        for n in sizes:
            a, b = (torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(2))
            with precision("high" if kind == "tf32" else "highest"):
                report.add(
                    f"matmul {n} {kind}",
                    bar,
                    partial(F.matmul, a, b),
                    partial(torch.matmul, a, b),
                    5,
                    flop=2 * n**3,
                    kind=kind,
                )
    for m, k, n in ((128, 784, 256), (1024, 1024, 1024)):
        leaves = leaf(m, k), leaf(n, k), leaf(n)
        ours = gradients(lambda x, w, b: F.linear(x, w, b, "relu"), *leaves)
        theirs = gradients(lambda x, w, b: TF.linear(x, w, b).relu(), *leaves)
        report.add(f"linear + relu {m}x{k}->{n} forward and backward", 1.3, ours, theirs, flop=6 * m * k * n)


def memory_bound(report: Report) -> None:
    x = torch.randn(1 << 26, device="cuda")
    for name in ("relu", "sigmoid", "gelu", "dropout"):
        ours, theirs = getattr(F, name), getattr(TF, name)
        report.add(f"{name} 2^26", 1.0, partial(ours, x), partial(theirs, x), 5, moved=2 * x.nbytes)
    logits, target = leaf(8192, 50257), torch.randint(50257, (8192,), device="cuda")
    ours, theirs = (gradients(lambda x, f=f: f.cross_entropy(x, target), logits) for f in (F, TF))
    report.add("cross_entropy 8192x50257 forward and backward", 2.0, ours, theirs, 2, moved=3 * logits.nbytes)
    del logits
    x, w, b = leaf(4096, 16384), leaf(16384), leaf(16384)
    ours, theirs = (gradients(lambda x, w, b, f=f: f.layer_norm(x, (16384,), w, b), x, w, b) for f in (F, TF))
    report.add("layer_norm 4096x16384 forward and backward", 1.0, ours, theirs, 5, moved=5 * x.nbytes)


def images(report: Report) -> None:
    for n, channels, size in ((128, 64, 28), (32, 256, 14)):
        x, w, b = leaf(n, channels, size, size), leaf(channels, channels, 3, 3), leaf(channels)
        ours, theirs = (
            gradients(lambda x, w, b, f=f: f.conv2d(x, w, b, padding=1), x, w, b) for f in (F, TF)
        )
        flop = 3 * 2 * n * size**2 * channels**2 * 9
        report.add(
            f"conv2d {n}x{channels}x{size}x{size} 3x3 forward and backward", 0.5, ours, theirs, 5, flop=flop
        )
    x, w, b = leaf(128, 64, 56, 56), leaf(64), leaf(64)
    ours, theirs = (
        gradients(lambda x, w, b, f=f: f.batch_norm(x, None, None, w, b, training=True), x, w, b)
        for f in (F, TF)
    )
    report.add("batch_norm 128x64x56x56 forward and backward", 1.0, ours, theirs, 5, moved=8 * x.nbytes)
    ours, theirs = (gradients(lambda x, f=f: f.max_pool2d(x, 2), x) for f in (F, TF))
    report.add("max_pool2d 128x64x56x56 forward and backward", 1.0, ours, theirs, 5, moved=2.5 * x.nbytes)


def updates(report: Report) -> None:
    """Kernels alone."""
    for total, count, bar in ((100_000_000, 100, 1.0), (200_000, 6, 3.0)):
        steps = []
        for module, options in ((optim, {}), (torch.optim, {"fused": True})):
            parameters = [leaf(total // count) for _ in range(count)]
            for p in parameters:
                p.grad = torch.randn_like(p)
            steps.append(module.Adam(parameters, lr=1e-3, capturable=True, **options).step)
        report.add(f"Adam {total} parameters", bar, *steps, 5, moved=28 * total)


def training_step(layers: ModuleType, optimizers: ModuleType) -> Work:
    """Of the mnist lesson's network: forward, backward, update."""
    torch.manual_seed(0)
    model = layers.Sequential(layers.Linear(784, 128), layers.ReLU(), layers.Linear(128, 10)).cuda()
    optimizer = optimizers.SGD(model.parameters(), lr=0.1)
    x, t = torch.randn(128, 784, device="cuda"), torch.randint(10, (128,), device="cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        layers.functional.cross_entropy(model(x), t).backward()
        optimizer.step()

    return step


def steps(report: Report) -> None:
    """The bar of the captured step: 20 us, and a tenth of eager torch's."""
    ours, theirs = training_step(nn, optim), training_step(torch.nn, torch.optim)
    mine, torchs = microseconds([ours, theirs])
    report.put("mnist step, both captured", 1.0, mine, torchs)
    eager = eager_microseconds(theirs)
    report.put("mnist step captured, torch eager", 10.0, mine, eager)
    report.put("mnist step, both eager", 1.0, eager_microseconds(ours), eager)


def planned_steps(report: Report) -> None:
    """TrainStep beside a graph that is captured by hand: of the mnist lesson, and of xor, whose loop is one block's."""

    def mnist(layers: ModuleType) -> tuple[torch.nn.Module, Tensor, Tensor]:
        model = layers.Sequential(layers.Linear(784, 128), layers.ReLU(), layers.Linear(128, 10)).cuda()
        return model, torch.randn(64, 784, device="cuda"), torch.randint(0, 10, (64,), device="cuda")

    def xor(layers: ModuleType) -> tuple[torch.nn.Module, Tensor, Tensor]:
        model = layers.Sequential(layers.Linear(2, 4), layers.ReLU(), layers.Linear(4, 1)).cuda()
        return model, torch.rand(4, 2, device="cuda"), torch.rand(4, 1, device="cuda")

    cases = (("mnist", mnist, "CrossEntropyLoss"), ("xor", xor, "BCEWithLogitsLoss"))
    for name, make, loss_name in cases:
        model, x, y = make(torch.nn)
        loss, adam = getattr(torch.nn, loss_name)(), torch.optim.Adam(model.parameters(), capturable=True)

        def by_hand(model=model, loss=loss, adam=adam, x=x, y=y) -> None:  # type: ignore[no-untyped-def]
            adam.zero_grad(set_to_none=False)
            loss(model(x), y).backward()
            adam.step()

        graph = captured(by_hand, 1)
        model, x, y = make(nn)
        step = TrainStep(model, getattr(nn, loss_name)(), optim.Adam(model.parameters()))
        step(x, y)
        theirs = eager_microseconds(graph.replay)
        report.put(f"{name} TrainStep, torch's graph", 1.0, eager_microseconds(partial(step, x, y)), theirs)
        fit = eager_microseconds(partial(step.fit, x, y, epochs=1000, shuffle=False), calls=1) / 1000
        report.put(f"{name} TrainStep.fit, torch's graph", 1.0, fit, theirs)


def main() -> None:
    report = Report()
    with precision("highest"):
        for measure in (products, memory_bound, images, updates, steps, planned_steps):
            measure(report)
    found = report.rows
    device = re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower()
    path = Path(sys.argv[1]) / f"gpu-{device}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    print(f"\n| {' | '.join(found[0])} |\n|{'---|' * len(found[0])}")
    for row in found:
        print(f"| {' | '.join(map(str, row.values()))} |")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
