"""The steps of a GPU on the CPU: what is captured there runs as it is here."""

from __future__ import annotations

import copy

import pytest
import torch
from train_steps import assert_same_state, eager, pair

import minidl
from minidl.step import device, plan


@pytest.fixture
def captures(monkeypatch):
    """A list with an entry for each capture."""
    made = []

    def capture(device, launches):
        made.append(launches)
        return launches

    build = plan._build

    def build_graphed(captured, *rest):
        made = build(captured, *rest)
        made.on_device = device.steps_on(made.native, *captured.inputs[-2:])
        return made

    monkeypatch.setattr(plan, "_build", build_graphed)
    monkeypatch.setattr(device, "capture", capture)
    return made


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("mlp", "momentum"), ("residual", "adam"), ("cnn", "rmsprop"), ("joined", "sgd"), ("xor", "adamw")],
)
def test_steps_as_eager_training(captures, name, optimizer):
    """One capture for all steps but the first, which is not captured."""
    model, ours, twin, theirs, loss, x, y = pair(name, optimizer)
    step = minidl.TrainStep(model, loss, ours)
    losses = []
    for i in range(5):
        torch.manual_seed(i)
        losses.append((step(x, y), x))
        torch.manual_seed(i)
        torch.testing.assert_close(losses[-1][0], eager(twin, loss, theirs, x, y))
        x = x * 0.9
    assert len(captures) == 1
    assert len({value.item() for value, _ in losses}) == 5, "each step has a loss of its own"
    assert_same_state(model.state_dict(), twin.state_dict())
    assert_same_state(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("shuffle", [False, True])
def test_fit(captures, shuffle):
    model, ours, twin, theirs, loss, x, y = pair("mlp", "momentum")
    options = {"epochs": 3, "batch_size": 4, "shuffle": shuffle}
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    got = minidl.TrainStep(model, loss, ours).fit(x, y, **options, generator=generators[0])
    assert len(captures) == 2, "of whole batches and of the rest"
    expected = []
    for _ in range(3):
        order = torch.randperm(13, generator=generators[1]) if shuffle else torch.arange(13)
        expected.append([eager(twin, loss, theirs, x[rows], y[rows]) for rows in order.split(4)])
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    assert_same_state(ours.state_dict(), theirs.state_dict())


def test_what_changes_is_captured_anew(captures):
    model, ours, twin, theirs, loss, x, y = pair("mlp", "adam")
    step = minidl.TrainStep(model, loss, ours)

    def steps(count: int) -> int:
        """Of captures, in so many steps."""
        before = len(captures)
        for _ in range(count):
            torch.testing.assert_close(step(x, y), eager(twin, loss, theirs, x, y))
        return len(captures) - before

    assert steps(3) == 1
    assert steps(2) == 0
    ours.param_groups[0]["betas"] = theirs.param_groups[0]["betas"] = (0.8, 0.9)
    assert steps(2) == 1
    with torch.no_grad():
        model[1].weight.data = model[1].weight.data.clone()
    assert steps(2) == 1
    ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert steps(3) == 1, "after a step that is not captured"
    x, y = x[:7], y[:7]
    assert steps(3) == 1


def test_gradients_and_versions(captures):
    model, ours, twin, theirs, loss, x, y = pair("mlp", "sgd")
    step = minidl.TrainStep(model, loss, ours, keep_grads=True)
    for _ in range(3):
        version = model[1].weight._version
        step(x, y)
        eager(twin, loss, theirs, x, y)
        assert model[1].weight._version > version
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


def test_a_capture_that_fails_is_made_again(captures, monkeypatch):
    model, ours, twin, theirs, loss, x, y = pair("mlp", "adam")
    step = minidl.TrainStep(model, loss, ours)
    step(x, y)
    eager(twin, loss, theirs, x, y)
    with monkeypatch.context() as failing:
        failing.setattr(device, "capture", lambda device, launches: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            step(x, y)
    torch.testing.assert_close(step(x, y), eager(twin, loss, theirs, x, y))
    assert_same_state(ours.state_dict(), theirs.state_dict())
