"""The activations as modules. Arguments: those of the torch module of the same name."""

import torch
from torch import Tensor

from minidl import functional as F


class ReLU(torch.nn.ReLU):
    """:func:`minidl.functional.relu` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input, inplace=self.inplace)


class LeakyReLU(torch.nn.LeakyReLU):
    """:func:`minidl.functional.leaky_relu` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return F.leaky_relu(input, self.negative_slope, self.inplace)


class Sigmoid(torch.nn.Sigmoid):
    """:func:`minidl.functional.sigmoid` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return F.sigmoid(input)


class Tanh(torch.nn.Tanh):
    """:func:`minidl.functional.tanh` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return F.tanh(input)


class GELU(torch.nn.GELU):
    """:func:`minidl.functional.gelu` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input, approximate=self.approximate)


class SiLU(torch.nn.SiLU):
    """:func:`minidl.functional.silu` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(input, inplace=self.inplace)


class Softplus(torch.nn.Softplus):
    """:func:`minidl.functional.softplus` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return F.softplus(input, self.beta, self.threshold)


class Softmax(torch.nn.Softmax):
    """:func:`minidl.functional.softmax` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(torch.nn.LogSoftmax):
    """:func:`minidl.functional.log_softmax` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return F.log_softmax(input, self.dim, _stacklevel=5)
