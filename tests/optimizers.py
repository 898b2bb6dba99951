"""What the tests of minidl.optim share: options, parameters, gradients, and all that an optimizer holds."""

import pytest
import torch

OPTIONS = [
    ("SGD", {}),
    ("SGD", {"weight_decay": 0.1, "maximize": True}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
    ("RMSprop", {}),
    ("RMSprop", {"alpha": 0.3, "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    ("RMSprop", {"momentum": 0.9}),
    ("RMSprop", {"centered": True}),
    ("RMSprop", {"centered": True, "momentum": 0.9, "weight_decay": 0.1}),
    ("Adam", {}),
    ("Adam", {"betas": (0.4, 0.5), "eps": 1e-3, "maximize": True}),
    ("Adam", {"weight_decay": 0.1}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1}),
    ("AdamW", {}),
    (
        "AdamW",
        {
            "amsgrad": True,
            "weight_decay": 0.3,
            "maximize": True,
            "lr": torch.tensor(0.01, dtype=torch.float64),
        },
    ),
]
every_option = pytest.mark.parametrize(
    ("name", "options"), OPTIONS, ids=[f"{n}-{'-'.join(o) or 'defaults'}" for n, o in OPTIONS]
)
every_class = pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
SHAPES = [(0,), (), (1,), (31,), (33,), (2, 0, 3), (7, 13), (1, 257), (64, 1)]


def build(module, name, params, options=None):
    return getattr(module, name)(params, **{"lr": 0.01, **(options or {})})


def parameters(shapes=SHAPES, dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=rng, dtype=torch.float64).to(dtype)) for s in shapes]


def set_gradients(params, seed=0):
    rng = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=rng, dtype=torch.float64).to(p.dtype)


def tensors_of(optimizer):
    """Parameters and state, in the order of parameters and names."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state = [
        optimizer.state[p][k] for p in params if p in optimizer.state for k in sorted(optimizer.state[p])
    ]
    return [*params, *state]


def snapshot(optimizer):
    return [t.detach().clone() for t in tensors_of(optimizer)]


def assert_equal_tensors(a, b, **tolerance):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, equal_nan=True, **(tolerance or {"rtol": 0, "atol": 0}))
