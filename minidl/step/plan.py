"""A plan: the native calls of one step, for one kind of batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import minidl.step.lower_images
import minidl.step.lower_losses
import minidl.step.lower_products  # noqa: F401 # registers its operators, as the two above
from minidl import _C
from minidl.step import memory, optimizers
from minidl.step.capture import EAGERLY, Captured, UnsupportedError, capture, unsupported
from minidl.step.device import Graphed, Looped, steps_on
from minidl.step.lower import NONE, Lowering, UnloweredError, addresses
from minidl.step.values import Address, Value

DTYPES = (torch.float32, torch.float64)
CHECKS = ("check_target", "check_unit_interval")  # what is planned like a kernel, but may stop a run


@dataclass
class Plan:
    native: Any
    watched: tuple[Any, list[torch.nn.Module]]
    grads: list[tuple[Tensor, Tensor]]  # with keep_grads: each parameter, and where its gradient is left
    pending: list[tuple[Any, str, Tensor]] = field(
        default_factory=list
    )  # state that the first step will fill
    on_device: Graphed | Looped | None = None  # what runs it on a GPU

    def step_function(self) -> Callable[[Tensor, Tensor], Tensor | None]:
        """From x and y to the loss of a step; None where they are not what was planned for."""
        step: Callable[[Tensor, Tensor], Tensor | None]
        step = self.on_device.step if self.on_device else self.native.step_function()
        return step

    def run(
        self, x: Tensor, y: Tensor, order: Tensor | None, count: int, epochs: int, losses: Tensor
    ) -> None:
        """`count` batches of the rows of x and y, in that order, `epochs` times; their losses go to `losses`."""
        (self.on_device or self.native).run(x, y, order, count, epochs, losses)

    def install_state(self) -> bool:
        """Hand the state that the first step has filled over to the optimizer; whether there was any."""
        pending, self.pending = self.pending, []
        optimizer, modules = self.watched
        for parameter, name, tensor in pending:
            optimizer.state[parameter][name] = tensor
        if pending:
            self.native.watch(optimizer, modules)
        return bool(pending)

    def show_grads(self) -> None:
        for parameter, grad in self.grads:
            if parameter.grad is not grad:
                parameter.grad = grad


def modules_of(*parts: Any) -> Iterator[torch.nn.Module]:
    for part in parts:
        if isinstance(part, torch.nn.Module):
            yield from part.modules()


def make_plan(
    model: torch.nn.Module,
    loss: Callable[..., Any],
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    keep_grads: bool,
) -> Plan:
    """Capture, lower, lay out memory, and hand all of it to the native side. Nothing of the model changes."""
    kernel = optimizers.algorithm_of(optimizer).kernel
    _check_hooks(model, loss)
    dtype = _check_model(model, x, y)
    updated = [q for group in optimizer.param_groups for q in group["params"]]
    captured = capture(model, loss, x, y, updated)
    try:
        return _build(captured, optimizer, kernel, dtype, keep_grads, [*modules_of(model, loss)])
    except UnloweredError as error:
        raise unsupported(captured, model, loss, error.node, error.why) from None


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _check_hooks(*parts: Any) -> None:
    """A hook would be called while the graph is captured, and never again."""
    for part in parts:
        if not isinstance(part, torch.nn.Module):
            continue
        for name, module in part.named_modules():
            if any(getattr(module, hooks, None) for hooks in HOOKS):
                where = f"module {name or type(module).__name__!r} has hooks, which a plan cannot call"
                raise UnsupportedError(f"minidl.TrainStep: {where}. {EAGERLY}")
        for name, parameter in part.named_parameters():
            if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
                where = f"parameter {name!r} has hooks, which a plan cannot call"
                raise UnsupportedError(f"minidl.TrainStep: {where}. {EAGERLY}")


def _check_model(model: torch.nn.Module, x: Tensor, y: Tensor) -> torch.dtype:
    """The dtype of the arithmetic."""
    dtypes = {p.dtype for p in model.parameters()}
    devices = sorted({str(t.device) for t in (*model.parameters(), *model.buffers(), x, y)})
    if len(devices) > 1:
        raise RuntimeError(
            f"minidl.TrainStep: expected all tensors to be on the same device, but found {devices}"
        )
    if x.device.type not in ("cpu", "cuda"):
        raise UnsupportedError(
            f"minidl.TrainStep: plans are for CPU and CUDA, but the tensors are on {x.device}. {EAGERLY}"
        )
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        raise UnsupportedError(f"minidl.TrainStep: a plan does not know torch.autocast. {EAGERLY}")
    if len(dtypes) != 1 or not dtypes <= {*DTYPES}:
        names = sorted(str(d) for d in dtypes)
        raise UnsupportedError(
            f"minidl.TrainStep: expected parameters of float32 or of float64, but got {names}. {EAGERLY}"
        )
    return dtypes.pop()


def _build(
    captured: Captured,
    optimizer: torch.optim.Optimizer,
    kernel: str,
    dtype: torch.dtype,
    keep_grads: bool,
    modules: list[torch.nn.Module],
) -> Plan:
    p = Lowering(dtype)
    placeholders = captured.placeholders
    inputs = {n: p.bound(t) for n, t in zip(placeholders, captured.inputs, strict=True)}
    p.lower(captured.graph.graph, inputs)
    (output,) = (n for n in captured.graph.graph.nodes if n.op == "output")
    loss, *grads = output.args[0]
    loss_value = p.values[loss]
    p.node = output
    gradients = _gradients(p, captured, grads)
    kept = _bind_grads(p, gradients) if keep_grads else {}
    on_cpu = captured.inputs[-1].device.type == "cpu"
    theirs = {value.address.slot for value in [*inputs.values()][:-2]}
    products = _products(p, gradients, theirs) if on_cpu and not keep_grads else {}

    ends = [loss_value.address, *(v.address for v in gradients.values()), *addresses([*products.values()])]
    p.lifetimes(ends, p.drawn)
    offsets, size = memory.offsets(p.slots)
    x, y = captured.inputs[-2:]
    native = _C.TrainingPlan(dtype, x.device, offsets, size)
    for name, arguments in p.calls:
        getattr(native, name)(*arguments) if name in CHECKS else native.call(name, *arguments)
    native.begin_commit()
    for name, arguments in p.commits:
        native.call(name, *arguments)
    native.begin_products()
    for arguments in products.values():
        native.call("gemm", *arguments)
    _bind(native, p, captured, inputs, loss_value)
    for tensor, slot in kept.values():
        native.bind(slot, tensor, True)
    plan = Plan(native, (optimizer, modules), [(q, tensor) for q, (tensor, _) in kept.items()])
    optimizers.make_state(optimizer, list(gradients))
    slots = {q: v.address.slot for q, v in gradients.items()}
    numbers = {q: i for i, q in enumerate(products)}
    for group in optimizer.param_groups:
        rows = optimizers.rows(optimizer, group, slots, numbers, plan.pending)
        if rows:
            native.update(kernel, group, rows)
    native.finish()
    native.watch(optimizer, modules)
    plan.on_device = steps_on(native, x, y) if x.is_cuda else None
    return plan


def _gradients(p: Lowering, captured: Captured, grads: list[Any]) -> dict[Tensor, Value]:
    """Of each parameter that has one: its gradient, at the parameter's own strides."""
    result: dict[Tensor, Value] = {}
    for parameter, node in zip(captured.trained, grads, strict=True):
        if node is None:
            continue
        value = p.values[node]
        ordered = p.ordered(value, parameter.stride())
        if not ordered.is_dense:
            raise UnloweredError(
                node, "is the gradient of a parameter whose elements do not fill one block of memory"
            )
        taken = any(v.address.slot == ordered.address.slot for v in result.values())
        if ordered.address.offset or taken or p.slots[ordered.address.slot].bound:
            copy = p.new(ordered.shape, ordered.stride)
            p.copy(copy, ordered)
            ordered = copy
        result[parameter] = ordered
    return result


