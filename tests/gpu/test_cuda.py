"""The operators on a GPU against torch in float64: values, gradients, streams, graphs, bits, errors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
import torch.nn.functional as TF
from torch import Tensor

import minidl.functional as F
import minidl.nn as nn
from minidl import _build_info, optim

if not torch.cuda.is_available() or _build_info.cuda is None:
    pytest.skip("no GPU, or no CUDA kernels in this build", allow_module_level=True)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
Function = Callable[..., Tensor]


def cases() -> Iterator[tuple[str, Function, Function, tuple[Tensor, ...]]]:
    """Name, ours, torch's, float64 inputs on the CPU. Sizes on both sides of the kernels' thresholds."""
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
    for shape, kernel, options in (
        ((3, 5, 9, 11), (7, 5, 3, 3), {"padding": 1}),
        ((2, 64, 28, 28), (96, 64, 3, 3), {"padding": 1}),
        ((4, 16, 17, 15), (24, 16, 3, 2), {"stride": 2, "dilation": (1, 2)}),
        ((8, 3, 33, 33), (16, 3, 5, 5), {"stride": 3, "padding": 2}),
        ((2, 128, 9, 9), (256, 128, 1, 1), {}),
        ((2, 48, 14, 14), (48, 1, 3, 3), {"padding": 1, "groups": 48}),
        ((2, 64, 14, 14), (128, 16, 3, 3), {"padding": 1, "groups": 4}),
    ):
        x, w, b = torch.randn(shape), torch.randn(kernel), torch.randn(kernel[0])
        x, w, b = x.double(), w.double() / w[0].numel() ** 0.5, b.double()
        for order in (torch.contiguous_format, torch.channels_last):
            ours = lambda x, w, b, o=options, m=order: F.conv2d(  # noqa: E731
                x.to(memory_format=m), w.to(memory_format=m), b, **o, activation="tanh"
            )
            theirs = lambda x, w, b, o=options, m=order: TF.conv2d(  # noqa: E731
                x.to(memory_format=m), w.to(memory_format=m), b, **o
            ).tanh()
            yield f"conv2d + tanh {shape} {kernel} {options} {order}", ours, theirs, (x, w, b)
    x, w = torch.randn(2, 12, 9, 9).double(), torch.randn(12, 10, 4, 4).double() / 14
    for stride in (1, 2, 3):
        yield (
            f"conv_transpose2d, stride {stride}",
            lambda x, w, s=stride: F.conv_transpose2d(x, w, stride=s, padding=1),
            lambda x, w, s=stride: TF.conv_transpose2d(x, w, stride=s, padding=1),
            (x, w),
        )
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


def running(b: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """A mean and a variance, which training moves."""
    return b.detach().clone(), w.detach() ** 2


def layer_cases() -> Iterator[tuple[str, Function, Function, tuple[Tensor, ...]]]:
    """Pooling and normalisation, in both memory orders, on both sides of the kernels' thresholds."""
    for shape in ((3, 5, 17, 16), (2, 64, 56, 56), (4, 8, 9, 9), (1, 2, 130, 130)):
        for order in (torch.contiguous_format, torch.channels_last):
            x, name = torch.randn(*shape).double().to(memory_format=order), f"{shape} {order}"
            for pool, options in (
                ("max_pool2d", {"kernel_size": 2}),
                ("max_pool2d", {"kernel_size": 3, "stride": 2, "padding": 1}),
                ("avg_pool2d", {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
                ("adaptive_avg_pool2d", {"output_size": 1}),
                ("adaptive_max_pool2d", {"output_size": (3, 4)}),
            ):
                ours, theirs = getattr(F, pool), getattr(TF, pool)
                yield (
                    f"{pool} {options} {name}",
                    lambda x, f=ours, o=options: f(x, **o),
                    lambda x, f=theirs, o=options: f(x, **o),
                    (x,),
                )
            w, b = torch.rand(shape[1]).double() + 0.5, torch.randn(shape[1]).double()
            for training in (True, False):
                yield (
                    f"batch_norm {name}, training {training}",
                    lambda x, w, b, t=training: F.batch_norm(x, *running(b, w), w, b, t),
                    lambda x, w, b, t=training: TF.batch_norm(x, *running(b, w), w, b, t),
                    (x, w, b),
                )
        groups = 1 if shape[1] == 5 else 2
        yield (
            f"group_norm {shape}",
            lambda x, w, b, g=groups: F.group_norm(x, g, w, b),
            lambda x, w, b, g=groups: TF.group_norm(x, g, w, b),
            (x.contiguous(), w, b),
        )
    for rows, size in ((1, 2), (70, 64), (3, 1023), (1000, 768), (5, 20000)):
        x, w, b = torch.randn(rows, size).double(), torch.randn(size).double(), torch.randn(size).double()
        yield (
            f"layer_norm {rows} {size}",
            lambda x, w, b: F.layer_norm(x, w.shape, w, b),
            lambda x, w, b: TF.layer_norm(x, w.shape, w, b),
            (x, w, b),
        )
        yield (
            f"batch_norm {rows} {size}",
            lambda x, w, b: F.batch_norm(x, *running(b, w), w, b, x.shape[0] > 1),
            lambda x, w, b: TF.batch_norm(x, *running(b, w), w, b, x.shape[0] > 1),
            (x, w, b),
        )


# Not layers in float64, whose long sums the truth rounds as well.
PAIRS = [*product(cases(), DTYPES), *product(layer_cases(), [d for d in DTYPES if d != torch.float64])]


def poison() -> None:
    """Leaves NaN in what the allocator hands out next."""
    blocks = [
        torch.full((size,), float("nan"), device="cuda") for size in (1 << 8, 1 << 14, 1 << 18, 1 << 22) * 4
    ]
    del blocks


def results(f: Function, inputs: tuple[Tensor, ...], device: str, dtype: torch.dtype) -> list[Tensor]:
    leaves = [x.to(device, dtype).detach().requires_grad_() for x in inputs]
    y = f(*leaves)
    dy = (
        torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
        if y.dim()
        else torch.tensor(1.5).double()
    )
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(device, dtype))]


