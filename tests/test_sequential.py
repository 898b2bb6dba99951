"""minidl.nn.Sequential is torch's, but for a Linear and its activation, which are one call where nobody can tell."""

import copy
import pickle
import types
from collections import OrderedDict

import pytest
import torch
import torch.nn
import torch.nn.functional as TF
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, prune

import minidl
import minidl.nn as nn
from minidl.nn import container

ACTIVATIONS = [nn.ReLU, nn.Sigmoid, nn.Tanh]


@pytest.fixture
def fused(monkeypatch):
    """The activations of the fused calls, as they happen."""
    calls = []

    def linear(input, weight, bias, activation):
        calls.append(activation)
        return minidl.functional.linear(input, weight, bias, activation)

    monkeypatch.setattr(container, "F", types.SimpleNamespace(linear=linear))
    return calls


def model_of(activation=nn.ReLU, dtype=torch.float32, bias=True):
    return nn.Sequential(
        nn.Linear(11, 17, bias=bias, dtype=dtype), activation(), nn.Linear(17, 3, bias=bias, dtype=dtype)
    )


def apart(model, x):
    """The modules of ``model``, one after the other."""
    for module in model:
        x = module(x)
    return x


def nodes(y):
    """The names of the nodes of y's graph, from y to the leaves, along first inputs."""
    names, node = [], y.grad_fn
    while node is not None:
        names.append(node.name().rsplit("::", 1)[-1])
        node = node.next_functions[0][0] if node.next_functions else None
    return names


# ---- what is fused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(11,), (1, 11), (40, 11), (2, 3, 11), (0, 11)], ids=str)
def test_results_gradients_and_updates_have_the_bits_of_two_modules(
    isa, dtype, activation, bias, shape, fused
):
    results = []
    for run in (lambda model, x: model(x), apart):
        torch.manual_seed(3)
        model = model_of(activation, dtype, bias)
        optimizer = minidl.optim.SGD(model.parameters(), lr=0.1)
        x = torch.randn(*shape, dtype=dtype, requires_grad=True)
        y = run(model, x)
        y.backward(torch.randn_like(y))
        grads = [x.grad, *(p.grad.clone() for p in model.parameters())]
        optimizer.step()
        results.append([y.detach(), *grads, *model.parameters()])
    assert len(fused) == 1
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_node_for_a_layer_and_its_activation(activation):
    x = torch.randn(4, 11, requires_grad=True)
    assert nodes(model_of(activation)(x)) == ["LinearBackward", "LinearBackward", "AccumulateGrad"]
    assert len(nodes(apart(model_of(activation), x))) == 4


def test_only_pairs_are_fused(fused):
    layers = [nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh(), nn.ReLU(), nn.Linear(4, 4), nn.GELU(),
              nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4)]  # fmt: skip
    model, x = nn.Sequential(*layers), torch.randn(3, 4)
    assert torch.equal(model(x), apart(model, x))
    assert fused == ["tanh", "sigmoid"]
    assert nn.Sequential()(x) is x


def test_second_derivatives():
    model = model_of(nn.Tanh, torch.float64)
    x = torch.randn(4, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, x)
    assert torch.autograd.gradgradcheck(model, x)


# ---- what is not -----------------------------------------------------------------------------------------------


def hook(*_):
    return None


def patched(module):
    """Gives ``module`` a forward of its own, which does the same."""
    module.forward = types.MethodType(type(module).forward, module)


class MyLinear(nn.Linear):
    pass


class MyReLU(nn.ReLU):
    pass


