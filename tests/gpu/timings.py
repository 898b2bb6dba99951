"""Times the CUDA kernels against torch at equal precision and against the device's own limits.

Kernel times from CUDA events around a captured graph of many calls, so that launches from Python do not count;
ours and torch's take turns; the median of the turns. Writes gpu-<device>.csv into the folder given, and a table.
"""

from __future__ import annotations

import csv
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as TF

import minidl.functional as F
from minidl import optim

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


def rows() -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    big = torch.randn(1 << 28, device="cuda")
    copy = torch.empty_like(big)
    (copy_time,) = microseconds([lambda: copy.copy_(big)], calls=5)
    bandwidth = 2 * big.nbytes / copy_time / 1e3  # GB/s

    def add(
        name: str, bar: float, ours: Work, theirs: Work, flop: float = 0, bytes_: float = 0, calls: int = 20
    ) -> None:
        mine, torchs = microseconds([ours, theirs], calls)
        row = {
            "case": name,
            "ours_us": round(mine, 2),
            "torch_us": round(torchs, 2),
            "ratio": round(torchs / mine, 3),
        }
        row |= {"bar": bar, "tflops": round(flop / mine / 1e6, 1), "gb_per_s": round(bytes_ / mine / 1e3)}
        row["share_of_copy"] = round(bytes_ / mine / 1e3 / bandwidth, 3)
        found.append(row)
        print(row, flush=True)

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: copies at {bandwidth:.0f} GB/s")
    for dtype, sizes, bar in ((torch.float32, (512, 4096), 0.85), (torch.bfloat16, (512, 4096, 8192), 0.5)):
        for n in sizes:
            a, b = (torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(2))
            case = f"matmul {n} {str(dtype)[6:]}"
            add(case, bar, lambda a=a, b=b: F.matmul(a, b), lambda a=a, b=b: a @ b, flop=2 * n**3, calls=5)
    torch.set_float32_matmul_precision("high")
    a, b = (torch.randn(4096, 4096, device="cuda") for _ in range(2))
    add("matmul 4096 tf32", 0.5, lambda: F.matmul(a, b), lambda: a @ b, flop=2 * 4096**3, calls=5)
    torch.set_float32_matmul_precision("highest")

    for m, k, n in ((128, 784, 256), (1024, 1024, 1024)):
        x = torch.randn(m, k, device="cuda", requires_grad=True)
        w, bias = (
            torch.randn(n, k, device="cuda", requires_grad=True),
            torch.randn(n, device="cuda", requires_grad=True),
        )
        dy = torch.randn(m, n, device="cuda")

        def ours(x=x, w=w, bias=bias, dy=dy):
            return torch.autograd.grad(F.linear(x, w, bias, "relu"), (x, w, bias), dy)

        def theirs(x=x, w=w, bias=bias, dy=dy):
            return torch.autograd.grad(TF.linear(x, w, bias).relu(), (x, w, bias), dy)

        add(f"linear + relu {m}x{k}->{n} forward and backward", 1.3, ours, theirs, flop=6 * m * k * n)

    for (n, inside, outside, side), dtype, order in (
        ((64, 1, 16, 28), torch.float32, torch.contiguous_format),
        ((64, 64, 64, 56), torch.float32, torch.contiguous_format),  # tf32 on both sides, as torch does
        ((64, 64, 64, 56), torch.bfloat16, torch.channels_last),
        ((64, 256, 256, 14), torch.bfloat16, torch.channels_last),
        ((64, 256, 256, 14), torch.bfloat16, torch.contiguous_format),
    ):

        def tensor(*shape, dtype=dtype, order=order):
            return torch.randn(shape, device="cuda").to(dtype, memory_format=order).requires_grad_()

        x, w = tensor(n, inside, side, side), tensor(outside, inside, 3, 3)
        dy = tensor(n, outside, side, side).detach()
        layout = "NHWC" if order is torch.channels_last else "NCHW"
        add(
            f"conv2d 3x3 {n}x{inside}x{side}x{side}->{outside} {str(dtype)[6:]} {layout} forward and backward",
            0.5,
            lambda x=x, w=w, dy=dy: torch.autograd.grad(F.conv2d(x, w, padding=1), (x, w), dy),
            lambda x=x, w=w, dy=dy: torch.autograd.grad(TF.conv2d(x, w, padding=1), (x, w), dy),
            flop=6 * n * inside * outside * 9 * side**2,
            calls=5,
        )

    x = torch.randn(1 << 26, device="cuda")
    for name in ("relu", "sigmoid", "gelu"):
        mine, torchs = getattr(F, name), getattr(TF, name)
        add(f"{name} 2^26", 1.0, lambda f=mine: f(x), lambda f=torchs: f(x), bytes_=2 * x.nbytes, calls=5)

    logits = torch.randn(8192, 50257, device="cuda", requires_grad=True)
    target = torch.randint(50257, (8192,), device="cuda")
    add(
        "cross_entropy 8192x50257 forward and backward",
        2.0,
        lambda: torch.autograd.grad(F.cross_entropy(logits, target), logits),
        lambda: torch.autograd.grad(TF.cross_entropy(logits, target), logits),
        bytes_=3 * logits.nbytes,
        calls=2,
    )

    # Kernels alone: the step count stands still in a graph, which costs the same.
    for total, count, bar in ((100_000_000, 100, 1.0), (200_000, 6, 3.0)):

        def parameters(total=total, count=count):
            ps = [torch.randn(total // count, device="cuda", requires_grad=True) for _ in range(count)]
            for p in ps:
                p.grad = torch.randn_like(p)
            return ps

        mine, torchs = (
            optim.Adam(parameters(), lr=1e-3),
            torch.optim.Adam(parameters(), lr=1e-3, fused=True, capturable=True),
        )
        add(f"Adam {total} parameters", bar, mine.step, torchs.step, bytes_=28 * total, calls=5)
    return found


def main() -> None:
    found = rows()
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
