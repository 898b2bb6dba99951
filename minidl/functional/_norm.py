"""Normalisations, each with a relu that costs no pass of its own."""

from collections.abc import Sequence

from torch import Tensor

from minidl.functional._common import ops


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str | None = None,
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` channel by channel (Ioffe and Szegedy, arXiv:1502.03167).

    ``input`` is ``(N, C, *)``, the others ``(C)``. In training mean and the biased variance are those of the batch, and
    ``running_mean`` and ``running_var``, where given, move towards them by the share ``momentum`` (the latter towards
    the unbiased variance); else they are the running ones. ``activation`` is ``"relu"`` or ``None``. Memory in the
    channels_last order is read and written as it lies.

    ValueError for one value a channel in training and for an ``eps`` that is negative, or 0 in training; RuntimeError
    for shapes and dtypes that do not fit and for missing running statistics.
    """
    return ops().batch_norm(
        input, weight, bias, running_mean, running_var, training, momentum, eps, activation or "none"
    )


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last dimensions (Ba et al., arXiv:1607.06450).

    ``input`` ends in ``normalized_shape``, which is the shape of ``weight`` and ``bias``; else RuntimeError.
    ``activation`` is ``"relu"`` or ``None``.
    """
    return ops().layer_norm(input, normalized_shape, weight, bias, eps, activation or "none")


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over groups of channels (Wu and He, arXiv:1803.08494).

    ``input`` is ``(N, C, *)``, ``weight`` and ``bias`` are ``(C)``. ``activation`` is ``"relu"`` or ``None``.
    RuntimeError where ``num_groups`` does not divide C; ValueError for one value in all of a group.
    """
    return ops().group_norm(input, num_groups, weight, bias, eps, activation or "none")