# Each changes a pair that would be fused, at one of its modules, and leaves the results as they were.
CHANGES = {
    **{
        f"{place} {name}": lambda pair, place=place, name=name: getattr(pair[place], name)(hook)
        for place in (0, 1)
        for name in (
            "register_forward_pre_hook",
            "register_forward_hook",
            "register_full_backward_pre_hook",
            "register_full_backward_hook",
        )
    },
    "patched linear": lambda pair: patched(pair[0]),
    "patched activation": lambda pair: patched(pair[1]),
    "subclass of linear": lambda pair: setattr(pair[0], "__class__", MyLinear),
    "subclass of relu": lambda pair: setattr(pair[1], "__class__", MyReLU),
    "torch's linear": lambda pair: setattr(pair[0], "__class__", torch.nn.Linear),
    "torch's relu": lambda pair: setattr(pair[1], "__class__", torch.nn.ReLU),
    "in place": lambda pair: setattr(pair[1], "inplace", True),
    "weight_norm": lambda pair: parametrizations.weight_norm(pair[0]),
    "pruned": lambda pair: prune.identity(pair[0], "weight"),
    "linear compiled": lambda pair: pair[0].compile(backend="eager"),
    "activation compiled": lambda pair: pair[1].compile(backend="eager"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo looks at it
def test_a_pair_with_something_between_runs_as_two(change, fused):
    model, x = model_of(), torch.randn(4, 11, requires_grad=True)
    before = model(x)
    assert fused == ["relu"]
    CHANGES[change](model)
    after = model(x)
    assert fused == ["relu"]
    torch.testing.assert_close(after, before)
    after.sum().backward()


def test_hooks_see_what_they_saw_and_when_they_go_the_pair_is_one_again(fused):
    model, x = model_of(), torch.randn(4, 11)
    seen = []
    handle = model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    model(x)
    assert torch.equal(seen[0], model[0](x))
    assert (seen[0] < 0).any()
    assert fused == []
    handle.remove()
    model(x)
    assert fused == ["relu"]


@pytest.mark.parametrize(
    "register",
    ["forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook"],
)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_global_hooks_see_every_module(register, fused):
    model, x = model_of(), torch.randn(4, 11, requires_grad=True)
    seen = []
    handle = getattr(torch_module, f"register_module_{register}")(lambda m, *_: seen.append(m))
    try:
        model(x).sum().backward()
    finally:
        handle.remove()
    assert set(seen) == {model, *model}
    assert fused == []
    model(x)
    assert fused == ["relu"]


def test_hooks_on_the_container_leave_it_fused(fused):
    model, x = model_of(), torch.randn(4, 11, requires_grad=True)
    seen = []
    model.register_forward_pre_hook(lambda m, args: (2 * args[0],))
    model.register_forward_hook(lambda m, args, y: y + 1)
    model.register_full_backward_hook(lambda m, dx, dy: seen.append(dx[0]))
    y = model(x)
    torch.testing.assert_close(y, apart(model, 2 * x) + 1)
    y.sum().backward()
    torch.testing.assert_close(2 * seen[0], x.grad)
    assert fused == ["relu"]


def test_a_class_whose_forward_is_patched_is_called(monkeypatch, fused):
    model, x = model_of(), torch.randn(4, 11)
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x * 0)
    assert torch.equal(model(x), model[2].bias.expand(4, 3))


# ---- torch's Sequential ----------------------------------------------------------------------------------------


def test_it_looks_like_torchs():
    def layers(nn):
        torch.manual_seed(0)
        return OrderedDict(a=nn.Linear(4, 3), b=nn.ReLU())

    ours, theirs = nn.Sequential(layers(nn)), torch.nn.Sequential(layers(torch.nn))
    assert isinstance(ours, torch.nn.Sequential)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(torch.ones(2, 4)), theirs(torch.ones(2, 4)))


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s[:2],
        lambda s: s[1],
        lambda s: s[-1:],
        lambda s: s + s[:1],
        lambda s: s[:2] * 2,
        lambda s: 2 * s[:2],
        lambda s: s.append(s[0]),
        lambda s: s.insert(1, s[1]),
        lambda s: s.extend([s[1], s[0]]),
        lambda s: s.pop(1),
        lambda s: s.__delitem__(0) or s,
        lambda s: s.__setitem__(1, s[0]) or s,
        lambda s: s.__iadd__(s[:1]),
        lambda s: s.__imul__(2),
    ],
)
def test_editing(edit):
    """The same layers in the same places under the same names; what was minidl's Sequential still is."""
    square = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)
    ours, theirs = edit(nn.Sequential(*square)), edit(torch.nn.Sequential(*square))
    assert (
        list(ours.named_modules(remove_duplicate=False))[1:]
        == list(theirs.named_modules(remove_duplicate=False))[1:]
    )
    assert isinstance(ours, nn.Sequential) == isinstance(theirs, torch.nn.Sequential)
    x = torch.randn(2, 4)
    assert torch.equal(ours(x), theirs(x))


