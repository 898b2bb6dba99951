"""The functions of ``torch.nn.functional`` that minidl computes, with torch's signatures.

Every function takes float32 or float64 tensors of any strides, records what autograd needs, and raises what torch
raises: ``RuntimeError`` for shapes and dtypes that do not fit together, ``ValueError`` for options that do not
exist, ``NotImplementedError`` for dtypes and devices without a kernel. Names of shapes: ``N`` rows, ``C`` classes,
``*`` any dimensions.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction as _Reduction
from torch.nn.functional import one_hot, pad  # these need no kernel

from minidl import _C

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "gelu",
    "huber_loss",
    "l1_loss",
    "leaky_relu",
    "linear",
    "log_softmax",
    "matmul",
    "mse_loss",
    "nll_loss",
    "one_hot",
    "pad",
    "relu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "tanh",
]


def _ops() -> Any:
    """The way in: pybind11 when run, the dispatcher's operators when traced by Dynamo, which pybind11 stops."""
    return torch.ops.minidl if torch.compiler.is_dynamo_compiling() else _C


# ---- matmul ----------------------------------------------------------------------------------------------------


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """Matrix product with the shapes of :func:`torch.matmul`.

    1-D operands are a row on the left and a column on the right; leading dimensions broadcast.
    """
    return _ops().matmul(input, other)


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
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


# ---- loss --------------------------------------------------------------------------------------------------


def _reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """``reduction``, or what torch's deprecated pair of flags stood for."""
    if size_average is None and reduce is None:
        return reduction
    return _Reduction.legacy_get_string(size_average, reduce)


def _warn_if_sizes_differ(input: Tensor, target: Tensor) -> None:
    if target.size() != input.size():
        warnings.warn(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). "
            "This will likely lead to incorrect results due to broadcasting. "
            "Please ensure they have the same size.",
            stacklevel=3,
        )


def _promoted(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(input.dtype, target.dtype)
    return input.to(dtype), target.to(dtype)


def _elementwise_loss(
    kind: str, input: Tensor, target: Tensor, reduction: str, weight: Tensor | None = None, beta: float = 1.0
) -> Tensor:
    """A loss of input - target after broadcasting; with ``weight``, each element times its weight."""
    if weight is not None and weight.size() != input.size():
        raise ValueError("Weights and input must have the same size.")
    if target.size() != input.size():
        input, target = torch.broadcast_tensors(input, target)
    if weight is None:
        return _ops().loss(input, target, kind, _Reduction.get_enum(reduction), beta=beta)
    loss = _ops().loss(input, target, kind, 0, beta=beta) * weight
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":  # torch's huber_loss divides by the count, the others by the weights
        return loss.mean() if kind == "huber" else loss.sum() / weight.sum()
    raise ValueError(f"Invalid reduction mode: {reduction}. Expected one of 'none', 'mean', 'sum'.")


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Squared error (input - target)^2: see torch.nn.functional.mse_loss.

    input and target broadcast, with a UserWarning where their sizes differ; float32 or float64 (the other may
    be anything that promotes to it). With ``weight``, of input's size, "mean" divides by the sum of weights.
    """
    _warn_if_sizes_differ(input, target)
    reduction = _reduction(size_average, reduce, reduction)
    if target.dtype != input.dtype:
        input, target = _promoted(input, target)
    return _elementwise_loss("mse", input, target, reduction, weight)


def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Absolute error |input - target|, with slope 0 at 0: see torch.nn.functional.l1_loss.

    Shapes, dtypes and ``weight`` as in mse_loss.
    """
    _warn_if_sizes_differ(input, target)
    reduction = _reduction(size_average, reduce, reduction)
    if target.dtype != input.dtype:
        input, target = _promoted(input, target)
    return _elementwise_loss("l1", input, target, reduction, weight)


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """d^2 / (2 beta) where |d| < beta, else |d| - beta / 2, for d = input - target.

    (Girshick, arXiv:1504.08083.) beta = 0 is l1_loss; a negative one raises RuntimeError. Shapes and dtypes as
    in mse_loss.
    """
    _warn_if_sizes_differ(input, target)
    reduction = _reduction(size_average, reduce, reduction)
    if target.dtype != input.dtype:
        input, target = _promoted(input, target)
    return _elementwise_loss("smooth_l1", input, target, reduction, beta=beta)


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2), for d = input - target.

    delta <= 0 and unequal dtypes raise RuntimeError. Shapes as in mse_loss; with ``weight``, "mean" divides
    by the number of elements.
    """
    _warn_if_sizes_differ(input, target)
    return _elementwise_loss("huber", input, target, reduction, weight, delta)


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-target log(input) - (1 - target) log(1 - input), each logarithm at least -100.

    input and target have one size (else ValueError) and dtype and lie in [0, 1] (else RuntimeError); weight
    broadcasts to that size and has no gradient.
    """
    reduction_enum = _Reduction.get_enum(_reduction(size_average, reduce, reduction))
    if target.size() != input.size():
        raise ValueError(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}) is "
            "deprecated. Please ensure they have the same size."
        )
    return _ops().loss(input, target, "bce", reduction_enum, weight)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """-pos_weight target log s - (1 - target) log(1 - s) for s = sigmoid(input), without forming s.

    input and target have one size (else ValueError); weight and pos_weight broadcast to it and have no
    gradient.
    """
    reduction_enum = _Reduction.get_enum(_reduction(size_average, reduce, reduction))
    if target.size() != input.size():
        raise ValueError(f"Target size ({target.size()}) must be the same as input size ({input.size()})")
    if target.dtype != input.dtype and target.is_floating_point():
        input, target = _promoted(input, target)
    return _ops().loss(input, target, "bce_with_logits", reduction_enum, weight, pos_weight)


