"""minidl.convert swaps the class of torch's modules and nothing else; minidl.revert swaps it back."""

import copy
import io
import itertools

import pytest
import torch
import torch.nn as tn
from torch import Tensor
from torch.nn.utils import parametrizations, prune

import minidl
import minidl.nn as nn


class Block(tn.Module):
    """ResNet's basic block: He et al., arXiv:1512.03385."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = tn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = tn.BatchNorm2d(out)
        self.relu = tn.ReLU(inplace=True)
        self.conv2 = tn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = tn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = tn.Sequential(
                tn.Conv2d(channels, out, 1, stride, bias=False), tn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(tn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stem = tn.Sequential(
            tn.Conv2d(3, width, 7, 2, padding=3, bias=False),
            tn.BatchNorm2d(width),
            tn.ReLU(inplace=True),
            tn.MaxPool2d(3, 2, padding=1),
        )
        self.layers = tn.Sequential(
            *(
                tn.Sequential(Block(before, now, 1 if rank == 0 else 2), Block(now, now, 1))
                for rank, (before, now) in enumerate(itertools.pairwise(widths))
            )
        )
        self.avgpool = tn.AdaptiveAvgPool2d(1)
        self.fc = tn.Linear(8 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.layers(self.stem(x))).flatten(1))


def mlp() -> tn.Sequential:
    return tn.Sequential(tn.Linear(6, 5), tn.ReLU(), tn.Linear(5, 3))


def classes(model: tn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


def operators(call) -> set[str]:
    """Which of minidl's and torch's products `call` runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return {event.key for event in profile.key_averages()} & {"minidl::linear", "aten::addmm"}


# ---- what is swapped -------------------------------------------------------------------------------------------


def test_every_class_of_minidl_has_its_pair(monkeypatch):
    for name in nn.__all__:
        ours, theirs = getattr(nn, name), getattr(torch.nn, name)
        if isinstance(ours, type) and ours is not theirs:
            monkeypatch.delattr(ours, "lacks", raising=False)  # it would look for what a constructor sets
            module = torch.nn.Module.__new__(theirs)
            torch.nn.Module.__init__(module)
            assert type(minidl.convert(module)) is ours, name
            assert type(minidl.revert(module)) is theirs, name


def test_the_objects_stay_and_compute_with_minidl():
    model = mlp()
    kept = [model, *model, *model.parameters()]
    x = torch.randn(4, 6)
    expected = model(x)
    assert minidl.convert(model) is model
    assert list(classes(model).values()) == [nn.Sequential, nn.Linear, nn.ReLU, nn.Linear]
    assert all(one is other for one, other in zip(kept, [model, *model, *model.parameters()], strict=True))
    torch.testing.assert_close(model(x), expected)
    assert operators(lambda: model(x)) == {"minidl::linear"}


def test_a_root_that_is_itself_swappable():
    layer = tn.Linear(3, 2)
    assert minidl.convert(layer) is layer
    assert type(layer) is nn.Linear


def test_an_optimizer_made_before_trains_the_model():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    minidl.convert(model)
    before = [p.clone() for p in model.parameters()]
    model(torch.randn(4, 6)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_modes_and_names_stay():
    model = tn.Sequential()
    model.add_module("first", tn.Linear(4, 4))
    model.add_module("second", tn.Tanh())
    model.first.eval()
    model.first.weight.requires_grad_(False)
    model.register_buffer("scale", torch.ones(3))
    keys, text = list(model.state_dict()), repr(model)
    minidl.convert(model)
    assert (list(model.state_dict()), repr(model)) == (keys, text)
    assert (model.first.training, model.second.training, model.training) == (False, True, True)
    assert [p.requires_grad for p in model.parameters()] == [False, True]
    assert type(model.second) is nn.Tanh


def test_tied_modules_and_weights_stay_tied():
    layer, act = tn.Linear(4, 4), tn.ReLU()
    other = tn.Linear(4, 4)
    other.weight = layer.weight
    model = minidl.convert(tn.Sequential(layer, act, layer, act, other))
    assert model[0] is model[2] is layer
    assert model[1] is model[3]
    assert model[4].weight is model[0].weight
    assert type(layer) is nn.Linear


def test_hooks_stay_and_are_called():
    model, seen = mlp(), []
    model[0].register_forward_hook(lambda module, args, output: seen.append("forward"))
    model[0].register_full_backward_hook(lambda module, dx, dy: seen.append("backward"))
    handle = model[1].register_forward_pre_hook(lambda module, args: seen.append("before"))
    minidl.convert(model)
    assert type(model[0]) is nn.Linear
    model(torch.randn(2, 6, requires_grad=True)).sum().backward()
    assert seen == ["forward", "before", "backward"]
    handle.remove()
    model(torch.randn(2, 6))
    assert seen[3:] == ["forward"]


def test_pruned_weights_are_swapped_with_their_hooks():
    layer = prune.l1_unstructured(tn.Linear(6, 5), "weight", 0.5)
    x = torch.randn(3, 6)
    expected = layer(x)
    minidl.convert(layer)
    assert type(layer) is nn.Linear
    torch.testing.assert_close(layer(x), expected)


def test_a_resnet_computes_and_trains_as_before():
    torch.manual_seed(1)
    theirs = ResNet18()
    ours, report = minidl.convert(copy.deepcopy(theirs), report=True)
    possible = {name for name, kind in classes(theirs).items() if kind.__name__ in nn.__all__}
    assert set(report.swapped) == possible >= {"fc", "stem.2", "layers.0.0.relu", "layers.1.0.downsample"}
    assert all(reason.endswith("minidl.nn has none") for reason in report.left.values())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x, t = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
    for model in (ours, theirs):
        tn.functional.cross_entropy(model(x), t).backward()
    for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)
    for one, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


