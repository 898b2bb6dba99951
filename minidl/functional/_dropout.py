"""Dropout (Srivastava et al., JMLR 15, 2014), of elements and of whole channels.

Float32 or float64. What is dropped follows from 128 bits drawn from ``generator``, by default torch's for the CPU:
``torch.manual_seed`` repeats it, torch.utils.checkpoint too. No mask is kept: the backward pass makes it again.
"""

import warnings

import torch
from torch import Tensor

from minidl.functional._common import ops


def _dropout(
    input: Tensor,
    p: float,
    training: bool,
    inplace: bool,
    generator: torch.Generator | None,
    channels: bool,
    batched: bool = True,
) -> Tensor:
    if not training or p == 0:
        return input
    if batched:
        y = ops().dropout(input, p, channels, generator)
    else:
        y = ops().dropout(input.unsqueeze(0), p, channels, generator).squeeze(0)
    return input.copy_(y) if inplace else y


def _check_probability(p: float) -> None:
    if p < 0.0 or p > 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``input / (1 - p)``, but each element with probability ``p`` times 0; ``input`` itself if not ``training``.

    Infinity and NaN that are dropped give NaN, as in torch. ValueError for a ``p`` outside [0, 1].
    """
    _check_probability(p)
    return _dropout(input, p, training, inplace, generator, channels=False)


def dropout1d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """:func:`dropout` of whole channels of an ``input`` (N, C, L) or (C, L); RuntimeError for others."""
    _check_probability(p)
    if input.dim() not in (2, 3):
        raise RuntimeError(f"dropout1d: expected a 2D or 3D input, but got a {input.dim()}D one")
    return _dropout(input, p, training, inplace, generator, channels=True, batched=input.dim() == 3)


def dropout2d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """:func:`dropout` of whole channels of an ``input`` (N, C, H, W).

    As in torch, three dimensions are taken for (N, C, L), with a UserWarning, and other numbers of dimensions, at
    least 2, for (N, C, *), with another.
    """
    _check_probability(p)
    if input.dim() == 3:
        warnings.warn(
            "dropout2d: a 3D input is taken for (N, C, L), as by dropout1d; torch may come to take it for "
            "(C, H, W), without a batch",
            stacklevel=2,
        )
    elif input.dim() != 4:
        warnings.warn(
            f"dropout2d: a {input.dim()}D input is deprecated; dropout is the function for it", stacklevel=2
        )
    return _dropout(input, p, training, inplace, generator, channels=True)
