"""The normalisations: torch's modules, minidl's kernels."""

import torch
from torch import Tensor

from minidl import functional as F


def batch_normalized(
    module: torch.nn.BatchNorm1d | torch.nn.BatchNorm2d, input: Tensor, activation: str | None = None
) -> Tensor:
    """``module`` and ``activation`` of ``input``; counts the batch and moves the running statistics in training."""
    module._check_input_dim(input)
    tracked = module.track_running_stats or not module.training
    momentum = module.momentum
    if module.training and module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if momentum is None:  # the average of all batches so far
            momentum = 1.0 / float(module.num_batches_tracked)
    return F.batch_norm(
        input,
        module.running_mean if tracked else None,
        module.running_var if tracked else None,
        module.weight,
        module.bias,
        module.training or (module.running_mean is None and module.running_var is None),
        0.0 if momentum is None else momentum,
        module.eps,
        activation,
    )


class BatchNorm1d(torch.nn.BatchNorm1d):
    """:func:`minidl.functional.batch_norm` of ``(N, C)`` or ``(N, C, L)`` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return batch_normalized(self, input)


class BatchNorm2d(torch.nn.BatchNorm2d):
    """:func:`minidl.functional.batch_norm` of ``(N, C, H, W)`` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return batch_normalized(self, input)


class LayerNorm(torch.nn.LayerNorm):
    """:func:`minidl.functional.layer_norm` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class GroupNorm(torch.nn.GroupNorm):
    """:func:`minidl.functional.group_norm` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
