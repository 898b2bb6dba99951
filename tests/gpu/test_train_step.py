"""TrainStep on a GPU against eager training there: graphs, loops in one block, what changes between steps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from train_steps import MODELS, OPTIMIZERS, assert_same_state, eager

import minidl
from minidl import _build_info, optim
from minidl.step import device

if not torch.cuda.is_available() or _build_info.cuda is None:
    pytest.skip("no GPU, or no CUDA kernels in this build", allow_module_level=True)

ONE_BLOCK = ("line", "xor")


def pair(name: str, optimizer: str = "adam", **options: Any) -> tuple[Any, ...]:
    """A TrainStep, and model, loss, optimizer and batch of eager training."""
    make, data, loss = MODELS[name]
    torch.manual_seed(0)
    models = [make().to("cuda", torch.float64)]
    models.append(make().to("cuda", torch.float64))
    models[1].load_state_dict(models[0].state_dict())
    x, y = (t.to("cuda", torch.float64 if t.is_floating_point() else t.dtype) for t in data())
    if isinstance(loss, torch.nn.Module):
        loss = loss.to("cuda", torch.float64)
    ours, theirs = (OPTIMIZERS[optimizer](m.parameters()) for m in models)
    for group in (*ours.param_groups, *theirs.param_groups):
        group.update(options)
    return minidl.TrainStep(models[0], loss, ours), models[1], loss, theirs, x, y


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_steps_as_eager_training(name: str, optimizer: str) -> None:
    """Losses, parameters, buffers, state, masks of dropout."""
    step, twin, loss, theirs, x, y = pair(name, optimizer)
    for i in range(6):
        torch.manual_seed(i)
        value = step(x, y)
        torch.manual_seed(i)
        torch.testing.assert_close(value, eager(twin, loss, theirs, x, y))
        x = x * 0.9
    (plan,) = step._plans.values()
    assert isinstance(plan.on_device, device.Looped if name in ONE_BLOCK else device.Graphed)
    assert_same_state(step.model.state_dict(), twin.state_dict())
    assert_same_state(step.optimizer.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("name", ["xor", "mlp", "cnn"])
def test_fit(name: str, shuffle: bool) -> None:
    """More steps than one launch of a block takes."""
    step, twin, loss, theirs, x, y = pair(name, "momentum")
    epochs = 3000 if name == "xor" else 3
    step.optimizer.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 1e-3
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    torch.manual_seed(1)
    got = step.fit(x, y, epochs=epochs, batch_size=3, shuffle=shuffle, generator=generators[0])
    torch.manual_seed(1)
    expected = []
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generators[1]) if shuffle else torch.arange(len(x))
        expected.append(
            torch.stack([eager(twin, loss, theirs, x[i], y[i]) for i in order.to("cuda").split(3)])
        )
    torch.testing.assert_close(got, torch.stack(expected).cpu(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("name", ["xor", "mlp"])
def test_what_changes_between_steps(name: str, capturable: bool) -> None:
    """A scheduler's rate, one that is a tensor, other betas, a loaded state, a moved parameter."""
    step, twin, loss, theirs, x, y = pair(name, "adam", capturable=capturable)
    groups = step.optimizer.param_groups[0], theirs.param_groups[0]

    def same() -> None:
        for _ in range(3):
            torch.testing.assert_close(step(x, y), eager(twin, loss, theirs, x, y))

    same()
    for option, value in (("lr", 0.003), ("betas", (0.8, 0.9)), ("weight_decay", 0.1)):
        for group in groups:
            group[option] = value
        same()
    if capturable:
        for group in groups:
            group["lr"] = torch.tensor(0.02, device="cuda")
        same()
        for group in groups:
            group["lr"].mul_(0.5)
        same()
        for group in groups:
            group["lr"] = 0.003  # as before the tensor
        same()
    step.optimizer.load_state_dict(step.optimizer.state_dict())
    same()
    parameter = next(step.model.parameters())
    parameter.data = parameter.data.clone()
    same()
    assert {int(s["step"]) for s in step.optimizer.state.values()} == {18 + 9 * capturable}


def test_memory_and_time() -> None:
    """A step waits for nothing: queued behind a long kernel, it is back before that has ended."""
    step, *_, x, y = pair("mlp")
    for _ in range(3):
        step(x, y)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    done = torch.cuda.Event()
    losses: list[Tensor] = [step(x, y) for _ in range(5)]
    done.record()
    assert not done.query()
    torch.cuda.synchronize()
    assert torch.stack(losses).isfinite().all()


def test_gradients_are_kept() -> None:
    step, twin, loss, theirs, x, y = pair("mlp", "sgd")
    step = minidl.TrainStep(step.model, loss, step.optimizer, keep_grads=True)
    for _ in range(3):
        step(x, y)
        eager(twin, loss, theirs, x, y)
        for p, q in zip(step.model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


def test_a_label_that_is_no_class_makes_the_loss_nan() -> None:
    step, _, _, _, x, y = pair("mlp")
    assert step(x, y + 100).isnan()


def test_autocast_and_other_devices_are_refused() -> None:
    step, *_, x, y = pair("mlp")
    with torch.autocast("cuda"), pytest.raises(NotImplementedError, match="autocast"):
        step(x, y)
    with pytest.raises(RuntimeError, match="same device"):
        step(x.cpu(), y)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_another_device_than_the_current_one() -> None:
    model = torch.nn.Sequential(minidl.nn.Linear(3, 300), minidl.nn.ReLU(), minidl.nn.Linear(300, 2)).to(
        "cuda:1"
    )
    step = minidl.TrainStep(model, minidl.nn.MSELoss(), optim.Adam(model.parameters(), lr=1e-2))
    x, y = torch.randn(4, 3, device="cuda:1"), torch.randn(4, 2, device="cuda:1")
    first = step(x, y).item()
    for _ in range(20):
        step(x, y)
    assert step(x, y).item() < first
