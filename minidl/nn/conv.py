"""The convolutions: torch's modules, minidl's kernels."""

import torch
from torch import Tensor

from minidl import functional as F


def _convolved(
    module: torch.nn.Conv1d | torch.nn.Conv2d,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None = None,
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
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, 1, self.dilation
        )
        return F.conv_transpose1d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
        )


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """:func:`minidl.functional.conv_transpose2d` as a module."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation
        )
        return F.conv_transpose2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
        )
