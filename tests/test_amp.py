"""Mixed precision and CUDA graphs as far as a machine without a GPU can tell: on fake CUDA tensors, and on the CPU."""

import pytest
import torch
from optimizers import build, parameters
from torch._subclasses.fake_tensor import FakeTensorMode

import minidl.functional as F
from minidl import optim

half, single = torch.float16, torch.float32


@pytest.fixture
def autocast():
    """Inside torch.autocast("cuda"), which switches itself off where there is no GPU; tensors are fake."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", half)
    torch.autocast_increment_nesting()
    try:
        with FakeTensorMode():
            yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


def cuda(*shape, dtype=single):
    """Without a gradient: its node would ask for the device's stream, which ends a process that has no CUDA."""
    return torch.ones(*shape, device="cuda", dtype=dtype)


CASES = {
    "linear": (lambda f, dtype: f.linear(cuda(4, 3, dtype=dtype), cuda(5, 3), cuda(5)), half),
    "matmul": (
        lambda f, dtype: getattr(f, "matmul", torch.matmul)(cuda(4, 3, dtype=dtype), cuda(3, 5)),
        half,
    ),
    "conv2d": (lambda f, dtype: f.conv2d(cuda(2, 3, 8, 8, dtype=dtype), cuda(4, 3, 3, 3), cuda(4)), half),
    "conv_transpose2d": (
        lambda f, dtype: f.conv_transpose2d(cuda(2, 3, 8, 8), cuda(3, 4, 3, 3, dtype=dtype)),
        half,
    ),
    "softmax": (lambda f, dtype: f.softmax(cuda(4, 3, dtype=dtype), 1), single),
    "log_softmax": (lambda f, dtype: f.log_softmax(cuda(4, 3, dtype=dtype), 1), single),
    "layer_norm": (lambda f, dtype: f.layer_norm(cuda(4, 3, dtype=dtype), (3,), cuda(3), cuda(3)), single),
    "group_norm": (lambda f, dtype: f.group_norm(cuda(4, 6, 3, dtype=dtype), 2, cuda(6), cuda(6)), single),
    "mse_loss": (lambda f, dtype: f.mse_loss(cuda(4, 3, dtype=dtype), cuda(4, 3)), single),
    "binary_cross_entropy_with_logits": (
        lambda f, dtype: f.binary_cross_entropy_with_logits(cuda(4, dtype=dtype), cuda(4)),
        single,
    ),
    "cross_entropy": (
        lambda f, dtype: f.cross_entropy(cuda(4, 3, dtype=dtype), cuda(4, dtype=torch.int64)),
        single,
    ),
    "nll_loss": (lambda f, dtype: f.nll_loss(cuda(4, 3, dtype=dtype), cuda(4, dtype=torch.int64)), single),
    "softplus": (lambda f, dtype: f.softplus(cuda(4, dtype=dtype)), single),
}


@pytest.mark.parametrize("dtype", [single, half])
@pytest.mark.parametrize("name", CASES)
def test_autocast_casts_as_torch(autocast, name, dtype):
    run, expected = CASES[name]
    theirs = run(torch.nn.functional, dtype)
    ours = run(F, dtype)
    assert ours.dtype == theirs.dtype == expected


@pytest.mark.parametrize("dtype", [single, half])
@pytest.mark.parametrize("name", ["relu", "gelu", "sigmoid", "tanh", "max_pool2d", "avg_pool2d"])
def test_the_others_keep_their_dtype(autocast, name, dtype):
    options = (2,) if name.endswith("pool2d") else ()
    assert getattr(F, name)(cuda(1, 2, 4, 4, dtype=dtype), *options).dtype == dtype


def test_batch_norm_takes_16_bits_beside_statistics_of_32(autocast):
    x = cuda(4, 3, dtype=half)
    y = F.batch_norm(
        x, torch.zeros(3, device="cuda"), torch.ones(3, device="cuda"), cuda(3), cuda(3), training=True
    )
    assert y.dtype == single


def test_binary_cross_entropy_is_refused_as_by_torch(autocast):
    for f in (F, torch.nn.functional):
        with pytest.raises(RuntimeError, match="unsafe to autocast"):
            f.binary_cross_entropy(cuda(4), cuda(4))


def test_autocast_of_the_cpu_changes_nothing():
    """There are no CPU kernels of 16 bits."""
    x, w = torch.randn(4, 3), torch.randn(5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.linear(x, w).dtype == single


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
def test_steps_and_learning_rates_on_a_device_are_not_read(name):
    """Fake CUDA tensors: whoever asks one for its number gets an error."""
    with FakeTensorMode():
        param = torch.nn.Parameter(torch.ones(3, device="cuda"))
        param.grad = torch.ones_like(param)
        options = {} if name == "SGD" else {"capturable": True}
        optimizer = getattr(optim, name)([param], **options)
        optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device="cuda")  # torch's constructor reads it
        for _ in range(2):
            optimizer.step()
        assert all(x.device.type == "cuda" for x in optimizer.state[param].values())


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
@pytest.mark.parametrize("overflows", [False, True])
def test_grad_scaler(name, overflows):
    """The update sees gradients that are divided by the scale; where one is infinite, there is no update."""
    results = []
    for module in (optim, torch.optim):
        params = parameters([(3,), (2, 5)])
        optimizer = build(module, name, params)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(3):
            optimizer.zero_grad()
            loss = sum((p * (2.0 + step)).sin().sum() for p in params)
            scaler.scale(loss).backward()
            if overflows and step == 1:
                params[1].grad[0, 0] = float("inf")
            before = [p.detach().clone() for p in params]
            scaler.step(optimizer)
            scaler.update()
            moved = [not torch.equal(p, b) for p, b in zip(params, before, strict=True)]
            assert moved == [not (overflows and step == 1)] * 2
        assert scaler.get_scale() == (512.0 if overflows else 1024.0)
        results.append(params)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
