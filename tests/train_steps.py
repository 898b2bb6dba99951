"""The models of the tests of TrainStep, and eager training beside it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

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
            nn.AvgPool2d(2, padding=1),
            nn.Conv2d(2, 3, 2),
            nn.AdaptiveMaxPool2d(2),
            nn.Dropout2d(0.4),
            nn.Flatten(),
            nn.SiLU(),
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
    return (
        model,
        OPTIMIZERS[optimizer](model.parameters()),
        twin,
        OPTIMIZERS[optimizer](twin.parameters()),
        loss,
        x,
        y,
    )


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