LEAST_BY_ROWS = 1 << 14  # elements; smaller gradients stay in the cache anyhow
MOST_READ = 1 << 19  # bytes of a product's second factor, which is read anew for each few rows


def _products(
    p: Lowering, gradients: dict[Tensor, Value], parameters: set[int]
) -> dict[Tensor, tuple[Any, ...]]:
    """Take the calls of gemm that make nothing but the gradient of a large matrix out of the plan.

    They are made row by row with the update, right before it; so none may read parameters, which updates write.
    """
    result = {}
    for parameter, value in gradients.items():
        slot = value.address.slot
        calls = [call for call in p.calls if any(a.slot == slot for a in addresses(call[1]))]
        if len(calls) != 1 or len(value.shape) != 2 or not value.is_contiguous or value.numel < LEAST_BY_ROWS:
            continue
        ((name, arguments),) = calls
        if name != "gemm":
            continue
        c, ldc, _, _, _, batch, m, n, k, epilogue = arguments
        reads_parameter = any(a.slot in parameters for a in addresses(arguments))
        if reads_parameter or k * n * value.dtype.itemsize > MOST_READ:
            continue
        if (c, ldc, batch, m, n, epilogue) == (value.address, n, 1, *value.shape, (None, NONE)):
            p.calls.remove(calls[0])
            result[parameter] = arguments
    return result


def _bind_grads(p: Lowering, gradients: dict[Tensor, Value]) -> dict[Tensor, tuple[Tensor, int]]:
    """Tensors for the gradients, in place of the plan's own memory."""
    kept = {}
    for parameter, value in gradients.items():
        p.slots[value.address.slot].bound = True
        kept[parameter] = torch.empty_like(parameter, requires_grad=False), value.address.slot
    return kept


def _bind(native: Any, p: Lowering, captured: Captured, inputs: dict[Any, Value], loss: Value) -> None:
    *named, x, y = inputs.values()
    counted = {inputs[n].address for n in p.counters}
    written = {a for _, arguments in p.commits for a in arguments if isinstance(a, Address)}
    trained = {id(q) for q in captured.trained}
    for value, tensor in zip(named, captured.inputs, strict=False):
        if value.address in counted:
            native.count(tensor)
        elif tensor.dtype == p.dtype:
            native.bind(value.address.slot, tensor, id(tensor) in trained or value.address in written)
    if p.one is not None:
        native.bind(p.one.slot, torch.ones((), dtype=p.dtype, device=captured.inputs[-1].device), False)
    for slot in p.drawn:
        native.draw_into(slot)
    native.bind_batch(
        x.address.slot, captured.inputs[-2], y.address.slot, captured.inputs[-1], loss.address.slot
    )
