"""Every CUDA kernel once, on small inputs: what tests/gpu/run.sh puts under compute-sanitizer."""

import torch

import minidl.functional as F
from minidl import TrainStep, nn, optim
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
        images = torch.randn(2, 6, 9, 7, device="cuda", dtype=dtype).requires_grad_()
        for form in (torch.contiguous_format, torch.channels_last):
            maps = images.contiguous(memory_format=form)
            filters = torch.randn(4, 3, 3, 3, device="cuda", dtype=dtype).requires_grad_()
            F.conv2d(maps, filters, b[:4], stride=2, padding=1, groups=2).sum().backward()
            F.conv_transpose2d(maps, torch.randn(6, 4, 3, 3, device="cuda", dtype=dtype)).sum().backward()
            F.max_pool2d(maps, 3, 2, 1).sum().backward()
            F.avg_pool2d(maps, 2).sum().backward()
            F.adaptive_avg_pool2d(maps, (3, 2)).sum().backward()
            F.batch_norm(maps, None, None, training=True).sum().backward()
            F.group_norm(maps, 2).sum().backward()
            F.dropout(maps, 0.3).sum().backward()
            F.dropout2d(maps, 0.3).sum().backward()
        F.layer_norm(x, (40,)).sum().backward()
        utils.clip_grad_norm_([x, w, b], 0.5)
        utils.clip_grad_value_([x, w, b], 0.1)
        for kind in (optim.SGD, optim.RMSprop, optim.Adam, optim.AdamW):
            kind([x, w, b], lr=0.01).step()
        optim.Adam([x, w, b], lr=torch.tensor(0.01, device="cuda"), capturable=True).step()
    for width in (4, 400):  # the loop in one block, and a graph
        model = nn.Sequential(nn.Linear(40, width), nn.ReLU(), nn.Linear(width, 5)).cuda()
        step = TrainStep(model, nn.CrossEntropyLoss(), optim.Adam(model.parameters()))
        step.fit(torch.randn(70, 40, device="cuda"), target[:70] % 5, epochs=2, batch_size=16)
    torch.cuda.synchronize()
    print("all kernels ran")


if __name__ == "__main__":
    main()
