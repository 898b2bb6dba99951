"""The convolutions: torch's modules, minidl's kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minidl import functional as F


def _convolved(
    module: Any, input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None
) -> Tensor:
    conv = F.conv1d if isinstance(module, torch.nn.Conv1d) else F.conv2d
    padding = module.padding
    if module.padding_mode != "zeros":
        input = F.pad(input, module._reversed_padding_repeated_twice, mode=module.padding_mode)
        padding = 0
    return conv(input, weight, bias, module.stride, padding, module.dilation, module.groups, activation)


def convolved(module: torch.nn.Conv1d | torch.nn.Conv2d, input: Tensor, activation: str) -> Tensor:
    """``module`` and ``activation`` of ``input`` in one pass."""
    return _convolved(module, input, module.weight, module.bias, activation)


def _transposed(
    conv: Callable[..., Tensor], dims: int, module: Any, input: Tensor, output_size: list[int] | None
) -> Tensor:
    m = module
    output_padding = m._output_padding(
        input, output_size, m.stride, m.padding, m.kernel_size, dims, m.dilation
    )
    return conv(input, m.weight, m.bias, m.stride, m.padding, output_padding, m.groups, m.dilation)


class Conv1d(torch.nn.Conv1d):
    """:func:`minidl.functional.conv1d` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight, self.bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolved(self, input, weight, bias)


class Conv2d(torch.nn.Conv2d):
    """:func:`minidl.functional.conv2d` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight, self.bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolved(self, input, weight, bias)


class ConvTranspose1d(torch.nn.ConvTranspose1d):
    """:func:`minidl.functional.conv_transpose1d` as a module."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _transposed(F.conv_transpose1d, 1, self, input, output_size)


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """:func:`minidl.functional.conv_transpose2d` as a module."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _transposed(F.conv_transpose2d, 2, self, input, output_size)
