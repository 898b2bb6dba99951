"""What tests/gpu compares: name, ours, torch's, float64 inputs on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as TF
from torch import Tensor

import minidl.functional as F

Function = Callable[..., Tensor]
Case = tuple[str, Function, Function, tuple[Tensor, ...]]


def dense_cases() -> Iterator[Case]:
    """Sizes on both sides of the kernels' thresholds."""
    torch.manual_seed(0)
    for m, k, n in ((1, 1, 1), (37, 19, 23), (128, 784, 256), (64, 64, 10), (300, 513, 260), (40, 4096, 24)):
        x, w, b = torch.randn(m, k).double(), torch.randn(n, k).double() / k**0.5, torch.randn(n).double()
        yield f"matmul {m} {k} {n}", F.matmul, torch.matmul, (x, w.t())
        yield (
            f"matmul of transposes {m} {k} {n}",
            lambda a, c: F.matmul(a.t(), c),
            lambda a, c: a.t() @ c,
            (x, x),
        )
        yield f"linear {m} {k} {n}", F.linear, TF.linear, (x, w, b)
        for name in ("relu", "sigmoid", "tanh"):
            ours = lambda x, w, b, name=name: F.linear(x, w, b, name)  # noqa: E731
            theirs = lambda x, w, b, name=name: getattr(torch, name)(TF.linear(x, w, b))  # noqa: E731
            yield f"linear + {name} {m} {k} {n}", ours, theirs, (x, w, b)
    a, b = torch.randn(5, 33, 65).double(), torch.randn(5, 65, 40).double() / 8
    yield "batched matmul", F.matmul, torch.matmul, (a, b)
    for n in (1, 31, 4099, 300007):
        x, t = torch.randn(n).double(), torch.rand(n).double()
        for name in ("relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu", "softplus"):
            yield f"{name} {n}", getattr(F, name), getattr(TF, name), (x,)
        for name in (
            "mse_loss",
            "l1_loss",
            "smooth_l1_loss",
            "huber_loss",
            "binary_cross_entropy_with_logits",
        ):
            yield f"{name} {n}", getattr(F, name), getattr(TF, name), (x, t)
    for shape in ((3, 5), (70, 1000), (9, 1025), (2, 20001), (1, 70001), (4, 7, 6)):
        x = torch.randn(*shape).double() * 3
        target = torch.randint(shape[1], (shape[0], *shape[2:]))
        for name in ("softmax", "log_softmax"):
            ours, theirs = getattr(F, name), getattr(TF, name)
            yield f"{name} {shape}", lambda t, f=ours: f(t, 1), lambda t, f=theirs: f(t, 1), (x,)
        for options in (
            {},
            {"label_smoothing": 0.1},
            {"reduction": "sum", "ignore_index": int(target.flatten()[0])},
        ):
            ours = lambda t, o=options, c=target: F.cross_entropy(t, c.to(t.device), **o)  # noqa: E731
            theirs = lambda t, o=options, c=target: TF.cross_entropy(t, c.to(t.device), **o)  # noqa: E731
            yield f"cross_entropy {shape} {options}", ours, theirs, (x,)
        yield (
            f"nll_loss {shape}",
            lambda t, c=target: F.nll_loss(t, c.to(t.device)),
            lambda t, c=target: TF.nll_loss(t, c.to(t.device)),
            (x,),
        )


def same(name: str, *inputs: Tensor, label: str = "", **options: object) -> Case:
    """The function of that name, here and in torch, with the same options."""
    ours, theirs = getattr(F, name), getattr(TF, name)
    text = " ".join([name, label or str(tuple(inputs[0].shape)), *(f"{k}={v}" for k, v in options.items())])
    return text, lambda *x: ours(*x, **options), lambda *x: theirs(*x, **options), inputs


