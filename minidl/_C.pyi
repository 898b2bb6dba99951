"""The extension module: minidl's operators as functions. Shapes and errors are those of minidl.functional."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

def available_isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def threads_used() -> int: ...
def empty_memory_cache() -> None: ...
def set_memory_limit(bytes: int) -> None: ...
def memory_stats() -> dict[str, int]: ...
def activation(x: Tensor, name: str, alpha: float = 0.0, beta: float = 0.0) -> Tensor: ...
def matmul(a: Tensor, b: Tensor) -> Tensor: ...
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor: ...
def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    activation: str = "none",
) -> Tensor: ...
def loss(
    input: Tensor,
    target: Tensor,
    kind: str,
    reduction: int = 1,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    beta: float = 1.0,
) -> Tensor: ...
def softmax(input: Tensor, dim: int, log: bool = False) -> Tensor: ...
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor: ...
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
) -> Tensor: ...
def batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str = "none",
) -> Tensor: ...
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str = "none",
) -> Tensor: ...
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str = "none",
) -> Tensor: ...
def dropout(
    input: Tensor, p: float, channels: bool = False, generator: torch.Generator | None = None
) -> Tensor: ...
def max_pool2d(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor: ...
def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]: ...
def avg_pool2d(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor: ...
def adaptive_max_pool2d(input: Tensor, output_size: Sequence[int]) -> Tensor: ...
def adaptive_max_pool2d_with_indices(input: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]: ...
def adaptive_avg_pool2d(input: Tensor, output_size: Sequence[int]) -> Tensor: ...
def sgd_step(group: dict[str, Any], state: dict[Any, Any]) -> bool: ...
def rmsprop_step(group: dict[str, Any], state: dict[Any, Any]) -> bool: ...
def adam_step(group: dict[str, Any], state: dict[Any, Any]) -> bool: ...
def gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]: ...
def total_norm(grads: list[Tensor], p: float) -> Tensor: ...
def clip_norm(grads: list[Tensor], norm: Tensor, max_norm: float) -> None: ...
def clip_value(grads: list[Tensor], bound: float) -> None: ...
def fma_loop(dtype: torch.dtype, iterations: int) -> float: ...