# ---- what is left alone ----------------------------------------------------------------------------------------


class MyLinear(tn.Linear):
    pass


class Ours(nn.Linear):
    pass


class Chain(tn.Sequential):
    pass


def patched() -> tn.Linear:
    layer = tn.Linear(4, 4)
    layer.forward = lambda x: x
    return layer


LEFT = {
    "class without a pair": (lambda: tn.Bilinear(2, 2, 2), "Bilinear: minidl.nn has none"),
    "subclass": (lambda: MyLinear(4, 4), "MyLinear: derived from Linear"),
    "subclass of torch's own": (lambda: tn.MultiheadAttention(4, 1).out_proj, "derived from Linear"),
    "lazy": (lambda: tn.LazyLinear(3), "LazyLinear: derived from Linear"),
    "parametrized": (
        lambda: parametrizations.weight_norm(tn.Linear(4, 4)),
        "ParametrizedLinear: derived from Linear",
    ),
    "container of a subclass": (lambda: Chain(tn.ReLU()), "Chain: derived from Sequential"),
    "forward": (patched, "Linear: its forward was replaced"),
    "dtype": (lambda: tn.Linear(4, 4, dtype=torch.bfloat16), "Linear: no kernel takes torch.bfloat16"),
    "complex": (lambda: tn.Linear(4, 4, dtype=torch.complex64), "Linear: no kernel takes torch.complex64"),
}


@pytest.mark.parametrize(("make", "reason"), LEFT.values(), ids=LEFT)
def test_left_alone_with_a_reason(make, reason):
    module = make()
    kind = type(module)
    converted, report = minidl.convert(module, report=True)
    assert converted is module
    assert type(module) is kind
    assert reason in report.left[""]
    assert "" not in report.swapped


def test_a_module_without_tensors_is_judged_by_the_others():
    model, report = minidl.convert(mlp().half(), report=True)
    assert report.swapped == {}
    assert report.left["1"] == "ReLU: no kernel takes torch.float16"
    model.float()
    assert len(minidl.convert(model, report=True)[1].swapped) == 4


def test_tensor_classes_without_kernel():
    class Strange(Tensor):
        pass

    layer = tn.Linear(2, 2)
    layer.weight = tn.Parameter(torch.ones(2, 2).as_subclass(Strange))
    assert "no kernel takes a Strange" in minidl.convert(layer, report=True)[1].left[""]


def test_options_that_a_class_lacks(monkeypatch):
    def lacks(module):
        return "no inplace" if module.inplace else None

    monkeypatch.setattr(nn.ReLU, "lacks", staticmethod(lacks), raising=False)
    _, report = minidl.convert(tn.Sequential(tn.ReLU(), tn.ReLU(inplace=True)), report=True)
    assert report.left == {"1": "ReLU: no inplace"}
    assert "0" in report.swapped


def test_what_needs_no_swap_is_not_reported():
    class Own(tn.Module):
        pass

    model = tn.ModuleList([tn.Flatten(), tn.Identity(), nn.Linear(2, 2), Ours(2, 2), Own()])
    _, report = minidl.convert(model, report=True)
    assert (report.swapped, report.left) == ({}, {})


def test_the_report_is_made_to_be_printed():
    model = tn.ModuleDict({"a": mlp(), "b": tn.Bilinear(2, 2, 2)})
    _, report = minidl.convert(model, report=True)
    assert str(report).splitlines() == [
        "swapped: 1 Sequential, 2 Linear, 1 ReLU",
        "left: b: Bilinear: minidl.nn has none",
    ]
    assert str(minidl.convert(tn.Bilinear(2, 2, 2), report=True)[1]).startswith(
        "swapped: nothing\nleft: the model"
    )


# ---- and back, and around ----------------------------------------------------------------------------------------


def test_revert_undoes_it():
    model = ResNet18()
    before = classes(model)
    assert minidl.revert(minidl.convert(model)) is model
    assert classes(model) == before
    built = nn.Sequential(nn.Linear(6, 5), Ours(5, 5), nn.ReLU())
    assert list(classes(minidl.revert(built)).values()) == [tn.Sequential, tn.Linear, Ours, tn.ReLU]


def test_twice_is_once():
    model = minidl.convert(mlp())
    _, report = minidl.convert(model, report=True)
    assert (report.swapped, report.left) == ({}, {})
    assert type(model[0]) is nn.Linear


def test_deepcopy_pickle_and_state_dict():
    model = minidl.convert(ResNet18(2))
    x = torch.randn(2, 3, 32, 32)
    model(x)
    model.eval()
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert classes(loaded) == classes(model)
    assert torch.equal(loaded(x), expected)
    fresh = ResNet18(2).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(minidl.convert(fresh)(x), expected)


@pytest.mark.parametrize("first", ["convert", "compile"])
def test_compile(first):
    model, x = mlp(), torch.randn(4, 6)
    expected = model(x)
    if first == "convert":
        compiled = torch.compile(minidl.convert(model), backend="aot_eager", fullgraph=True)
    else:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        compiled(x)
        minidl.convert(compiled)
    torch.testing.assert_close(compiled(x), expected)
    assert operators(lambda: compiled(x)) == {"minidl::linear"}
