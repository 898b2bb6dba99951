"""The values of a plan: where each lies, and how its elements are ordered there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch


class Address(NamedTuple):
    """What stands for a pointer in a planned call."""

    slot: int
    offset: int  # bytes


class Value(NamedTuple):
    """A tensor of the plan, or a view of one."""

    address: Address
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def is_contiguous(self) -> bool:
        return _same_order(self, contiguous_strides(self.shape))

    @property
    def is_channels_last(self) -> bool:
        """Whether torch takes the order for channels_last: 4 dimensions, strides falling in the order N, H, W, C."""
        if len(self.shape) != 4 or self.stride[1] == 0:
            return False
        least = 0
        for d in (1, 3, 2, 0):
            if self.shape[d] == 0 or self.stride[d] < least or (d == 0 and least == self.stride[1]):
                return False
            least = self.stride[d] * max(self.shape[d], 1)
        return True

    @property
    def is_dense(self) -> bool:
        """Whether the elements fill one block of memory, in any order of the dimensions."""
        expected = 1
        for stride, size in sorted(zip(self.stride, self.shape, strict=True)):
            if size == 1:
                continue
            if stride != expected:
                return self.numel == 0
            expected *= size
        return True

    def has_strides(self, stride: Sequence[int]) -> bool:
        return _same_order(self, tuple(stride))

    def viewed(self, shape: Sequence[int], stride: Sequence[int]) -> Value:
        return self._replace(shape=tuple(shape), stride=tuple(stride))

    def transposed(self) -> Value:
        """With the last two dimensions exchanged."""
        swap = [*range(len(self.shape) - 2), len(self.shape) - 1, len(self.shape) - 2]
        return self.viewed([self.shape[d] for d in swap], [self.stride[d] for d in swap])


def contiguous_strides(shape: Sequence[int], channels_last: bool = False) -> tuple[int, ...]:
    order = [1, 3, 2, 0] if channels_last else [*reversed(range(len(shape)))]
    stride, result = 1, [0] * len(shape)
    for d in order:
        result[d] = stride
        stride *= max(shape[d], 1)
    return tuple(result)


def _same_order(value: Value, stride: tuple[int, ...]) -> bool:
    """Strides of dimensions of one element say nothing."""
    if value.numel == 0:
        return True
    return all(a == b for size, a, b in zip(value.shape, value.stride, stride, strict=True) if size > 1)


def copy_shape(
    shape: Sequence[int], to: Sequence[int], source: Sequence[int]
) -> tuple[list[int], list[int], list[int]] | None:
    """Sizes and strides of the kernel strided_copy, which walks 4 dimensions; None where there are more."""
    merged: list[list[int]] = []
    for size, y, x in zip(shape, to, source, strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1] == y * size and merged[-1][2] == x * size:
            merged[-1] = [merged[-1][0] * size, y, x]
        else:
            merged.append([size, y, x])
    if len(merged) > 4:
        return None
    padded = [[1, 0, 0]] * (4 - len(merged)) + merged
    return [row[0] for row in padded], [row[1] for row in padded], [row[2] for row in padded]
