"""How the tests compare: torch in float64 is the truth, and torch in the same dtype says what error is fair."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def assert_close_to_float64(ours: Tensor, torchs: Tensor, oracle: Tensor, floor: float = 4.0) -> None:
    """``ours`` may err at most twice as much as ``torchs`` (torch's own result in the same dtype), plus ``floor``
    units in the last place of the largest finite result. NaN and infinity must stand where torch has them.

    ``oracle`` is torch's result in float64 (for a float64 test: the same as ``torchs``).
    """
    assert ours.dtype == torchs.dtype
    assert ours.shape == torchs.shape
    if ours.numel() == 0:
        return
    eps = torch.finfo(ours.dtype).eps
    ours, torchs, oracle = (t.detach().double() for t in (ours, torchs, oracle))
    finite = oracle.isfinite() & torchs.isfinite()
    assert torch.equal(ours[~finite].isnan(), torchs[~finite].isnan())
    assert torch.equal(ours[~finite].nan_to_num(), torchs[~finite].nan_to_num())
    if not finite.any():
        return
    error = (ours - oracle)[finite].abs().max()
    fair = (torchs - oracle)[finite].abs().max()
    scale = oracle[finite].abs().max()
    allowed = 2 * fair + floor * eps * scale
    assert error <= allowed, f"error {error:.3g}, torch's own {fair:.3g}, allowed {allowed:.3g}"


def layouts(shape: Sequence[int], dtype: torch.dtype) -> list[tuple[str, Tensor]]:
    """Random tensors of one shape that lie differently in memory."""
    dense = torch.randn(*shape, dtype=dtype)
    n = dense.numel()
    found = [
        ("dense", dense),
        ("odd offset", torch.randn(n + 1, dtype=dtype)[1:].view(*shape)),
        ("strided", torch.randn(*shape[:-1], 2 * shape[-1] + 1, dtype=dtype)[..., 1::2]),
        ("expanded", torch.randn(*shape[:-1], 1, dtype=dtype).expand(*shape)),
    ]
    if len(shape) > 1:
        found.append(("transposed", torch.randn(*shape[:-2], shape[-1], shape[-2], dtype=dtype).mT))
    return found


def assert_same_gradients(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor, floor: float = 4.0
) -> None:
    """``ours`` against ``theirs``: the result, and the gradients for one random upstream gradient.

    The inputs are used as they lie in memory; for float64 inputs torch's float64 result is the truth itself.
    """

    def run(f: Callable[..., Tensor], xs: Sequence[Tensor], dy: Tensor | None) -> tuple[list[Tensor], Tensor]:
        xs = [x.detach().requires_grad_() for x in xs]
        y = f(*xs)
        dy = torch.randn_like(y) if dy is None else dy.to(y.dtype)
        return [y, *torch.autograd.grad(y, xs, dy)], dy

    mine, dy = run(ours, inputs, None)
    torchs, _ = run(theirs, inputs, dy)
    oracle, _ = run(theirs, [x.double() for x in inputs], dy)
    for one, two, truth in zip(mine, torchs, oracle, strict=True):
        assert_close_to_float64(one, two, truth, floor)