# ---- softmax -----------------------------------------------------------------------------------------------


def _softmax(
    name: str, input: Tensor, dim: int | None, stacklevel: int, dtype: torch.dtype | None, log: bool
) -> Tensor:
    if dim is None:
        warnings.warn(
            f"Implicit dimension choice for {name} has been deprecated. "
            "Change the call to include dim=X as an argument.",
            stacklevel=stacklevel,
        )
        dim = 0 if input.dim() in (0, 1, 3) else 1
    if dtype is not None:
        input = input.to(dtype)
    return _ops().softmax(input, dim, log)


def softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """exp(x) / sum exp(x) along ``dim``, after conversion to ``dtype``: see torch.nn.functional.softmax.

    Any shape, 0-d included; float32 or float64, else NotImplementedError. A row that is all -inf, or holds
    NaN or +inf, becomes NaN. Without ``dim`` torch's old choice is made, with a UserWarning.
    """
    return _softmax("softmax", input, dim, _stacklevel, dtype, False)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """x - log sum exp(x) along ``dim``, the logarithm of softmax: arguments as there."""
    return _softmax("log_softmax", input, dim, _stacklevel, dtype, True)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-weight[t] input[t], for log-probabilities input and class indices t: see torch.nn.functional.nll_loss.

    input (C), (N, C) or (N, C, d1, ...); target, int64, without C; weight (C). "mean" divides by the sum of
    weight[t]; rows with t == ignore_index count for nothing. IndexError for an index that is no class,
    ValueError for unequal batch sizes, RuntimeError for other shapes and dtypes.
    """
    reduction_enum = _Reduction.get_enum(_reduction(size_average, reduce, reduction))
    return _ops().nll_loss(input, target, weight, reduction_enum, ignore_index)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-sum over c of q[c] log_softmax(input)[c], q the target distribution: see torch.nn.functional.

    input: logits (C), (N, C) or (N, C, d1, ...). target: class indices as in nll_loss, or, of input's own
    shape and floating point, probabilities; these have a gradient, and "mean" divides by the number of rows.
    label_smoothing mixes in the uniform distribution (Szegedy et al., arXiv:1512.00567). Errors as in
    nll_loss.
    """
    reduction_enum = _Reduction.get_enum(_reduction(size_average, reduce, reduction))
    if target.dtype != input.dtype and target.is_floating_point() and input.is_floating_point():
        input, target = _promoted(input, target)
    return _ops().cross_entropy(input, target, weight, reduction_enum, ignore_index, label_smoothing)


def __getattr__(name: str) -> Any:
    if hasattr(torch.nn.functional, name) and not name.startswith("_"):
        raise AttributeError(
            f"minidl.functional has no kernel for {name!r} yet; torch.nn.functional.{name} works beside it"
        )
    raise AttributeError(f"module 'minidl.functional' has no attribute {name!r}")
