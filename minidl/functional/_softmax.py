"""Softmax, and the losses of classification."""

import warnings

import torch
from torch import Tensor
from torch.nn import _reduction as _Reduction

from minidl.functional._common import ops, promoted, reduction_name


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
    return ops().softmax(input, dim, log)


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
    reduction_enum = _Reduction.get_enum(reduction_name(size_average, reduce, reduction))
    return ops().nll_loss(input, target, weight, reduction_enum, ignore_index)


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
    reduction_enum = _Reduction.get_enum(reduction_name(size_average, reduce, reduction))
    if target.dtype != input.dtype and target.is_floating_point() and input.is_floating_point():
        input, target = promoted(input, target)
    return ops().cross_entropy(input, target, weight, reduction_enum, ignore_index, label_smoothing)
