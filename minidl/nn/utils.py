"""``torch.nn.utils``, whose functions that clip gradients are minidl's; every other name is torch's own.

Gradients are float32 or float64 CPU tensors of any layout. Where one is not, NotImplementedError is raised before
anything is written; RuntimeError for one that overlaps itself. ``foreach`` is accepted and changes nothing.
"""

import types
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from minidl import _C

__all__ = list(torch.nn.utils.__all__)


def _call(name: str, *args: Any) -> Any:
    """An operator on lists, without grad mode: from ``_C``, which sees to that, or for Dynamo torch's registry."""
    if torch.compiler.is_dynamo_compiling():
        with torch.no_grad():
            return getattr(torch.ops.minidl, name)(*args)
    return getattr(_C, name)(*args)


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    if torch.compiler.is_dynamo_compiling():
        listed = [parameters] if isinstance(parameters, Tensor) else parameters
        return [p.grad for p in listed if p.grad is not None]
    return _C.gradients(parameters)


def get_total_norm(
    tensors: Tensor | Iterable[Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """The norm of order ``norm_type`` of the norms of ``tensors``, of any shapes, as a tensor of shape ``()``.

    It is float64 if one of them is, else float32; ``tensor(0.)`` for no tensors. Orders are those of
    ``torch.linalg.vector_norm``. RuntimeError where ``error_if_nonfinite`` and it is infinite or NaN, and for an
    empty tensor where the order is negative or infinite.
    """
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    norm_type = float(norm_type)
    if not tensors:
        return torch.tensor(0.0)
    norm = _call("total_norm", tensors, norm_type)
    if error_if_nonfinite and not norm.isfinite():
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot be "
            "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
            "`error_if_nonfinite=False`"
        )
    return norm


def clip_grads_with_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    total_norm: Tensor,
    foreach: bool | None = None,
) -> None:
    """Multiply the gradients by ``max_norm / (total_norm + 1e-6)`` in place, where that is less than 1.

    ``total_norm`` has shape ``()``. Where it is NaN, so is every gradient afterwards.
    """
    gradients = _gradients(parameters)
    max_norm = float(max_norm)
    if gradients:
        _call("clip_norm", gradients, total_norm, max_norm)


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale the gradients in place so that their total norm is at most ``max_norm``; return the norm they had.

    See :func:`get_total_norm` and :func:`clip_grads_with_norm_`, which this is one after the other.
    """
    if isinstance(parameters, types.GeneratorType):
        parameters = list(parameters)
        if not parameters:
            warnings.warn(
                "`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=2
            )
    gradients = _gradients(parameters)
    norm = get_total_norm(gradients, norm_type, error_if_nonfinite)
    max_norm = float(max_norm)
    if gradients:
        _call("clip_norm", gradients, norm, max_norm)
    return norm


def clip_grad_value_(
    parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None
) -> None:
    """Clamp every element of the gradients to ``[-clip_value, clip_value]`` in place."""
    clip_value = float(clip_value)
    gradients = _gradients(parameters)
    if gradients:
        _call("clip_value", gradients, clip_value)


def __getattr__(name: str) -> Any:
    return getattr(torch.nn.utils, name)
