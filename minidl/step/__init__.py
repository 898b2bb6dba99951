"""The whole training step in one call: see :class:`TrainStep`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minidl.step.capture import EAGERLY, UnsupportedError
from minidl.step.optimizers import algorithm_of
from minidl.step.plan import Plan, make_plan, modules_of

__all__ = ["TrainStep", "UnsupportedError"]


class TrainStep:
    """A training step of ``model``, planned once and run as one native call::

        step = minidl.TrainStep(model, loss, optimizer)
        loss = step(x, y)

    is the training of::

        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()

    to the rounding of floats, at a fraction of the time where models are small. The parameters are the model's own
    and are updated in place; state, step counters and options are the optimizer's own, and options (a learning rate,
    say) are read anew at each call. So one can stop, look, change the learning rate, load a state, train eagerly, and
    go on. ``.grad`` is left alone, or, with ``keep_grads``, holds the gradients after each call.

    Args:
        model: any module in float32 or float64 whose forward consists of minidl's modules and functions, views, sums
            of equal shapes and concatenation; its modes (``train()``, ``eval()``) are honoured.
        loss: a module or function of (output, target), with a mean or a sum as its result.
        optimizer: SGD, RMSprop, Adam or AdamW, minidl's or torch's.

    On a GPU the plan is captured into a CUDA graph, and a step is one replay of it. Counters of updates may lie on
    either side: ``capturable=True`` is not asked for. There, as in eager training, a label that is no class makes the
    loss NaN instead of raising.

    A plan belongs to shapes, dtypes and modes: those of another batch are planned at its first call and remembered.
    What cannot be planned raises UnsupportedError, a NotImplementedError that names the operator and the line of the
    model. Shapes, dtypes and labels that do not fit raise what eager training raises, before anything is written.
    Changes of the model's structure, and hooks registered after the first step, are seen by a new TrainStep only.
    Copies and pickles hold copies of all three.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        keep_grads: bool = False,
    ) -> None:
        algorithm_of(optimizer)
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.keep_grads = keep_grads
        self._plans: dict[Any, Plan] = {}
        self._run: Callable[[Tensor, Tensor], Tensor | None] = _no_plan

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.model, self.loss, self.optimizer, self.keep_grads)

    def __repr__(self) -> str:
        loss = getattr(self.loss, "__name__", type(self.loss).__name__)
        names = f"{type(self.model).__name__}, {loss}, {type(self.optimizer).__name__}"
        return f"TrainStep({names}, keep_grads={self.keep_grads})"

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Train one step on a batch; the loss before the update, 0-d and without a graph."""
        loss = self._run(x, y)
        return self._planned_step(x, y) if loss is None else loss

    def _planned_step(self, x: Tensor, y: Tensor) -> Tensor:
        """A step on a batch that the plan of the last step does not fit."""
        x, y = _data(x), _data(y)
        plan = self._plan(x, y)
        step = plan.step_function()
        loss = step(x, y)
        assert loss is not None  # it fits
        self._ran(plan)
        self._run = partial(_step_and_show, plan, step) if self.keep_grads else step
        return loss

    def _plan(self, x: Tensor, y: Tensor) -> Plan:
        """The plan for batches like x and y, which fits them."""
        modes = tuple(m.training for m in modules_of(self.model, self.loss))
        key = x.shape, x.dtype, y.shape, y.dtype, modes
        plan = self._plans.get(key)
        if plan is None or not plan.native.fits(x, y):
            plan = make_plan(self.model, self.loss, self.optimizer, x, y, self.keep_grads)
            self._plans[key] = plan
        return plan

    def _ran(self, plan: Plan) -> None:
        """What is to be done after the first step of a plan."""
        self.optimizer._opt_called = True  # type: ignore[attr-defined] # schedulers ask whether step() was called
        if plan.install_state():
            self._plans = {key: kept for key, kept in self._plans.items() if kept is plan}
        if self.keep_grads:
            plan.show_grads()

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        epochs: int = 1,
        batch_size: int | None = None,
        shuffle: bool = True,
        generator: torch.Generator | None = None,
        on_epoch: Callable[[int, float], Any] | None = None,
    ) -> Tensor:
        """Train ``epochs`` times on all rows of ``x`` and ``y``, ``batch_size`` at a time (default: all at once).

        With ``shuffle`` the rows of each epoch come in the order of ``torch.randperm(len(x), generator=generator)``;
        the last batch of an epoch is what is left. ``on_epoch(epoch, loss)`` is called after each epoch, counted from
        1, with the mean loss of its rows; what it changes in the optimizer holds from the next epoch on. Ctrl-C ends
        the training between two steps.

        Returns the loss of every step, float64, (epochs, batches of an epoch).
        """
        x, y = _data(x), _data(y)
        if not x.dim() or not y.dim() or len(x) != len(y):
            shapes = f"{list(x.shape)} and {list(y.shape)}"
            raise ValueError(f"minidl.TrainStep.fit: expected as many rows in x as in y, but got {shapes}")
        if epochs < 0 or (batch_size is not None and batch_size < 1):
            raise ValueError(
                f"minidl.TrainStep.fit: expected epochs >= 0 and batch_size >= 1, but got {epochs} and {batch_size}"
            )
        rows = len(x)
        if rows == 0:
            return torch.zeros(epochs, 0, dtype=torch.float64)
        size = min(batch_size or rows, rows)
        whole, rest = divmod(rows, size)
        sizes = torch.tensor([size] * whole + [rest] * (rest > 0), dtype=torch.float64)
        losses = torch.empty(epochs, len(sizes), dtype=torch.float64)
        # Where nothing happens between epochs, all of them are one native call.
        together = epochs if not (shuffle or on_epoch or rest) else 1
        source = generator.device if generator else None
        for epoch in range(0, epochs, max(together, 1)):
            order = torch.randperm(rows, generator=generator, device=source).to(x.device) if shuffle else None
            self._run_batches(x, y, order, size, together, losses[epoch : epoch + together, :whole])
            if rest:
                tail = None if order is None else order[-rest:]
                data = (x[-rest:], y[-rest:]) if order is None else (x, y)
                self._run_batches(*data, tail, rest, 1, losses[epoch : epoch + 1, whole:])
            if on_epoch:
                on_epoch(epoch + 1, float(losses[epoch] @ sizes) / rows)
        return losses

    def _run_batches(
        self, x: Tensor, y: Tensor, order: Tensor | None, size: int, epochs: int, losses: Tensor
    ) -> None:
        """Whole batches of `size`, as many as `losses` (epochs, batches) has columns."""
        plan = self._plan(x[:size], y[:size])
        try:
            plan.run(x, y, order, losses.shape[1], epochs, losses)
        finally:  # a bad label or Ctrl-C may end a run whose first steps were made
            if plan.native.has_stepped():
                self._ran(plan)


def _no_plan(x: Tensor, y: Tensor) -> None:
    return None


def _step_and_show(
    plan: Plan, step: Callable[[Tensor, Tensor], Tensor | None], x: Tensor, y: Tensor
) -> Tensor | None:
    loss = step(x, y)
    if loss is not None:
        plan.show_grads()
    return loss


def _data(x: Tensor) -> Tensor:
    """x as a plan reads it. Gradients with respect to data are not computed."""
    if not isinstance(x, Tensor):
        raise TypeError(f"minidl.TrainStep: expected tensors, but got {type(x).__name__}")
    if x.requires_grad:
        raise UnsupportedError(f"minidl.TrainStep: a batch that requires a gradient gets none. {EAGERLY}")
    return x.resolve_neg().contiguous()


def _rebuilt(model: Any, loss: Any, optimizer: Any, keep_grads: bool) -> TrainStep:
    return TrainStep(model, loss, optimizer, keep_grads=keep_grads)
