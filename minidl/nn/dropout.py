"""Dropout as modules. Arguments: those of the torch module of the same name."""

import torch
from torch import Tensor

from minidl import functional as F


class Dropout(torch.nn.Dropout):
    """:func:`minidl.functional.dropout` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, self.inplace)


class Dropout1d(torch.nn.Dropout1d):
    """:func:`minidl.functional.dropout1d` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout1d(input, self.p, self.training, self.inplace)


class Dropout2d(torch.nn.Dropout2d):
    """:func:`minidl.functional.dropout2d` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout2d(input, self.p, self.training, self.inplace)
