"""Plans on a GPU: the calls of a step captured into a CUDA graph, or the loop of all steps in one block of threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def capture(device: torch.device, launches: Callable[[], None]) -> Callable[[], None]:
    """What `launches` queues on that device, as one call that queues it again."""
    graph = torch.cuda.CUDAGraph()
    # The stream that is captured is one of the current device. Other threads may go on using the GPU meanwhile.
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        launches()
    # The class's own method is a Python function, within which Ctrl-C could fall.
    replay: Callable[[], None] = super(torch.cuda.CUDAGraph, graph).replay
    return replay


def steps_on(native: Any, x: Tensor, y: Tensor) -> Graphed | Looped:
    """What runs a native plan for batches like x and y on their device."""
    return Looped(native, x, y) if native.fits_block() else Graphed(native, x, y)


def _batch_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


class Looped:
    """Steps of a native plan so small that one block of threads runs it: as many as are wanted, in one launch."""

    MOST_STEPS = 2048  # in one launch; between two of them Ctrl-C is heard

    def __init__(self, native: Any, x: Tensor, y: Tensor) -> None:
        self.native = native
        self.batch = _batch_like(x), _batch_like(y)

    def step(self, x: Tensor, y: Tensor) -> Tensor | None:
        """The loss of a step, or None where x or y is not what was planned for."""
        if not self.native.fits(x, y):
            return None
        loss = torch.empty((), dtype=self.native.dtype(), device=x.device)
        self.native.run_block(x, y, None, 1, 0, loss, *self.batch)
        return loss

    def run(
        self, x: Tensor, y: Tensor, order: Tensor | None, count: int, epochs: int, losses: Tensor
    ) -> None:
        """`count` batches of the rows of x and y, in that order, `epochs` times; their losses go to `losses`."""
        there = torch.empty(epochs * count, dtype=self.native.dtype(), device=x.device)
        first = 0
        for some in there.split(self.MOST_STEPS):
            self.native.run_block(x, y, order, count, first, some, *self.batch)
            first += len(some)
        losses.copy_(there.view_as(losses))


class Graphed:
    """Steps of a native plan on batches like x and y.

    The first is queued call by call: libraries and kernels are loaded on first use, which no graph may capture, and
    SGD's momentum begins with it. What a step takes from the host (learning rates, numbers of updates) is written to
    the device where it has changed; a graph is captured anew where anything else has: an option, or the memory of a
    parameter. Nothing waits for the GPU.
    """

    def __init__(self, native: Any, x: Tensor, y: Tensor) -> None:
        self.native = native
        self.x, self.y = _batch_like(x), _batch_like(y)
        self.loss: Tensor | None = None
        self.replay: Callable[[], None] | None = None
        self.lock = threading.Lock()  # the batch lies in one place

    def step(self, x: Tensor, y: Tensor) -> Tensor | None:
        """The loss of a step, or None where x or y is not what was planned for."""
        if not self.native.fits(x, y):
            return None
        with self.lock:
            self.x.copy_(x)
            self.y.copy_(y)
            return self._advance().clone()

    def run(
        self, x: Tensor, y: Tensor, order: Tensor | None, count: int, epochs: int, losses: Tensor
    ) -> None:
        """`count` batches of the rows of x and y, in that order, `epochs` times; their losses go to `losses`."""
        size = len(self.x)
        there = torch.empty(epochs * count, dtype=losses.dtype, device=x.device)
        with self.lock:
            for i in range(epochs * count):
                batch = slice(i % count * size, (i % count + 1) * size)
                for to, source in ((self.x, x), (self.y, y)):
                    if order is None:
                        to.copy_(source[batch])
                    else:
                        torch.index_select(source, 0, order[batch], out=to)
                there[i].copy_(self._advance())
        losses.copy_(there.view_as(losses))

    def _advance(self) -> Tensor:
        """A step on self.x and self.y; where its loss lies until the next."""
        if self.loss is None:
            loss = torch.empty((), dtype=self.native.dtype(), device=self.x.device)
            self.native.step(self.x, self.y, loss)
            self.loss = loss
            return loss
        if self.native.prepare() or self.replay is None:
            self.replay = None  # its memory is free for the next
            loss = self.loss
            self.replay = capture(self.x.device, lambda: self.native.enqueue(self.x, self.y, loss))
        self.native.replay(self.replay)
        return self.loss
