"""minidl.nn stands where torch.nn stood: arguments, initialisation, state, repr, pickling, results."""

import copy
import inspect
import io

import pytest
import torch
import torch.nn

import minidl
import minidl.nn as nn
import minidl.nn.functional as F

# name, constructor arguments, whether it takes a target
MODULES = [
    ("Linear", (5, 3), {}), ("Linear", (5, 3), {"bias": False}), ("Linear", (5, 3), {"dtype": torch.float64}),
    ("ReLU", (), {}), ("ReLU", (True,), {}), ("LeakyReLU", (0.2,), {}), ("Sigmoid", (), {}), ("Tanh", (), {}),
    ("GELU", (), {}), ("GELU", ("tanh",), {}), ("SiLU", (), {}), ("Softplus", (2, 10), {}),
    ("Softmax", (1,), {}), ("LogSoftmax", (1,), {}),
]  # fmt: skip
LOSSES = [
    ("MSELoss", {}), ("MSELoss", {"reduction": "none"}), ("L1Loss", {"reduction": "sum"}),
    ("SmoothL1Loss", {"beta": 0.5}),
    ("HuberLoss", {"delta": 0.5}), ("BCELoss", {"weight": torch.rand(3)}),
    ("BCEWithLogitsLoss", {"pos_weight": torch.rand(3)}), ("NLLLoss", {"ignore_index": 1}),
    ("CrossEntropyLoss", {"weight": torch.rand(3), "label_smoothing": 0.1}),
]  # fmt: skip


def both(name, args, kwargs):
    """The module from minidl.nn and from torch.nn, made from the same random stream."""
    made = []
    for module in (nn, torch.nn):
        torch.manual_seed(7)
        made.append(getattr(module, name)(*args, **kwargs))
    return made


@pytest.mark.parametrize(("name", "args", "kwargs"), MODULES, ids=str)
def test_modules(name, args, kwargs):
    ours, theirs = both(name, args, kwargs)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, type(theirs))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)
    x = torch.randn(4, 5, dtype=kwargs.get("dtype", torch.float32))
    torch.testing.assert_close(ours(x.clone()), theirs(x.clone()))
    ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize(("name", "kwargs"), LOSSES, ids=str)
def test_losses(name, kwargs):
    ours, theirs = both(name, (), kwargs)
    assert repr(ours) == repr(theirs)
    x = torch.rand(4, 3)
    target = torch.tensor([0, 1, 2, 2]) if name in ("NLLLoss", "CrossEntropyLoss") else torch.rand(4, 3)
    torch.testing.assert_close(ours(x, target), theirs(x, target))


def test_every_module_overrides_forward_and_nothing_of_the_constructor():
    for name in nn.__all__:
        ours, theirs = getattr(nn, name), getattr(torch.nn, name, None)
        if not inspect.isclass(ours) or ours is theirs:
            continue
        assert ours.forward is not theirs.forward, name
        assert inspect.signature(ours) == inspect.signature(theirs), name


def test_no_torch_kernel_computes_a_layer_or_a_loss():
    """What the profiler sees of a training step: only minidl's operators do arithmetic on the activations."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    loss = nn.CrossEntropyLoss()
    optimizer = minidl.optim.Adam(model.parameters())
    x, t = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    for _ in range(2):  # the second time optimizer state exists
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            optimizer.zero_grad()
            loss(model(x), t).backward()
            optimizer.step()
    used = {event.key.split("::")[1] for event in profile.key_averages() if event.key.startswith("aten::")}
    bookkeeping = {
        "empty", "empty_like", "empty_strided", "t", "transpose", "as_strided", "detach", "view", "reshape",
        "unsqueeze",
        "flatten", "ones_like", "fill_", "_to_copy", "to", "copy_", "clone", "contiguous", "expand", "resolve_conj",
    }  # fmt: skip
    assert used <= bookkeeping
    ours = {event.key for event in profile.key_averages()}
    assert ours >= {
        "minidl::linear",
        "minidl::cross_entropy_forward",
        "minidl::linear_backward",
        "minidl::adam_step",
    }


def test_deepcopy_and_pickle():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3, 2))
    x = torch.randn(5, 4)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), model(x))


def test_compile_of_a_model_with_its_loss():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    x, t = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])

    def loss(x):
        return F.cross_entropy(model(x), t)

    expected = torch.autograd.grad(loss(x), list(model.parameters()))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(x), list(model.parameters()))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_missing_says_so():
    with pytest.raises(AttributeError, match=r"no kernel for 'Conv3d' yet; torch\.nn\.Conv3d works"):
        _ = nn.Conv3d
    with pytest.raises(AttributeError, match="no attribute 'Convolve'"):
        _ = nn.Convolve
    with pytest.raises(AttributeError, match="no kernel for 'conv3d' yet"):
        _ = F.conv3d
    with pytest.raises(AttributeError, match="no attribute 'convolve'"):
        _ = minidl.functional.convolve
    assert F.linear is minidl.functional.linear


def test_meta_tensors_have_shapes_and_no_data():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3), nn.Softmax(1))
        y = model(torch.empty(4, 6))
    assert y.is_meta
    assert y.shape == (4, 3)
