"""Products: matmul and linear."""

from torch import Tensor

from minidl.functional._common import ops


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """Matrix product with the shapes of :func:`torch.matmul`.

    1-D operands are a row on the left and a column on the right; leading dimensions broadcast.
    """
    return ops().matmul(input, other)


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """``activation(input @ weight.T + bias)`` in one pass over the output.

    ``input`` is ``(*, in_features)``, ``weight`` ``(out_features, in_features)``, ``bias`` ``(out_features)``; the
    result is ``(*, out_features)``. ``activation`` is ``"relu"``, ``"sigmoid"``, ``"tanh"``, ``"gelu"``,
    ``"gelu_tanh"``, ``"silu"`` or ``None``.
    """
    if weight.dim() == 1:  # torch: one output feature, without a dimension of its own
        y = matmul(input, weight) if bias is None else matmul(input, weight) + bias
        return y if activation is None else ops().activation(y, activation)
    return ops().linear(input, weight, bias, activation or "none")
