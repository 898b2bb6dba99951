"""The optimizers of the course: torch.optim's own classes, whose update is one call into minidl's kernels.

A subclass keeps everything of torch's class but the arithmetic: constructor and its checks, group keys, state
and its layout, hooks, ``state_dict`` and ``load_state_dict`` both ways, learning rate schedulers. Formulas
are those in the documentation of torch's classes.

Parameters are tensors of any layout, float32 or float64, on CUDA also float16 or bfloat16. A step raises, before it
writes anything of a group, NotImplementedError for sparse gradients, complex and other dtypes and
``differentiable=True``. ``foreach`` and ``fused`` are accepted and change nothing: an update always is one pass.

``capturable=True`` is for CUDA graphs, and an AssertionError on the CPU, as torch's: the number of the step then lies
on the device and is counted there, and so does a learning rate that is a CUDA tensor, so that each replay of a captured
step is the next one, at the rate that the tensor holds by then.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import _profiler_enabled
from torch.optim import Optimizer, lr_scheduler, swa_utils
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from minidl import _C

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "lr_scheduler", "swa_utils"]


class _KernelStep(Optimizer):
    """What every optimizer here puts before torch's class in its bases: the ``step``."""

    # One update of a parameter group; False, and nothing done, if state is missing.
    _update: Callable[[dict[str, Any], dict[Any, Any]], bool]

    def _first_update(self, group: dict[str, Any]) -> None:
        """Let torch's class create the state of parameters that have none, then update."""
        self._init_group(group, *([] for _ in range(6)))  # type: ignore[attr-defined]
        if not self._update(group, self.state):
            raise RuntimeError(
                f"minidl.optim.{type(self).__name__}: a parameter's state has None for a tensor"
            )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, after ``closure``, whose result is returned."""
        if (
            torch.compiler.is_dynamo_compiling()
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or _profiler_enabled()
        ):
            return _watched_step(self) if closure is None else _watched_step(self, closure)
        return _step(self, closure)

    # torch wraps the step of each class in a profiler range and calls of hooks, unless it is marked so. That
    # takes longer than a small update; `step` sees to it itself where there is a profiler or a hook.
    step.hooked = True  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, or, if not ``set_to_none``, fill them with zeros: see ``torch.optim.Optimizer``."""
        if not set_to_none or _profiler_enabled() or torch.compiler.is_dynamo_compiling():
            return super().zero_grad(set_to_none)
        # torch enters a profiler range here too, which takes longer than the loop.
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = None

    # torch sets this for fused=True, and GradScaler then leaves unscaling and skipping to the update.
    _step_supports_amp_scaling = property(lambda self: False, lambda self, value: None)


def _step(self: _KernelStep, closure: Callable[[], Any] | None = None) -> Any:
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    for group in self.param_groups:
        if not self._update(group, self.state):
            self._first_update(group)
    return loss


# What torch does around a step, and for torch.compile a break in the graph.
_watched_step = torch._disable_dynamo(Optimizer.profile_hook_step(_step))


def _number(option: float | Tensor) -> float:
    return option.item() if isinstance(option, Tensor) else option


class SGD(_KernelStep, torch.optim.SGD):
    """Stochastic gradient descent with (Nesterov) momentum and weight decay: see ``torch.optim.SGD``."""

    _update = staticmethod(_C.sgd_step)

    @torch.no_grad()
    def _first_update(self, group: dict[str, Any]) -> None:
        """Update where some parameters have no momentum buffer yet; it begins as their gradient."""
        params: list[Tensor] = []
        grads: list[Tensor] = []
        found: list[Tensor | None] = []
        self._init_group(group, params, grads, found)
        first = [i for i, buffer in enumerate(found) if buffer is None]
        buffers = [torch.empty_like(p) if b is None else b for p, b in zip(params, found, strict=True)]
        lr = group["lr"]
        device_lr = (
            lr if isinstance(lr, Tensor) and not lr.is_cpu else None
        )  # reading it would wait for the device
        numbers = {name: _number(group[name]) for name in ("momentum", "dampening", "weight_decay")}
        numbers["lr"] = 0.0 if device_lr is not None else _number(lr)
        flags = {name: bool(group[name]) for name in ("nesterov", "maximize")}
        torch.ops.minidl.sgd_step(params, grads, buffers, first, **numbers, **flags, device_lr=device_lr)
        for param, buffer in zip(params, buffers, strict=True):
            self.state[param]["momentum_buffer"] = buffer


class RMSprop(_KernelStep, torch.optim.RMSprop):
    """RMSprop, centered or not, with momentum and weight decay: see ``torch.optim.RMSprop``."""

    _update = staticmethod(_C.rmsprop_step)


class Adam(_KernelStep, torch.optim.Adam):
    """Adam with AMSGrad and weight decay, decoupled or not: see ``torch.optim.Adam``."""

    _update = staticmethod(_C.adam_step)


class AdamW(_KernelStep, torch.optim.AdamW):
    """Adam with decoupled weight decay: see ``torch.optim.AdamW``."""

    _update = staticmethod(_C.adam_step)


def __getattr__(name: str) -> NoReturn:
    if name in torch.optim.__all__:
        raise AttributeError(
            f"minidl.optim has no {name}; torch.optim.{name} works beside it on the same models"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
