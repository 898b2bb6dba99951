"""TrainStep against eager training: the same gradients, losses, parameters, state, errors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import minidl
from minidl import functional as F
from minidl import nn, optim


def classes(n: int, count: int) -> Tensor:
    return torch.randint(0, count, (n,))


class Residual(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 3, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(3)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)) + x)
        return self.fc(self.pool(y).flatten(1))


class Joined(torch.nn.Module):
    """Concatenation, a weight used twice, a transposed product, views."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 5)
        self.b = nn.Linear(6, 5)
        self.b.weight = self.a.weight
        self.c = nn.Linear(10, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 3, 6)
        y = torch.cat([F.tanh(self.a(x)), F.gelu(self.b(x))], dim=-1)
        return self.c(y.transpose(0, 1).reshape(-1, 10))


MODELS = {
    "line": (lambda: nn.Linear(1, 1), lambda: (torch.randn(4, 1), torch.randn(4, 1)), nn.MSELoss()),
    "xor": (
        lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1), nn.Sigmoid()),
        lambda: (torch.rand(4, 2), torch.rand(4, 1)),
        nn.BCELoss(),
    ),
    "mlp": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(35, 33), nn.ReLU(), nn.Linear(33, 17), nn.Tanh(), nn.Linear(17, 10)
        ),
        lambda: (torch.randn(13, 5, 7), classes(13, 10)),
        nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.linspace(0.5, 2, 10)),
    ),
    "residual": (Residual, lambda: (torch.randn(5, 3, 6, 7), classes(5, 4)), F.cross_entropy),
    "joined": (Joined, lambda: (torch.randn(4, 18), torch.randn(12, 3)), nn.HuberLoss(reduction="sum")),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 5)
        ),
        lambda: (torch.randn(6, 1, 14, 14), classes(6, 5)),
        nn.CrossEntropyLoss(),
    ),
    "norms": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2),
            nn.GroupNorm(3, 6),
            nn.ReLU(),
            nn.ConvTranspose1d(6, 4, 3, stride=2),
            nn.BatchNorm1d(4),
            nn.LayerNorm(11),
            nn.Flatten(),
            nn.Linear(44, 3),
            nn.LogSoftmax(dim=1),
        ),
        lambda: (torch.randn(7, 4, 9), classes(7, 3)),
        nn.NLLLoss(),
    ),
    "pools": (
        lambda: nn.Sequential(
            nn.AvgPool2d(2, padding=1), nn.Conv2d(2, 3, 2), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.SiLU(), nn.Dropout1d(0.4)
        ),
        lambda: (torch.randn(3, 2, 9, 8), torch.randn(3, 12)),
        nn.SmoothL1Loss(),
    ),
    "softmax": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Softmax(dim=-1), nn.Softplus(), nn.LeakyReLU(0.2), nn.GELU("tanh")),
        lambda: (torch.randn(3, 5, 4), torch.rand(3, 5, 6)),
        nn.BCEWithLogitsLoss(pos_weight=torch.full((6,), 2.0)),
    ),
}  # fmt: skip
OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.2, weight_decay=0.01),
    "nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, maximize=True),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, amsgrad=True),
}


def pair(name: str, optimizer: str = "adam", dtype: torch.dtype = torch.float64):
    """Two equal models with their optimizers, the loss, and a batch."""
    make, data, loss = MODELS[name]
    torch.manual_seed(0)
    model = make().to(dtype)
    x, y = (t.to(dtype) if t.is_floating_point() else t for t in data())
    loss = copy.deepcopy(loss)
    if isinstance(loss, torch.nn.Module):
        loss = loss.to(dtype)
    twin = copy.deepcopy(model)
    return model, OPTIMIZERS[optimizer](model.parameters()), twin, OPTIMIZERS[optimizer](twin.parameters()), loss, x, y


def eager(model, loss, optimizer, x, y):
    optimizer.zero_grad()
    value = loss(model(x), y)
    value.backward()
    optimizer.step()
    return value.detach()


