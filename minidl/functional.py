"""The functions of ``torch.nn.functional`` that minidl computes, with torch's signatures.

Every function takes float32 or float64 tensors of any strides, records what autograd needs, and raises what torch
raises: ``RuntimeError`` for shapes and dtypes that do not fit together, ``ValueError`` for options that do not
exist, ``NotImplementedError`` for dtypes and devices without a kernel. Names of shapes: ``N`` rows, ``C`` classes,
``*`` any dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minidl import _C


def _ops() -> Any:
    """The way in: pybind11 when run, the dispatcher's operators when traced by Dynamo, which cannot see into pybind11."""
    return torch.ops.minidl if torch.compiler.is_dynamo_compiling() else _C


# ---- matmul ----------------------------------------------------------------------------------------------------


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """Matrix product with the shapes of :func:`torch.matmul`.

    1-D operands are a row on the left and a column on the right; leading dimensions broadcast.
    """
    return _ops().matmul(input, other)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """``activation(input @ weight.T + bias)`` in one pass over the output.

    ``input`` is ``(*, in_features)``, ``weight`` ``(out_features, in_features)``, ``bias`` ``(out_features)``; the
    result is ``(*, out_features)``. ``activation`` is ``"relu"``, ``"sigmoid"``, ``"tanh"``, ``"gelu"``,
    ``"gelu_tanh"``, ``"silu"`` or ``None``.
    """
    if weight.dim() == 1:  # torch: one output feature, without a dimension of its own
        y = matmul(input, weight) if bias is None else matmul(input, weight) + bias
        return y if activation is None else _ops().activation(y, activation)
    return _ops().linear(input, weight, bias, activation or "none")


# ---- activation ------------------------------------------------------------------------------------------------


def _activation(input: Tensor, name: str, inplace: bool, *parameters: float) -> Tensor:
    if not inplace:
        return _ops().activation(input, name, *parameters)
    # Autograd may need the input's old value, which copy_ is about to overwrite.
    kept = input.clone() if torch.is_grad_enabled() and input.requires_grad else input
    return input.copy_(_ops().activation(kept, name, *parameters))


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """``max(input, 0)``; NaN stays NaN, and the slope at 0 is 0."""
    return _activation(input, "relu", inplace)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """``input`` where positive, else ``negative_slope * input``."""
    return _activation(input, "leaky_relu", inplace, negative_slope)


def sigmoid(input: Tensor) -> Tensor:
    """``1 / (1 + exp(-input))``."""
    return _ops().activation(input, "sigmoid")


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return _ops().activation(input, "tanh")


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """``input * Phi(input)``, or its tanh form for ``approximate="tanh"`` (Hendrycks and Gimpel, arXiv:1606.08415)."""
    if approximate not in ("none", "tanh"):
        raise RuntimeError("approximate argument must be either none or tanh.")
    return _ops().activation(input, "gelu" if approximate == "none" else "gelu_tanh")


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """``input * sigmoid(input)``."""
    return _activation(input, "silu", inplace)


def softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """``log(1 + exp(beta * input)) / beta``, and ``input`` itself where ``beta * input > threshold``."""
    return _ops().activation(input, "softplus", beta, threshold)
