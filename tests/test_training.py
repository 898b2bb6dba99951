"""Each lesson's model trains as torch's does: gradients of the first step, and ten losses, from the same start."""

import pytest
import torch
import torch.nn
import torch.nn.functional
import torch.optim

import minidl
import minidl.nn
from minidl.lessons import cnn, linear_regression, mnist, simple_classifier, xor

CASES = {
    "linear-regression": (linear_regression.make_model, "MSELoss", ("SGD", 0.01)),
    "xor": (xor.make_model, "BCELoss", ("Adam", 0.05)),
    "simple-classifier": (simple_classifier.make_model, "BCELoss", ("Adam", 0.01)),
    "mnist": (mnist.make_model, "CrossEntropyLoss", ("Adam", 0.001)),
    "cnn": (cnn.make_model, "CrossEntropyLoss", ("Adam", 0.001)),
}


def data(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    if name == "linear-regression":
        x = torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=dtype)
        return x, 2 * x + 1
    if name == "xor":
        x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]], dtype=dtype)
        return x, (x.sum(1, keepdim=True) == 1).to(dtype)
    if name == "simple-classifier":
        x = torch.randn(10, 2, dtype=torch.float64).to(dtype)
        return x, (x.sum(1, keepdim=True) > 0).to(dtype)
    count = 8 if name == "cnn" else 64
    return torch.rand(count, 1, 28, 28, dtype=torch.float64).to(dtype), torch.arange(count) % 10


def train(name: str, package, dtype: torch.dtype, steps: int = 10) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The gradients of the first step and the losses of all."""
    make_model, loss_name, (optimizer_name, lr) = CASES[name]
    torch.manual_seed(2)
    model = make_model(package.nn).to(dtype)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # each package draws its own mask
    x, target = data(name, dtype)
    criterion = getattr(package.nn, loss_name)()
    optimizer = getattr(package.optim, optimizer_name)(model.parameters(), lr=lr)
    losses, first = [], []
    for step in range(steps):
        optimizer.zero_grad()
        loss = criterion(model(x), target)
        loss.backward()
        if step == 0:
            first = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        losses.append(loss.detach())
    return first, torch.stack(losses)


@pytest.mark.parametrize("name", CASES)
def test_like_torch_in_float64(isa, name):
    ours, theirs = train(name, minidl, torch.float64), train(name, torch, torch.float64)
    for one, other in zip([*ours[0], ours[1]], [*theirs[0], theirs[1]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_as_near_to_float64_as_torch_in_float32(isa, name):
    """Twice torch's own error: over ten steps Adam's first, sign-like updates amplify rounding for both alike."""
    ours, theirs = train(name, minidl, torch.float32), train(name, torch, torch.float32)
    truth = train(name, torch, torch.float64)
    for one, other, true in zip(
        [*ours[0], ours[1]], [*theirs[0], theirs[1]], [*truth[0], truth[1]], strict=True
    ):
        error, fair = (one - true).abs().max(), (other - true).abs().max()
        assert error <= 2 * fair + 16 * torch.finfo(torch.float32).eps * true.abs().max()