@pytest.mark.parametrize(("case", "dtype"), PAIRS, ids=[f"{case[0]} {dtype}" for case, dtype in PAIRS])
def test_parity(case: tuple[str, Function, Function, tuple[Tensor, ...]], dtype: torch.dtype) -> None:
    """At most twice the error of torch's own kernels on the same device, plus a few last places."""
    _, ours, theirs, inputs = case
    inputs = tuple(x.to(dtype).double() for x in inputs)
    poison()
    mine = results(ours, inputs, "cuda", dtype)
    again = results(ours, inputs, "cuda", dtype)
    torchs = results(theirs, inputs, "cuda", dtype)
    truth = results(theirs, inputs, "cpu", torch.float64)
    eps = torch.finfo(dtype).eps
    for one, same, other, exact in zip(mine, again, torchs, truth, strict=True):
        assert torch.equal(one, same), "other bits on a second run"
        one, other = one.double().cpu(), other.double().cpu()
        allowed = 2 * (other - exact).abs().max() + 8 * eps * exact.abs().max()
        assert (one - exact).abs().max() <= allowed


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)).cuda()


def test_a_side_stream_is_kept_to() -> None:
    x = torch.randn(1 << 24, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)  # the input below is written after this, on this stream only
        late = x * 2
        y = F.relu(late)
    side.synchronize()
    assert torch.equal(y, late.relu())


def test_a_captured_step_replays() -> None:
    """Forward, backward and SGD of a small network as one graph: same parameters as eagerly."""
    x, t = torch.randn(64, 784, device="cuda"), torch.randint(10, (64,), device="cuda")

    def train(captured: bool) -> list[Tensor]:
        model = network()
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        def step() -> None:
            optimizer.zero_grad(set_to_none=False)
            nn.functional.cross_entropy(model(x), t).backward()
            optimizer.step()

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            for _ in range(10):
                graph.replay()
        else:
            for _ in range(10):
                step()
        torch.cuda.synchronize()
        return [p.detach().clone() for p in model.parameters()]

    for one, other in zip(train(True), train(False), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (1001,), (1 << 20,), (3, 5, 7), (2, 64, 9, 9)], ids=str)
