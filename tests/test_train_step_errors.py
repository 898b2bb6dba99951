"""What a TrainStep refuses: with the errors of eager training, and before anything is written."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from train_steps import assert_same_state, pair

import minidl
from minidl import functional as F
from minidl import nn, optim


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
    "gradient of the data": (
        lambda x, y: (x.requires_grad_(), y),
        NotImplementedError,
        "requires a gradient",
    ),
    "device": (lambda x, y: (x.to("meta"), y), RuntimeError, "same device"),
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
    assert "test_train_step_errors.py:" in str(error.value)
    assert line in str(error.value)
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
        minidl.TrainStep(model, nn.MSELoss(reduction="none"), optim.SGD(model.parameters()))(
            torch.randn(1, 2), torch.randn(1, 2)
        )


@pytest.mark.parametrize(
    "hook",
    [
        lambda m: m.register_forward_hook(lambda *a: None),
        lambda m: m.register_full_backward_hook(lambda *a: None),
        lambda m: m.weight.register_hook(lambda g: g),
        lambda m: m.weight.register_post_accumulate_grad_hook(lambda p: None),
    ],
)
def test_hooks_are_refused_not_forgotten(hook):
    model = nn.Sequential(nn.Linear(2, 2))
    hook(model[0])
    step = minidl.TrainStep(model, F.mse_loss, optim.SGD(model.parameters()))
    with pytest.raises(minidl.UnsupportedError, match=r"'0(\.weight)?' has hooks"):
        step(torch.randn(1, 2), torch.randn(1, 2))
