"""What this machine can do at best: its FMA rate and its bandwidth, measured in the run that uses them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from time import perf_counter

import torch

FmaLoop = Callable[[torch.dtype, int], float]

KB, MB = 1 << 10, 1 << 20
# A row is held against the bandwidth of the next larger of these working sets: 256 MB is beyond any cache,
# the small ones live in one. None is below 256 KB, where a torch call would measure its own overhead.
WORKING_SETS = (256 * KB, 1 * MB, 4 * MB, 16 * MB, 64 * MB, 256 * MB)


def size_label(size: int) -> str:
    return f"{size // MB} MB" if size >= MB else f"{size // KB} KB"


def best_seconds(run: Callable[[], object], spend: float = 0.05, at_least: int = 3) -> float:
    """The fastest of several calls: noise only adds, and a ceiling is what the machine does undisturbed."""
    run()
    best, calls, end = float("inf"), 0, perf_counter() + spend
    while calls < at_least or perf_counter() < end:
        start = perf_counter()
        run()
        best = min(best, perf_counter() - start)
        calls += 1
    return best


def stream_rate(size: int) -> float:
    """Bytes a second over a working set of `size` bytes: the best of copying, adding, and updating in place.

    Updating usually wins, for it reads no line only to overwrite it. It is what optimizers do, and as the best of
    all the ceiling is never below it.
    """
    buffer = torch.ones(size // 4)
    a, b = buffer.chunk(2)
    x, y, z = buffer[: len(buffer) // 3 * 3].chunk(3)
    seconds = min(
        best_seconds(lambda: b.copy_(a)),
        best_seconds(lambda: torch.add(x, y, out=z)),
        best_seconds(lambda: buffer.mul_(1.0)) / 2,  # reads and writes every byte: 2 * size
        best_seconds(lambda: x.addcmul_(y, z)) * 3 / 4,  # reads all, writes a third
    )
    return size / seconds


def fma_rate(fma_loop: FmaLoop) -> float:
    """Floating-point operations a second in registers alone, float32, on torch's current threads.

    The best over calls of all lengths up to 20 ms: short ones slip between a busy neighbour's turns, long ones
    outlast the wait for a thread that was not running.
    """
    rate, seconds, iterations = 0.0, 0.0, 1000
    while seconds < 20e-3:
        iterations *= 2
        seconds = best_seconds(partial(fma_loop, torch.float32, iterations), spend=0.03)
        rate = max(rate, fma_loop(torch.float32, iterations) / seconds)
    return rate


class Ceilings:
    """The ceilings at torch's current thread count, each measured when first asked for."""

    def __init__(self, fma_loop: FmaLoop) -> None:
        self._flops = cache(lambda threads: fma_rate(fma_loop))
        self._bytes = cache(lambda threads, size: stream_rate(size))

    def floor(self, flops: float, nbytes: float) -> tuple[float, str]:
        """The roofline: the least seconds this work can take here, and which limit says so."""
        size = next((s for s in WORKING_SETS if s >= nbytes), WORKING_SETS[-1])
        threads = torch.get_num_threads()
        limits = []
        if flops:
            limits.append((flops / self._flops(threads), "FMA"))
        if nbytes:
            limits.append((nbytes / self._bytes(threads, size), f"{size_label(size)} stream"))
        return max(limits, default=(0.0, ""))
