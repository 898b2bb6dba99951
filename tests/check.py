"""How the tests compare: torch in float64 is the truth, and torch in the same dtype says what error is fair."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def assert_close_to_float64(
    ours: Tensor, torchs: Tensor, oracle: Tensor, floor: float = 4.0, scale: Tensor | None = None
) -> None:
    """``ours`` may err at most twice as much as torch's own float32, plus ``floor`` units in the last place of the
    largest result. NaN and infinity must stand where torch has them.

    ``torchs`` is torch's float32 result and ``oracle`` its float64 result. For a float64 ``ours`` the error of
    float32 is scaled by the ratio of the two precisions: it tells how well conditioned the problem is.

    ``scale``, for sums of products, is the sum of the products' absolute values, element by element: rounding errors
    are proportional to that (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), and one unit of it is
    allowed in place of ``floor``.
    """
    assert ours.shape == torchs.shape == oracle.shape
    same_dtype = torchs.double() if ours.dtype == torchs.dtype else oracle
    finite = same_dtype.isfinite()
    eps, torchs_eps = torch.finfo(ours.dtype).eps, torch.finfo(torchs.dtype).eps
    ours, torchs, oracle = (t.detach().double() for t in (ours, torchs, oracle))
    torch.testing.assert_close(ours[~finite], same_dtype[~finite], equal_nan=True)
    if not finite.any():
        return
    error = (ours - oracle)[finite].abs()
    fair = (torchs - oracle)[finite & torchs.isfinite()].abs().max() * eps / torchs_eps
    rounding = floor * oracle[finite].abs().max() if scale is None else scale[finite]
    excess = error - eps * rounding
    assert excess.max() <= 2 * fair, (
        f"error {error.max():.3g}, {excess.max():.3g} beyond rounding, torch's {fair:.3g}"
    )


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
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    *inputs: Tensor,
    floor: float = 4.0,
    products: Callable[..., Tensor] | None = None,
) -> None:
    """``ours`` against ``theirs``: the result, and the gradients for one random upstream gradient.

    The inputs are used as they lie in memory. ``products``: the sums of products in ``theirs``, for ``scale`` above.
    """

    def run(f: Callable[..., Tensor], xs: Sequence[Tensor], dy: Tensor | None) -> tuple[list[Tensor], Tensor]:
        xs = [x.detach().requires_grad_() for x in xs]
        y = f(*xs)
        dy = torch.randn_like(y) if dy is None else dy.to(y.dtype)
        return [y, *torch.autograd.grad(y, xs, dy)], dy

    mine, dy = run(ours, inputs, None)
    torchs, _ = run(theirs, [x.float() for x in inputs], dy)
    oracle, _ = run(theirs, [x.double() for x in inputs], dy)
    scales: Sequence[Tensor | None] = [None] * len(mine)
    if products is not None:
        scales, _ = run(products, [x.double().abs() for x in inputs], dy.abs())
    for one, two, truth, scale in zip(mine, torchs, oracle, scales, strict=True):
        assert_close_to_float64(one, two, truth, floor, scale)