def image_cases() -> Iterator[Case]:
    """Convolution, pooling and normalisation: strides, padding, groups, channels last, sizes that divide nothing."""
    torch.manual_seed(1)
    for shape, w_shape, options in (
        ((2, 3, 9, 11), (4, 3, 3, 3), {"padding": 1}),
        ((1, 8, 14, 14), (16, 8, 3, 3), {"stride": 2, "padding": 1}),
        ((2, 4, 10, 10), (4, 1, 3, 3), {"padding": 2, "dilation": 2, "groups": 4}),
        ((4, 1, 28, 28), (6, 1, 5, 5), {"padding": 2}),
        ((2, 32, 7, 7), (64, 32, 1, 1), {}),
        ((8, 64, 16, 16), (64, 64, 3, 3), {"padding": 1}),
        ((2, 6, 12, 9), (8, 3, 4, 2), {"stride": (3, 2), "groups": 2}),
    ):
        x, w = torch.randn(*shape).double(), torch.randn(*w_shape).double() / (w_shape[1] * w_shape[2]) ** 0.5
        bias = torch.randn(w_shape[0]).double()
        yield same("conv2d", x, w, bias, **options)
        x_last, w_last = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
        yield same("conv2d", x_last, w_last, bias, label=f"{shape} channels last", **options)
    x, w, bias = torch.randn(2, 6, 31).double(), torch.randn(5, 6, 3).double() / 4, torch.randn(5).double()
    yield same("conv1d", x, w, bias, stride=2, padding=1)
    x, w, bias = (
        torch.randn(2, 6, 7, 5).double(),
        torch.randn(6, 4, 3, 3).double() / 4,
        torch.randn(4).double(),
    )
    yield same("conv_transpose2d", x, w, bias, stride=2, padding=1, output_padding=1)
    for shape in ((2, 3, 13, 17), (1, 1, 4, 4), (3, 40, 28, 28)):
        # No two of a window are equal in any dtype: of equal maxima each takes another.
        x = (torch.randperm(int(torch.tensor(shape).prod())) % 1000 / 8 - 60).double().reshape(shape)
        last = x.contiguous(memory_format=torch.channels_last)
        for images, label in ((x, str(shape)), (last, f"{shape} channels last")):
            yield same("max_pool2d", images, label=label, kernel_size=2)
            yield same("max_pool2d", images, label=label, kernel_size=3, stride=2, padding=1)
            yield same("avg_pool2d", images, label=label, kernel_size=3, stride=2, padding=1)
            yield same("avg_pool2d", images, label=label, kernel_size=2, ceil_mode=True)
            yield same("avg_pool2d", images, label=label, kernel_size=3, padding=1, count_include_pad=False)
            yield same("adaptive_avg_pool2d", images, label=label, output_size=(3, 2))
            yield same("adaptive_max_pool2d", images, label=label, output_size=(3, 2))
    for shape in ((5, 3), (4, 6, 7), (2, 8, 9, 9), (16, 64, 8, 8), (300, 17)):
        x, w, b = (torch.randn(*s).double() for s in (shape, shape[1:2], shape[1:2]))
        mean, var = torch.zeros_like(w), torch.ones_like(w)
        for training in (True, False):
            f, g = (
                lambda x, w, b, module=module, training=training, mean=mean, var=var: module.batch_norm(
                    x, mean.to(x).clone(), var.to(x).clone(), w, b, training
                )
                for module in (F, TF)
            )
            yield f"batch_norm {shape} training={training}", f, g, (x, w, b)
        if shape[1] % 2 == 0:
            yield same("group_norm", x, label=str(shape), num_groups=2)
    for rows, columns in ((3, 5), (200, 64), (7, 1000), (2, 20001)):
        x, w, b = (
            torch.randn(rows, columns).double() + 3,
            torch.randn(columns).double(),
            torch.randn(columns).double(),
        )
        ours = lambda x, w, b, n=columns: F.layer_norm(x, (n,), w, b)  # noqa: E731
        theirs = lambda x, w, b, n=columns: TF.layer_norm(x, (n,), w, b)  # noqa: E731
        yield f"layer_norm {rows} {columns}", ours, theirs, (x, w, b)