def assert_same_state(a, b):
    """Of two optimizers or models: the same tensors and numbers, within rounding."""
    if isinstance(a, Tensor):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_state(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for p, q in zip(a, b, strict=True):
            assert_same_state(p, q)
    else:
        assert a == b


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


def test_several_groups():
    model, _, twin, _, loss, x, y = pair("mlp")

    def grouped(m):
        return optim.AdamW(
            [{"params": [m[1].weight], "lr": 0.1}, {"params": m[3].parameters()}, {"params": [m[5].bias], "betas": (0.5, 0.6)}]
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
        x, y, epochs=3, batch_size=size, shuffle=shuffle, generator=generator, on_epoch=lambda *a: called.append(a)
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


def state_of(*parts):
    return copy.deepcopy([part.state_dict() for part in parts])


BAD = {
    "label": (lambda x, y: (x, y + 9), IndexError, "out of bounds"),
    "negative label": (lambda x, y: (x, y - 10), IndexError, "out of bounds"),
    "rows": (lambda x, y: (x[:5], y), ValueError, "batch sizes"),
    "features": (lambda x, y: (x[:, :4], y), RuntimeError, "cannot be multiplied"),
    "dtype": (lambda x, y: (x.float(), y), RuntimeError, "same dtype"),
    "label's dtype": (lambda x, y: (x, y.int()), RuntimeError, "int64"),
    "no tensor": (lambda x, y: (x.tolist(), y), TypeError, "expected tensors"),
    "gradient of the data": (lambda x, y: (x.requires_grad_(), y), NotImplementedError, "requires a gradient"),
    "device": (lambda x, y: (x.to("meta"), y), NotImplementedError, "CPU"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_batches_change_nothing(case):
    spoil, error, message = BAD[case]
    model, ours, _, _, loss, x, y = pair("mlp")
    step = minidl.TrainStep(model, loss, ours)
    step(x, y)
    before = state_of(model, ours)
    for _ in range(2):
        with pytest.raises(error, match=message):
            step(*spoil(x.clone(), y.clone()))
    assert_same_state(state_of(model, ours), before)
    step(x, y)


def test_bad_probabilities():
    model, ours, _, _, loss, x, y = pair("xor")
    step = minidl.TrainStep(model, loss, ours)
    before = state_of(model)
    with pytest.raises(RuntimeError, match="elements of target should be between 0 and 1"):
        step(x, y + 1)
    assert_same_state(state_of(model), before)


class Branches(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.fc(x).sum() > 0:
            return self.fc(x)
        return -self.fc(x)


class Cosine(Branches):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(self.fc(x))


@pytest.mark.parametrize(("model", "what"), [(Branches, "values of a tensor"), (Cosine, "aten.cos")])
def test_what_has_no_plan_is_named_with_its_line(model, what):
    m = model()
    step = minidl.TrainStep(m, F.mse_loss, optim.SGD(m.parameters()))
    with pytest.raises(minidl.UnsupportedError, match=what) as error:
        step(torch.randn(4, 3), torch.randn(4, 2))
    line = "if self.fc(x).sum() > 0:" if model is Branches else "return torch.cos(self.fc(x))"
    assert f"test_train_step.py:" in str(error.value) and line in str(error.value)
    assert "Train it eagerly" in str(error.value)


def test_optimizers_without_a_plan():
    model = nn.Linear(2, 2)
    with pytest.raises(minidl.UnsupportedError, match="Adagrad"):
        minidl.TrainStep(model, F.mse_loss, torch.optim.Adagrad(model.parameters()))
    with pytest.raises(minidl.UnsupportedError, match="capturable=True"):
        minidl.TrainStep(model, F.mse_loss, torch.optim.Adam(model.parameters(), capturable=True))
    step = minidl.TrainStep(model, F.mse_loss, optim.SGD(nn.Linear(2, 2).parameters()))
    with pytest.raises(ValueError, match="no parameter of the model"):
        step(torch.randn(1, 2), torch.randn(1, 2))
    with pytest.raises(RuntimeError, match="scalar outputs"):
        minidl.TrainStep(model, nn.MSELoss(reduction="none"), optim.SGD(model.parameters()))(torch.randn(1, 2), torch.randn(1, 2))
