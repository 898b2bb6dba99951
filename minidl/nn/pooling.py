"""Pooling as modules. Arguments: those of the torch module of the same name."""

from typing import Any

import torch
from torch import Tensor

from minidl import functional as F


class MaxPool2d(torch.nn.MaxPool2d):
    """:func:`minidl.functional.max_pool2d` as a module."""

    def forward(self, input: Tensor) -> Any:
        return F.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class AvgPool2d(torch.nn.AvgPool2d):
    """:func:`minidl.functional.avg_pool2d` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """:func:`minidl.functional.adaptive_max_pool2d` as a module."""

    def forward(self, input: Tensor) -> Any:
        return F.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """:func:`minidl.functional.adaptive_avg_pool2d` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)
