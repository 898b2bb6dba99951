"""TrainStep against eager training: the same gradients, losses, parameters, state."""

from __future__ import annotations

import copy

import pytest
import torch
from train_steps import MODELS, OPTIMIZERS, assert_same_state, eager, pair

import minidl
from minidl import nn, optim
from minidl.step import plan


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_same_training_as_eager(name, optimizer):
    """Losses, gradients, parameters, buffers, optimizer state: step after step."""
    model, ours, twin, theirs, loss, x, y = pair(name, optimizer)
    step = minidl.TrainStep(model, loss, ours, keep_grads=True)
    for i in range(4):
        torch.manual_seed(i)
        expected = eager(twin, loss, theirs, x, y)
        torch.manual_seed(i)
        value = step(x, y)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)
    assert_same_state(model.state_dict(), twin.state_dict())
    assert_same_state(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual"])
def test_float32_is_the_same_to_the_bit(name):
    """The same kernels in the same order."""
    model, ours, twin, theirs, loss, x, y = pair(name, "adam", torch.float32)
    step = minidl.TrainStep(model, loss, ours)
    for i in range(3):
        torch.manual_seed(i)
        expected = eager(twin, loss, theirs, x, y)
        torch.manual_seed(i)
        assert torch.equal(step(x, y), expected)


def test_batches_of_other_sizes():
    model, ours, twin, theirs, loss, x, y = pair("mlp")
    step = minidl.TrainStep(model, loss, ours)
    for n in (13, 1, 7, 13, 2, 1):
        torch.testing.assert_close(step(x[:n], y[:n]), eager(twin, loss, theirs, x[:n], y[:n]))
    assert_same_state(model.state_dict(), twin.state_dict())


def test_strides_and_offsets_of_data():
    model, ours, twin, theirs, loss, x, y = pair("mlp")
    step = minidl.TrainStep(model, loss, ours)
    turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    expanded = x[:1].expand(13, -1, -1)
    odd = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view_as(x).copy_(x)
    for data in (turned, expanded, odd, x):
        torch.testing.assert_close(step(data, y), eager(twin, loss, theirs, data, y))


def test_modes_learning_rates_and_eager_steps_between():
    """Eval mode drops nothing; schedulers, frozen parameters and eager steps are seen at the next step."""
    model, ours, twin, theirs, loss, x, y = pair("cnn")
    step = minidl.TrainStep(model, loss, ours)
    schedulers = [optim.lr_scheduler.StepLR(o, 1, gamma=0.5) for o in (ours, theirs)]

    def both(same_seed=3):
        torch.manual_seed(same_seed)
        expected = eager(twin, loss, theirs, x, y)
        torch.manual_seed(same_seed)
        torch.testing.assert_close(step(x, y), expected)
        for scheduler in schedulers:
            scheduler.step()

    both()
    model.eval(), twin.eval()
    both()
    model.train(), twin.train()
    for m in (model, twin):
        m[0].weight.requires_grad_(False)
        m[0].weight.grad = None
    both()
    for m in (model, twin):
        m[0].weight.requires_grad_(True)
    both()
    torch.manual_seed(9)
    eager(model, loss, ours, x, y)
    torch.manual_seed(9)
    eager(twin, loss, theirs, x, y)
    both()
    assert_same_state(model.state_dict(), twin.state_dict())
    assert_same_state(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_loaded_and_cleared_state(optimizer):
    model, ours, twin, theirs, loss, x, y = pair("mlp", optimizer)
    step = minidl.TrainStep(model, loss, ours)
    step(x, y), eager(twin, loss, theirs, x, y)
    kept = copy.deepcopy(ours.state_dict())
    step(x, y), eager(twin, loss, theirs, x, y)
    ours.load_state_dict(copy.deepcopy(kept)), theirs.load_state_dict(copy.deepcopy(kept))
    step(x, y), eager(twin, loss, theirs, x, y)
    ours.state.clear(), theirs.state.clear()
    step(x, y), eager(twin, loss, theirs, x, y)
    model.load_state_dict(twin.state_dict())
    assert_same_state(ours.state_dict(), theirs.state_dict())
    ours.add_param_group({"params": [torch.nn.Parameter(x[:1].clone())], "lr": 0.3})
    torch.testing.assert_close(step(x, y), eager(twin, loss, theirs, x, y))


@pytest.mark.parametrize("optimizer", ["momentum", "rmsprop", "adamw"])
@pytest.mark.parametrize("name", [*MODELS])
def test_gradients_that_are_made_with_the_update(name, optimizer, monkeypatch):
    """As those of large matrices are, which the models here have none of."""
    monkeypatch.setattr(plan, "LEAST_BY_ROWS", 1)
    model, ours, twin, theirs, loss, x, y = pair(name, optimizer)
    step = minidl.TrainStep(model, loss, ours)
    for i in range(3):
        torch.manual_seed(i)
        value = step(x, y)
        torch.manual_seed(i)
        torch.testing.assert_close(value, eager(twin, loss, theirs, x, y))
    assert_same_state(model.state_dict(), twin.state_dict())
    assert_same_state(ours.state_dict(), theirs.state_dict())


class Hyper(torch.nn.Module):
    """A layer whose input is a parameter: its gradient must be made before that is updated."""

    def __init__(self) -> None:
        super().__init__()
        self.code = torch.nn.Parameter(torch.randn(4, 300))
        self.layer = nn.Linear(300, 70)

    def forward(self, x):
        return self.layer(self.code) + x


class Twice(torch.nn.Module):
    """What a layer gives is used before and after the activation, which so cannot be computed with the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(5, 7), nn.Linear(7, 7), nn.LayerNorm(7)

    def forward(self, x):
        y = self.a(x)
        y = self.norm(nn.functional.relu(y) + y)
        return self.b(y) + nn.functional.relu(y)


@pytest.mark.parametrize(
    ("make", "rows", "inputs", "optimizer"),
    [(Hyper, 4, 70, lambda p: optim.SGD(p, lr=10)), (Twice, 6, 5, lambda p: optim.Adam(p, lr=0.1))],
    ids=["a parameter as input", "a value before and after its activation"],
)
def test_models_that_forbid_a_shortcut(make, rows, inputs, optimizer):
    torch.manual_seed(0)
    model, loss, x = make().double(), nn.MSELoss(), torch.randn(rows, inputs).double()
    twin = copy.deepcopy(model)
    y = torch.randn_like(model(x))
    ours, theirs = optimizer(model.parameters()), optimizer(twin.parameters())
    step = minidl.TrainStep(model, loss, ours)
    for _ in range(3):
        torch.testing.assert_close(step(x, y), eager(twin, loss, theirs, x, y))
    assert_same_state(model.state_dict(), twin.state_dict())


def test_plans_are_remembered(monkeypatch):
    """One for each mode of the modules and each size of batch."""
    made = []
    make = minidl.step.make_plan
    monkeypatch.setattr(minidl.step, "make_plan", lambda *given: made.append(1) or make(*given))
    model, ours, *_, loss, x, y = pair("cnn", "sgd")
    step = minidl.TrainStep(model, loss, ours)
    for _ in range(2):
        for training in (True, False):
            model.train(training)
            for rows in (6, 3):
                step(x[:rows], y[:rows])
    assert len(made) == 4


def test_options_that_ask_for_other_state():
    """Momentum that is switched on later begins as in eager training; state that cannot be made is missed there too."""
    model, ours, twin, theirs, loss, x, y = pair("mlp", "sgd")
    step = minidl.TrainStep(model, loss, ours)
    for momentum in (0, 0.9, 0.9, 0):
        ours.param_groups[0]["momentum"] = theirs.param_groups[0]["momentum"] = momentum
        torch.testing.assert_close(step(x, y), eager(twin, loss, theirs, x, y))
    assert_same_state(model.state_dict(), twin.state_dict())
    model, ours, *_, loss, x, y = pair("mlp", "adam")
    step = minidl.TrainStep(model, loss, ours)
    step(x, y)
    ours.param_groups[0]["amsgrad"] = True
    with pytest.raises(KeyError, match="max_exp_avg_sq"):
        step(x, y)


def test_a_fit_that_fails_half_way_keeps_its_first_steps():
    """Momentum buffers of the steps that were made become state."""
    model, ours, twin, theirs, loss, x, y = pair("mlp", "momentum")
    bad = y.clone()
    bad[9] = 77
    version = model[1].weight._version
    with pytest.raises(IndexError, match="Target 77"):
        minidl.TrainStep(model, loss, ours).fit(x, bad, batch_size=4, shuffle=False)
    for rows in (slice(0, 4), slice(4, 8)):
        eager(twin, loss, theirs, x[rows], y[rows])
    assert_same_state(ours.state_dict(), theirs.state_dict())
    assert_same_state(model.state_dict(), twin.state_dict())
    assert model[1].weight._version > version


def test_denormals_are_flushed_within_a_step_only():
    model = torch.nn.Sequential(nn.Linear(1, 1, bias=False))
    step = minidl.TrainStep(model, nn.MSELoss(), optim.Adam(model.parameters(), lr=0.0))
    x = torch.ones(1, 1)
    step(x, x)
    moment = step.optimizer.state[model[0].weight]["exp_avg"]
    moment.fill_(1e-40)
    with torch.no_grad():
        model[0].weight.fill_(1)  # no error, no gradient
    step(x, x)
    assert moment.item() == 0
    assert (torch.full((4,), 1e-40) * 0.5).min() > 0


def test_several_groups():
    model, _, twin, _, loss, x, y = pair("mlp")

    def grouped(m):
        return optim.AdamW(
            [
                {"params": [m[1].weight], "lr": 0.1},
                {"params": m[3].parameters()},
                {"params": [m[5].bias], "betas": (0.5, 0.6)},
            ]
        )

    ours, theirs = grouped(model), grouped(twin)
    step = minidl.TrainStep(model, loss, ours)
    for _ in range(3):
        torch.testing.assert_close(step(x, y), eager(twin, loss, theirs, x, y))
    assert_same_state(model.state_dict(), twin.state_dict())


def test_parameters_at_other_strides():
    model, ours, twin, theirs, loss, x, y = pair("residual")
    for m in (model, twin):
        m.to(memory_format=torch.channels_last)
        m.fc.weight.data = m.fc.weight.data.t().contiguous().t()
    step = minidl.TrainStep(model, loss, ours)
    for _ in range(3):
        torch.testing.assert_close(step(x, y), eager(twin, loss, theirs, x, y))
    assert_same_state(model.state_dict(), twin.state_dict())
    model.fc.weight.data = model.fc.weight.data.contiguous()  # moved under the plan's feet
    torch.testing.assert_close(step(x, y), eager(twin, loss, theirs, x, y))


def test_losses_and_versions_are_fresh():
    model, ours, _, _, loss, x, y = pair("mlp", dtype=torch.float32)
    step = minidl.TrainStep(model, loss, ours)
    kept = [step(x, y).detach() for _ in range(20)]
    assert len({value.item() for value in kept}) == 20
    before = model[1].weight._version
    z = (model[1].weight * model[1].weight).sum()
    step(x, y)
    assert model[1].weight._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("size", [None, 4, 13])
def test_fit(shuffle, size):
    """Epochs, batches, the rest of an epoch, and the order of rows that the generator gives."""
    model, ours, twin, theirs, loss, x, y = pair("mlp")
    called = []
    generator = torch.Generator().manual_seed(5)
    step = minidl.TrainStep(model, loss, ours)
    losses = step.fit(
        x,
        y,
        epochs=3,
        batch_size=size,
        shuffle=shuffle,
        generator=generator,
        on_epoch=lambda *a: called.append(a),
    )
    generator.manual_seed(5)
    expected, means = [], []
    for _ in range(3):
        order = torch.randperm(13, generator=generator) if shuffle else torch.arange(13)
        batches = order.split(size or 13)
        expected.append([eager(twin, loss, theirs, x[b], y[b]).item() for b in batches])
        means.append(sum(v * len(b) for v, b in zip(expected[-1], batches, strict=True)) / 13)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))
    assert [epoch for epoch, _ in called] == [1, 2, 3]
    torch.testing.assert_close([mean for _, mean in called], means)
    assert_same_state(model.state_dict(), twin.state_dict())
    assert_same_state(ours.state_dict(), theirs.state_dict())
    assert step.fit(x[:0], y[:0], epochs=2).shape == (2, 0)


def test_fit_in_one_native_call():
    model, ours, twin, theirs, loss, x, y = pair("xor")
    losses = minidl.TrainStep(model, loss, ours).fit(x, y, epochs=200, shuffle=False)
    expected = [eager(twin, loss, theirs, x, y).item() for _ in range(200)]
    torch.testing.assert_close(losses.flatten(), torch.tensor(expected, dtype=torch.float64))