def test_editing_is_seen_by_the_next_forward(fused):
    model, x = model_of(), torch.randn(2, 11)
    model(x)
    model[1] = nn.Tanh()
    model(x)
    model.insert(1, nn.GELU())
    model(x)
    assert fused == ["relu", "tanh"]


def test_errors():
    x = torch.randn(2, 11)
    for build in (lambda nn: nn.Sequential(None), lambda nn: nn.Sequential(nn.Linear(11, 3), None)):
        with pytest.raises(TypeError, match="'NoneType' object is not callable"):
            build(nn)(x)
    with pytest.raises(ValueError, match="add operator supports only objects"):
        _ = nn.Sequential() + 1
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = nn.Sequential() * 1.5
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model_of()(torch.randn(2, 5))
    with pytest.raises(NotImplementedError):
        model_of(dtype=torch.float16)(x.half())


def test_copies_and_pickles(fused):
    model, x = model_of(), torch.randn(2, 11)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is nn.Sequential
        assert torch.equal(other(x), model(x))
    assert len(fused) == 4


# ---- torch's machinery -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    model, x = model_of(), torch.randn(4, 11, requires_grad=True)
    graphs = []

    def backend(graph, _):
        graphs.append(graph.code)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=backend)
    for n in (4, 7):
        x = torch.randn(n, 11, requires_grad=True)
        assert torch.equal(compiled(x), model(x))
    assert "'relu'" in graphs[0]
    assert "minidl.activation" not in graphs[0]
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    (ours,), (expected,) = (torch.autograd.grad(f(x).square().sum(), x) for f in (compiled, model))
    torch.testing.assert_close(ours, expected)


def test_compile_runs_two_modules_where_eager_does():
    model, x = model_of(), torch.randn(4, 11)
    model[1].register_forward_hook(lambda m, args, y: y + 1)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


class ModulesAreLeaves(torch.fx.Tracer):
    def is_leaf_module(self, m, name):
        return not isinstance(m, torch.nn.Sequential)


def test_fx_sees_the_modules():
    model, x = model_of(), torch.randn(4, 11)
    outer = nn.Sequential(model, nn.Tanh())
    for root, targets in ((model, ["0", "1", "2"]), (outer, ["0.0", "0.1", "0.2", "1"])):
        graph = ModulesAreLeaves().trace(root)
        assert [node.target for node in graph.nodes if node.op == "call_module"] == targets
        assert torch.equal(torch.fx.GraphModule(root, graph)(x), root(x))


def test_jit_trace_keeps_the_modules():
    model, x = model_of(), torch.randn(4, 11)
    with pytest.warns(DeprecationWarning, match="jit"):
        traced = torch.jit.trace(model, x)
    calls = [node.kind() for node in traced.graph.nodes()]
    assert calls.count("prim::CallMethod") == 3
    assert torch.equal(traced(x), model(x))


def test_meta_and_fake_tensors():
    with torch.device("meta"):
        assert model_of()(torch.empty(4, 11)).shape == (4, 3)
    with torch._subclasses.FakeTensorMode():
        y = model_of()(torch.empty(4, 11))
    assert isinstance(y, torch._subclasses.FakeTensor)
    assert y.shape == (4, 3)


def test_autocast_and_no_grad():
    model, x = model_of(), torch.randn(4, 11)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(x), apart(model, x))
    with torch.no_grad():
        y = model(x)
    assert y.grad_fn is None
    assert torch.equal(y, model(x))


def test_functional_call_and_checkpointing():
    model, x = model_of(), torch.randn(4, 11, requires_grad=True)
    doubled = {name: 2 * p.detach() for name, p in model.named_parameters()}
    y = torch.func.functional_call(model, doubled, x)
    z = TF.linear(
        TF.linear(x, doubled["0.weight"], doubled["0.bias"]).relu(), doubled["2.weight"], doubled["2.bias"]
    )
    torch.testing.assert_close(y, z)
    y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(model(x).sum(), x)[0])


def test_distributed_data_parallel(tmp_path, fused):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, x = model_of(), torch.randn(4, 11)
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        parallel(x).sum().backward()
        assert fused == ["relu"]
        expected = torch.autograd.grad(apart(model, x).sum(), list(model.parameters()))
        for p, grad in zip(model.parameters(), expected, strict=True):
            assert torch.equal(p.grad, grad)
    finally:
        torch.distributed.destroy_process_group()