def test_dropout_has_the_mask_of_the_cpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The same elements and, in 3 dimensions and more, channels."""
    x, channels = torch.ones(shape, dtype=torch.promote_types(dtype, torch.float32)), len(shape) > 2
    y, state = torch.ops.minidl.dropout_forward(x.to("cuda", dtype), 0.25, channels)
    expected = torch.ops.minidl.dropout_backward(x, state.cpu(), 0.25, channels)
    assert torch.equal(y.cpu(), expected.to(dtype))


def test_a_replayed_dropout_drops_other_elements() -> None:
    """Seed and offset are drawn by the graph, from the generator that torch.manual_seed sets."""
    x = torch.ones(10_000, device="cuda")

    def replays() -> list[Tensor]:
        torch.manual_seed(3)
        return [(graph.replay(), y.clone())[1] for _ in range(3)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        F.dropout(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = F.dropout(x)
    first, again = replays(), replays()
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert all(4500 < int((mask == 0).sum()) < 5500 for mask in first)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
def test_ten_steps(name: str) -> None:
    def train(module: object, device: str, dtype: torch.dtype) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        parameters = [
            torch.randn(n, generator=generator).to(device, dtype).requires_grad_()
            for n in (1, 7, 200_000, 33) * 8
        ]
        optimizer = getattr(module, name)(parameters, lr=0.01, weight_decay=0.1)
        for _ in range(10):
            for p in parameters:
                p.grad = p.detach().sin()
            optimizer.step()
        return [p.detach().double().cpu() for p in parameters]

    truth = train(torch.optim, "cpu", torch.float64)
    torchs, ours = train(torch.optim, "cuda", torch.float32), train(optim, "cuda", torch.float32)
    for one, other, exact in zip(ours, torchs, truth, strict=True):
        assert (one - exact).abs().max() <= 2 * (other - exact).abs().max() + 4e-7 * exact.abs().max()


def test_a_bad_target_is_nan_and_poisons_nothing() -> None:
    x = torch.randn(4, 6, device="cuda")
    loss = F.cross_entropy(x, torch.tensor([1, 6, 2, -3], device="cuda"), reduction="none")
    assert loss.isnan().tolist() == [False, True, False, True]
    assert torch.cuda.current_stream().query() in (True, False)
    assert F.relu(x).isfinite().all()


def test_beyond_two_to_the_31_elements() -> None:
    n = (1 << 31) + 9
    if torch.cuda.mem_get_info()[0] < 6 * n:
        pytest.skip("not enough memory")
    x = torch.full((n,), -1, device="cuda", dtype=torch.float16)
    x[-5:] = 2
    y = F.relu(x)
    assert y[-5:].tolist() == [2.0] * 5
    assert y[-6].item() == 0
    assert F.mse_loss(y, torch.zeros_like(y), reduction="sum").item() == 20


def test_tf32_is_used_only_where_torch_allows_it() -> None:
    x, w = torch.randn(256, 512, device="cuda"), torch.randn(512, 256, device="cuda")
    exact = x.double() @ w.double()
    before = torch.get_float32_matmul_precision()
    try:
        errors = {}
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            errors[precision] = (F.matmul(x, w).double() - exact).abs().max().item()
    finally:
        torch.set_float32_matmul_precision(before)
    assert errors["highest"] < 1e-3 < errors["high"]


def test_convolutions_have_a_switch_of_their_own() -> None:
    x, w = torch.randn(4, 64, 16, 16, device="cuda"), torch.randn(64, 64, 3, 3, device="cuda")
    exact = TF.conv2d(x.double(), w.double())
    switch = torch.backends.cudnn.conv
    before = switch.fp32_precision
    try:
        errors = {}
        for precision in ("ieee", "tf32"):
            switch.fp32_precision = precision
            errors[precision] = (F.conv2d(x, w).double() - exact).abs().max().item()
    finally:
        switch.fp32_precision = before
    assert errors["ieee"] < 1e-3 < errors["tf32"]


def test_waiting_for_each_launch() -> None:
    code = "import torch, minidl.functional as F; print(F.relu(torch.ones(3, device='cuda')).sum().item())"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MINIDL_CUDA_SYNC": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "3.0"


@pytest.mark.skipif(torch.cuda.get_device_capability() != (9, 0), reason="wgmma is Hopper's")
def test_hoppers_own_product() -> None:
    """In a process of its own, as the switch is read once."""
    script = os.path.join(os.path.dirname(__file__), "wgmma.py")
    ran = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "MINIDL_CUDA_WGMMA": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
