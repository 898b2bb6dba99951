"""The operators on a GPU against torch in float64: values, gradients, streams, graphs, bits, errors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as TF
from cases import Function, dense_cases, image_cases
from torch import Tensor

import minidl.functional as F
import minidl.nn as nn
from minidl import _build_info, optim

if not torch.cuda.is_available() or _build_info.cuda is None:
    pytest.skip("no GPU, or no CUDA kernels in this build", allow_module_level=True)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
CASES = [*dense_cases(), *image_cases()]


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
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


@pytest.fixture(autouse=True)
def equal_precision() -> Iterator[None]:
    """torch computes convolutions of float32 in tf32 unless told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout(p: float, dtype: torch.dtype) -> None:
    """Zero or scaled, as often as it should; the same mask backward, and again from the same seed."""
    x = torch.ones(300_001, device="cuda", dtype=dtype, requires_grad=True)
    masks = []
    for _ in range(2):
        torch.manual_seed(5)
        y = F.dropout(x, p)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert torch.equal(y, dx)
        masks.append(y)
    assert torch.equal(*masks)
    assert not torch.equal(masks[0], F.dropout(x, p)), "the same mask twice"
    kept = y != 0
    assert torch.equal(y[kept], torch.full_like(y[kept], 1 / (1 - p)))
    assert abs(kept.double().mean().item() - (1 - p)) < 5e-3
    channels = F.dropout2d(torch.ones(64, 32, 5, 5, device="cuda", dtype=dtype), p).flatten(2)
    assert torch.equal(channels.amin(-1), channels.amax(-1))


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


def test_the_backward_pass_keeps_to_the_stream_of_the_forward_pass() -> None:
    """It runs in a thread of autograd, whose current stream and device are others until it sets them."""
    x = torch.randn(1 << 22, device="cuda", requires_grad=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        y = F.tanh(x)
        dy = torch.full_like(y, float("nan"))
        torch.cuda._sleep(100_000_000)
        dy.fill_(1)  # after this, on this stream only
    (dx,) = torch.autograd.grad(y, x, dy)
    torch.cuda.synchronize()
    assert dx.isfinite().all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_another_device_than_the_current_one() -> None:
    x, w = torch.randn(40, 30, device="cuda:1", requires_grad=True), torch.randn(20, 30, device="cuda:1")
    y = F.linear(x, w, activation="relu")
    y.sum().backward()
    assert y.device == x.grad.device == torch.device("cuda:1")
    torch.testing.assert_close(y, TF.linear(x, w).relu(), atol=1e-4, rtol=1e-4)
    assert torch.cuda.current_device() == 0


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


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
def test_a_captured_update_counts_its_steps_and_reads_its_rate(name: str) -> None:
    def train(captured: bool) -> list[Tensor]:
        torch.manual_seed(2)
        parameters = [torch.randn(n, device="cuda", requires_grad=True) for n in (1, 7, 5000, 33) * 8]
        for p in parameters:
            p.grad = torch.randn_like(p)
        lr = torch.tensor(0.1, device="cuda")
        capturable = {} if name == "SGD" else {"capturable": True}
        optimizer = getattr(optim, name)(parameters, lr=lr, weight_decay=0.01, **capturable)
        optimizer.step()
        step: Callable[[], object] = optimizer.step
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step()
            step = graph.replay
        for i in range(10):
            lr.fill_(0.1 / (i + 1))
            step()
        return [p.detach().clone() for p in parameters]

    for one, other in zip(train(True), train(False), strict=True):
        assert torch.equal(one, other)


def test_a_captured_dropout_draws_anew() -> None:
    x = torch.ones(10_000, device="cuda")
    F.dropout(x, 0.5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = F.dropout(x, 0.5)
    masks = []
    for _ in range(2):
        graph.replay()
        masks.append(y.clone())
    assert not torch.equal(*masks)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision(dtype: torch.dtype) -> None:
    """torch.autocast and GradScaler, ours beside torch's layers: the same losses but for 16-bit rounding."""
    x, t = torch.randn(64, 784, device="cuda"), torch.randint(10, (64,), device="cuda")
    losses = []
    for layers in (nn, torch.nn):
        torch.manual_seed(1)
        model = layers.Sequential(layers.Linear(784, 128), layers.ReLU(), layers.Linear(128, 10)).cuda()
        optimizer = (optim if layers is nn else torch.optim).SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
        for _ in range(5):
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=dtype):
                logits = model(x)
                loss = layers.functional.cross_entropy(logits, t)
            assert logits.dtype == dtype
            assert loss.dtype == torch.float32
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


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
