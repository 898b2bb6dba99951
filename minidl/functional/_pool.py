"""Pooling of images (N, C, H, W) or (C, H, W), float32 or float64.

The output has the memory format of the input, contiguous or channels_last; both are computed as they lie. A bad
argument or shape raises RuntimeError, an element of a size that is no int TypeError.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.modules.utils import _list_with_default

from minidl.functional._common import ops

Size = int | Sequence[int]
OutputSize = int | Sequence[int | None] | None


def _rows_and_columns(size: Size | None) -> tuple[int, ...]:
    if isinstance(size, (tuple, list)):
        return tuple(size)
    return (size, size)  # type: ignore[return-value] # the operator refuses what is no int


def _output_size(size: Any, input: Tensor) -> tuple[int, ...]:
    """None, in a pair, is the input's size."""
    return _rows_and_columns(_list_with_default(size, list(input.size())))


def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window: see torch.nn.functional.max_pool2d.

    Windows begin ``stride`` apart (default: ``kernel_size``); ``padding`` of -inf, at most half of ``kernel_size``;
    ``dilation`` between the elements of a window; ``ceil_mode`` adds a window for a rest. NaN wins. With
    ``return_indices`` also, int64, where in its image each maximum stands: the first of equals.
    """
    windows = (
        _rows_and_columns(kernel_size),
        () if stride is None else _rows_and_columns(stride),
        _rows_and_columns(padding),
        _rows_and_columns(dilation),
    )
    op = ops().max_pool2d_with_indices if return_indices else ops().max_pool2d
    return op(input, *windows, ceil_mode)


def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = True,
) -> tuple[Tensor, Tensor]:
    """:func:`max_pool2d` with its indices, whatever ``return_indices`` says."""
    return max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, True)


def avg_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window: see torch.nn.functional.avg_pool2d.

    Windows as in :func:`max_pool2d`, padded with zeros, which count as elements if ``count_include_pad``.
    ``divisor_override``, not 0, is what sums are divided by instead of their number of elements.
    """
    windows = (
        _rows_and_columns(kernel_size),
        () if stride is None else _rows_and_columns(stride),
        _rows_and_columns(padding),
    )
    return ops().avg_pool2d(input, *windows, ceil_mode, count_include_pad, divisor_override)


def adaptive_max_pool2d(input: Tensor, output_size: OutputSize, return_indices: bool = False) -> Any:
    """The maximum of each of ``output_size`` windows; None keeps a size. Indices as in :func:`max_pool2d`.

    Window o of an axis reaches from floor(o in / out) to ceil((o + 1) in / out).
    """
    size = _output_size(output_size, input)
    op = ops().adaptive_max_pool2d_with_indices if return_indices else ops().adaptive_max_pool2d
    return op(input, size)


def adaptive_max_pool2d_with_indices(
    input: Tensor, output_size: OutputSize, return_indices: bool = True
) -> tuple[Tensor, Tensor]:
    """:func:`adaptive_max_pool2d` with its indices, whatever ``return_indices`` says."""
    return adaptive_max_pool2d(input, output_size, True)


def adaptive_avg_pool2d(input: Tensor, output_size: OutputSize) -> Tensor:
    """The mean of each of ``output_size`` windows: windows as in :func:`adaptive_max_pool2d`."""
    return ops().adaptive_avg_pool2d(input, _output_size(output_size, input))
