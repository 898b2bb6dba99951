"""The functions of ``torch.nn.functional`` that minidl computes, with torch's signatures.

Every function takes float32 or float64 tensors of any strides, records what autograd needs, and raises what torch
raises: ``RuntimeError`` for shapes and dtypes that do not fit together, ``ValueError`` for options that do not
exist, ``NotImplementedError`` for dtypes and devices without a kernel. Names of shapes: ``N`` rows, ``C`` classes,
``*`` any dimensions.
"""

from typing import Any

import torch
from torch.nn.functional import one_hot, pad  # these need no kernel

from minidl.functional._activation import (
    gelu,
    leaky_relu,
    relu,
    sigmoid,
    silu,
    softplus,
    tanh,
)
from minidl.functional._conv import conv1d, conv2d, conv_transpose1d, conv_transpose2d
from minidl.functional._dropout import dropout, dropout1d, dropout2d
from minidl.functional._loss import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    huber_loss,
    l1_loss,
    mse_loss,
    smooth_l1_loss,
)
from minidl.functional._matmul import linear, matmul
from minidl.functional._norm import batch_norm, group_norm, layer_norm
from minidl.functional._pool import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    adaptive_max_pool2d_with_indices,
    avg_pool2d,
    max_pool2d,
    max_pool2d_with_indices,
)
from minidl.functional._softmax import cross_entropy, log_softmax, nll_loss, softmax

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_with_indices",
    "avg_pool2d",
    "batch_norm",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "cross_entropy",
    "dropout",
    "dropout1d",
    "dropout2d",
    "gelu",
    "group_norm",
    "huber_loss",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "matmul",
    "max_pool2d",
    "max_pool2d_with_indices",
    "mse_loss",
    "nll_loss",
    "one_hot",
    "pad",
    "relu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "tanh",
]


def __getattr__(name: str) -> Any:
    if hasattr(torch.nn.functional, name) and not name.startswith("_"):
        raise AttributeError(
            f"minidl.functional has no kernel for {name!r} yet; torch.nn.functional.{name} works beside it"
        )
    raise AttributeError(f"module 'minidl.functional' has no attribute {name!r}")
