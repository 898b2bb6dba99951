"""Losses that compare element by element."""

import warnings

import torch
from torch import Tensor
from torch.nn import _reduction as _Reduction

from minidl.functional._common import ops, promoted, reduction_name


def _warn_if_sizes_differ(input: Tensor, target: Tensor) -> None:
    if target.size() != input.size():
        warnings.warn(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). "
            "This will likely lead to incorrect results due to broadcasting. "
            "Please ensure they have the same size.",
            stacklevel=3,
        )


def _elementwise_loss(
    kind: str, input: Tensor, target: Tensor, reduction: str, weight: Tensor | None = None, beta: float = 1.0
) -> Tensor:
    """A loss of input - target after broadcasting; with ``weight``, each element times its weight."""
    if weight is not None and weight.size() != input.size():
        raise ValueError("Weights and input must have the same size.")
    if target.size() != input.size():
        input, target = torch.broadcast_tensors(input, target)
    if weight is None:
        return ops().loss(input, target, kind, _Reduction.get_enum(reduction), beta=beta)
    loss = ops().loss(input, target, kind, 0, beta=beta) * weight
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
    reduction = reduction_name(size_average, reduce, reduction)
    if target.dtype != input.dtype:
        input, target = promoted(input, target)
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
    reduction = reduction_name(size_average, reduce, reduction)
    if target.dtype != input.dtype:
        input, target = promoted(input, target)
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
    reduction = reduction_name(size_average, reduce, reduction)
    if target.dtype != input.dtype:
        input, target = promoted(input, target)
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
    reduction_enum = _Reduction.get_enum(reduction_name(size_average, reduce, reduction))
    if target.size() != input.size():
        raise ValueError(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}) is "
            "deprecated. Please ensure they have the same size."
        )
    return ops().loss(input, target, "bce", reduction_enum, weight)


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
    reduction_enum = _Reduction.get_enum(reduction_name(size_average, reduce, reduction))
    if target.size() != input.size():
        raise ValueError(f"Target size ({target.size()}) must be the same as input size ({input.size()})")
    if target.dtype != input.dtype and target.is_floating_point():
        input, target = promoted(input, target)
    return ops().loss(input, target, "bce_with_logits", reduction_enum, weight, pos_weight)
