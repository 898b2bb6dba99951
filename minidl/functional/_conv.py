"""Convolutions, which are cross-correlations as everywhere in deep learning, and their transposes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minidl.functional._common import ops

Sizes = int | Sequence[int]


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: str | Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Tensor:
    """:func:`conv2d` over one dimension: ``input`` is ``(N, C, L)`` or ``(C, L)``, ``weight``
    ``(out_channels, C / groups, kernel)``."""
    return _convolution(1, input, weight, bias, stride, padding, dilation, groups, activation)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: str | Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Tensor:
    """``activation(input * weight + bias)`` in one pass over the output: see :func:`torch.nn.functional.conv2d`.

    ``input`` is ``(N, C, H, W)`` or ``(C, H, W)``, ``weight`` ``(out_channels, C / groups, height, width)``, ``bias``
    ``(out_channels)``. ``padding`` is a number of zeros on each side, a pair of them, ``"valid"`` (none) or ``"same"``
    (as many as keep the size; stride 1 only). ``activation``: as for :func:`linear`. The result is channels-last if
    ``input`` or ``weight`` is. ``RuntimeError`` for shapes and options that do not fit together.
    """
    return _convolution(2, input, weight, bias, stride, padding, dilation, groups, activation)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """:func:`conv_transpose2d` over one dimension."""
    return _transposed(1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """The gradient of :func:`conv2d` with respect to its input, as an operation of its own.

    ``input`` is ``(N, C, H, W)`` or ``(C, H, W)``, ``weight`` ``(C, out_channels / groups, height, width)``. Each side
    of the result is ``(side - 1) stride - 2 padding + dilation (kernel - 1) + output_padding + 1``.
    """
    return _transposed(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


def _convolution(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: str | Sizes,
    dilation: Sizes,
    groups: int,
    activation: str | None,
) -> Tensor:
    stride, dilation = _sizes(stride), _sizes(dilation)
    if isinstance(padding, str):
        input, padding = _padded(dims, input, weight, stride, padding, dilation)
    options = stride, _sizes(padding), dilation, False, (0,), groups, activation or "none"
    return _batched(f"conv{dims}d", dims, input, weight, bias, options)


def _transposed(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    output_padding: Sizes,
    groups: int,
    dilation: Sizes,
) -> Tensor:
    options = _sizes(stride), _sizes(padding), _sizes(dilation), True, _sizes(output_padding), groups
    return _batched(f"conv_transpose{dims}d", dims, input, weight, bias, options)


def _sizes(value: Sizes) -> Sequence[int]:
    return (value,) if isinstance(value, int) else value


def _batched(
    name: str, dims: int, input: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[object, ...]
) -> Tensor:
    if input.dim() not in (dims + 1, dims + 2) or weight.dim() != dims + 2:
        raise RuntimeError(
            f"minidl::{name}: expected a {dims + 2}D weight and {dims + 1}D (unbatched) or {dims + 2}D (batched) "
            f"input, but got weight of size {list(weight.shape)} and input of size {list(input.shape)}"
        )
    if input.dim() == dims + 1:
        return ops().convolution(input.unsqueeze(0), weight, bias, *options).squeeze(0)
    return ops().convolution(input, weight, bias, *options)


def _padded(
    dims: int, input: Tensor, weight: Tensor, stride: Sequence[int], padding: str, dilation: Sequence[int]
) -> tuple[Tensor, Sequence[int]]:
    """``input`` and the symmetric padding that stand for "valid" or "same"; an odd zero is on the far side."""
    if padding == "valid":
        return input, (0,)
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: '{padding}'")
    if any(s != 1 for s in stride):
        raise RuntimeError("padding='same' is not supported for strided convolutions")
    spread = [
        d * (k - 1) for d, k in zip(list(dilation) * (dims // len(dilation)), weight.shape[2:], strict=True)
    ]
    if any(total % 2 for total in spread):
        input = torch.nn.functional.pad(input, [side for total in spread[::-1] for side in (0, total % 2)])
    return input, [total // 2 for total in spread]
