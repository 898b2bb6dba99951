"""What the files of ``minidl.functional`` share."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction as _Reduction

from minidl import _C


def ops() -> Any:
    """The way in: pybind11 when run, the dispatcher's operators when traced by Dynamo, which pybind11 stops."""
    return torch.ops.minidl if torch.compiler.is_dynamo_compiling() else _C


def reduction_name(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """``reduction``, or what torch's deprecated pair of flags stood for."""
    if size_average is None and reduce is None:
        return reduction
    return _Reduction.legacy_get_string(size_average, reduce)


def promoted(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(input.dtype, target.dtype)
    return input.to(dtype), target.to(dtype)
