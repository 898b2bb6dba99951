"""The activations."""

import torch
from torch import Tensor

from minidl.functional._common import ops


def _activation(input: Tensor, name: str, inplace: bool, *parameters: float) -> Tensor:
    if not inplace:
        return ops().activation(input, name, *parameters)
    # Autograd may need the input's old value, which copy_ is about to overwrite.
    kept = input.clone() if torch.is_grad_enabled() and input.requires_grad else input
    return input.copy_(ops().activation(kept, name, *parameters))


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """``max(input, 0)``; NaN stays NaN, and the slope at 0 is 0."""
    return _activation(input, "relu", inplace)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """``input`` where positive, else ``negative_slope * input``."""
    return _activation(input, "leaky_relu", inplace, negative_slope)


def sigmoid(input: Tensor) -> Tensor:
    """``1 / (1 + exp(-input))``."""
    return ops().activation(input, "sigmoid")


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return ops().activation(input, "tanh")


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """``input * Phi(input)``, or its tanh form for ``approximate="tanh"`` (Hendrycks and Gimpel, arXiv:1606.08415)."""
    if approximate not in ("none", "tanh"):
        raise RuntimeError("approximate argument must be either none or tanh.")
    return ops().activation(input, "gelu" if approximate == "none" else "gelu_tanh")


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """``input * sigmoid(input)``."""
    return _activation(input, "silu", inplace)


def softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """``log(1 + exp(beta * input)) / beta``, and ``input`` itself where ``beta * input > threshold``."""
    return ops().activation(input, "softplus", beta, threshold)
