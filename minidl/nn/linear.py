"""``Linear``: torch's module, minidl's product."""

import torch
from torch import Tensor

from minidl import functional as F


class Linear(torch.nn.Linear):
    """``y = x W^T + b``; see :class:`torch.nn.Linear` for the arguments and the initialisation."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)
