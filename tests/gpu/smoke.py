"""Every CUDA kernel once, on small inputs: what tests/gpu/run.sh puts under compute-sanitizer."""

import torch

import minidl.functional as F
from minidl import optim
from minidl.nn import utils


def main() -> None:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        x = torch.randn(70, 40, device="cuda", dtype=dtype).requires_grad_()
        w = torch.randn(33, 40, device="cuda", dtype=dtype).requires_grad_()
        b = torch.randn(33, device="cuda", dtype=dtype).requires_grad_()
        target = torch.randint(33, (70,), device="cuda")
        for activation in ("none", "relu", "sigmoid", "tanh"):
            F.cross_entropy(F.linear(x, w, b, activation), target, label_smoothing=0.1).backward()
        for name in ("relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu", "softplus"):
            getattr(F, name)(x).sum().backward()
        for dim in (0, 1):
            F.nll_loss(F.log_softmax(x, dim), target % 40).backward()
            F.softmax(x, dim).sum().backward()
        for name in (
            "mse_loss",
            "l1_loss",
            "smooth_l1_loss",
            "huber_loss",
            "binary_cross_entropy_with_logits",
        ):
            getattr(F, name)(x, torch.rand_like(x)).backward()
        F.matmul(
            torch.randn(3, 130, 513, device="cuda", dtype=dtype),
            torch.randn(513, 140, device="cuda", dtype=dtype),
        )
        for groups, order in (
            (1, torch.contiguous_format),
            (1, torch.channels_last),
            (16, torch.channels_last),
        ):
            shapes = (2, 16, 13, 12), (128, 16 // groups, 3, 3), (128,)
            i, k, c = (torch.randn(shape, device="cuda", dtype=dtype) for shape in shapes)
            i, k = (t.to(memory_format=order).requires_grad_() for t in (i, k))
            for stride, activation in ((1, "none"), (2, "tanh")):
                y = F.conv2d(i, k, c.requires_grad_(), stride, 1, 1, groups, activation)
                y.backward(torch.randn_like(y))
        utils.clip_grad_norm_([x, w, b], 0.5)
        utils.clip_grad_value_([x, w, b], 0.1)
        for kind in (optim.SGD, optim.RMSprop, optim.Adam, optim.AdamW):
            kind([x, w, b], lr=0.01).step()
    torch.cuda.synchronize()
    print("all kernels ran")


if __name__ == "__main__":
    main()
