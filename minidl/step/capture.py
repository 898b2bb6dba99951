"""From a model, its loss and a batch to the graph of a training step: forward, loss and backward, op by op.

torch.fx's ``make_fx`` runs model, loss and ``torch.autograd.grad`` once on tensors without data and writes down every
operator that is called. So whatever Python a model's ``forward`` consists of, what remains are minidl's own operators
with all their shapes, views, and sums of gradients, in the order in which eager training calls them.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode

Function = Callable[..., Any]


class UnsupportedError(NotImplementedError):
    """A model, loss or optimizer that a TrainStep cannot run; train it eagerly."""


EAGERLY = (
    "Train it eagerly instead: loss = loss_fn(model(x), y); optimizer.zero_grad(); loss.backward(); "
    "optimizer.step()"
)


_TRACING = threading.Lock()  # make_fx patches torch while it runs


@dataclass(frozen=True)
class Captured:
    """The graph, and what its inputs and outputs stand for.

    Outputs: the loss, then the gradient of each parameter that requires one, or None where it has none.
    """

    graph: GraphModule
    inputs: list[Tensor]  # parameters and buffers, as the placeholders come; then x and y
    trained: list[Tensor]

    @property
    def placeholders(self) -> list[Node]:
        return [node for node in self.graph.graph.nodes if node.op == "placeholder"]


class _Whole(torch.nn.Module):
    """Model and loss as one module, so that the loss's buffers are inputs too."""

    def __init__(self, model: torch.nn.Module, loss: Function) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.model(x), y)


def capture(model: torch.nn.Module, loss: Function, x: Tensor, y: Tensor, updated: list[Tensor]) -> Captured:
    """The step of ``model`` and ``loss`` on batches like ``x`` and ``y``, in the modes that the modules are in.

    Gradients are computed of those of the tensors `updated` that require one.

    Shapes and dtypes that do not fit raise what they raise in eager training; UnsupportedError for Python that
    depends on the values of tensors.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # takes a second to import

    whole = _Whole(model, loss)
    named = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    ids = {id(p) for p in updated}
    trained = [p for p in named.values() if p.requires_grad and id(p) in ids]
    if not trained:
        raise ValueError(
            "minidl.TrainStep: the optimizer has no parameter of the model that requires a gradient"
        )

    def step(tensors: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        result = torch.func.functional_call(whole, tensors, (x, y))
        wanted = [tensor for tensor in tensors.values() if tensor.requires_grad]
        return result, torch.autograd.grad(result, wanted, allow_unused=True)

    wants = {id(p) for p in trained}
    tensors = {name: _without_data(tensor, id(tensor) in wants) for name, tensor in named.items()}
    arguments = tensors, _without_data(x), _without_data(y)
    try:
        with _TRACING, torch.enable_grad():
            graph = make_fx(step)(*arguments)
    except RuntimeError as error:
        if "get value out of a tracing tensor" in str(error) or "meta tensors" in str(error):
            raise UnsupportedError(
                f"minidl.TrainStep: {_place(traceback.extract_tb(error.__traceback__))}: what is computed depends on "
                f"the values of a tensor. {EAGERLY}"
            ) from None
        raise
    return Captured(graph, [*named.values(), x, y], trained)


def _without_data(x: Tensor, requires_grad: bool = False) -> Tensor:
    like = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    return like.requires_grad_(requires_grad)


# ---- where in the user's code an operator is called


class _FoundError(Exception):
    pass


class _Search(TorchDispatchMode):
    """Stops at the `number`-th call of an operator and keeps the stack of Python that led to it."""

    def __init__(self, target: Any, number: int) -> None:
        super().__init__()
        self.target = target
        self.left = number
        self.stack: traceback.StackSummary | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self.target:
            self.left -= 1
            if self.left == 0:
                self.stack = traceback.extract_stack()
                raise _FoundError
        return func(*args, **(kwargs or {}))


def unsupported(
    captured: Captured, model: torch.nn.Module, loss: Function, node: Node, why: str
) -> UnsupportedError:
    """The error that names an operator, and the line of the user's code that calls it."""
    same = [n for n in captured.graph.graph.nodes if n.target is node.target]
    search = _Search(node.target, same.index(node) + 1)
    *_, x, y = captured.inputs
    try:
        with search, torch.enable_grad():
            named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            tensors = {name: _without_data(tensor, tensor.requires_grad) for name, tensor in named.items()}
            out = torch.func.functional_call(model, tensors, (_without_data(x),))
            torch.autograd.grad(loss(out, _without_data(y)), [t for t in tensors.values() if t.requires_grad])
    except Exception:  # the search's own, or whatever comes of going on without data
        pass
    place = _place(search.stack) if search.stack else "in the backward pass"
    return UnsupportedError(f"minidl.TrainStep: {node.target} ({place}) {why}. {EAGERLY}")


def _place(stack: traceback.StackSummary) -> str:
    """The innermost line that belongs neither to torch nor to minidl."""
    libraries = [str(Path(torch.__file__).parent), str(Path(__file__).parent.parent)]
    frames = [f for f in stack if not any(f.filename.startswith(folder) for folder in libraries)]
    if not frames:
        return "in the model"
    frame = frames[-1]
    return f"{frame.filename}:{frame.lineno}, in {frame.name}: {frame.line}"
