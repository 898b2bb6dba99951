"""The normalisations behind torch's interfaces: errors, derivatives, the compiler, modules, Sequential."""

import copy
import itertools

import pytest
import torch
import torch.nn
from compare import assert_derivatives_of_every_order, assert_same_error
from norms import batch, norms

import minidl.functional as F
import minidl.nn as nn

LAST = torch.channels_last

# ---- bad input -------------------------------------------------------------------------------------------------

X, P = torch.randn(4, 6, 5), torch.ones(6)
BAD = [
    ("batch_norm", (X, P, P, P[:5], P, True), {}),
    ("batch_norm", (X, P, P, P, P[:5], True), {}),
    ("batch_norm", (X, P[:5], P, P, P, True), {}),
    ("batch_norm", (X, P, P[:5], P, P, True), {}),
    ("batch_norm", (X, None, None), {}),
    ("batch_norm", (X, P, None), {}),
    ("batch_norm", (X, P, None, P, P, True), {}),
    ("batch_norm", (X, None, P, P, P, True), {}),
    ("batch_norm", (torch.randn(1, 6), P, P, P, P, True), {}),
    ("batch_norm", (torch.randn(1, 6, 1, 1), P, P, P, P, True), {}),
    ("batch_norm", (X, P, P, P, P, True), {"eps": 0.0}),
    ("batch_norm", (X, P, P, P, P, True), {"momentum": None}),
    ("layer_norm", (X, (6,)), {}),
    ("layer_norm", (X, (1, 4, 6, 5)), {}),
    ("layer_norm", (X, ()), {}),
    ("layer_norm", (X, (5,), P), {}),
    ("layer_norm", (X, (5,), None, P), {}),
    ("layer_norm", (X, (5,), torch.ones(1, 5)), {}),
    ("group_norm", (X, 4), {}),
    ("group_norm", (X, 3, P[:5]), {}),
    ("group_norm", (X, 3, None, P[:5]), {}),
    ("group_norm", (X[0, 0], 1), {}),
    ("group_norm", (torch.randn(1, 6), 6), {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "kwargs"), BAD)
def test_errors(name, args, kwargs):
    before = [t.clone() for t in args if isinstance(t, torch.Tensor)]
    assert_same_error(name, args, kwargs)
    for one, other in zip(before, (t for t in args if isinstance(t, torch.Tensor)), strict=True):
        assert torch.equal(one, other)


def test_errors_name_the_operator_and_the_shapes():
    with pytest.raises(ValueError, match=r"batch_norm: Expected more than 1 value per channel .*\[1, 6\]"):
        F.batch_norm(torch.ones(1, 6), None, None, training=True)
    with pytest.raises(
        RuntimeError, match=r"batch_norm: expected weight of shape \[6\] .*\[4, 6, 5\], but got \[5\]"
    ):
        F.batch_norm(X, P, P, P[:5])
    with pytest.raises(RuntimeError, match=r"layer_norm: .* normalized_shape \[6\], but got \[4, 6, 5\]"):
        F.layer_norm(X, (6,))
    with pytest.raises(RuntimeError, match=r"group_norm: .*\[4, 6, 5\] to be divisible by num_groups 4"):
        F.group_norm(X, 4)
    with pytest.raises(RuntimeError, match="greater than 0"):
        F.group_norm(X, 0)
    with pytest.raises(RuntimeError, match="input and weight to have the same dtype"):
        F.layer_norm(X, (5,), torch.ones(5, dtype=torch.float64))
    with pytest.raises(ValueError, match="eps must be non-negative"):
        F.batch_norm(X, P, P, eps=-1.0)
    calls = (
        lambda x, a: F.batch_norm(x, None, None, training=True, activation=a),
        lambda x, a: F.layer_norm(x, (5,), activation=a),
        lambda x, a: F.group_norm(x, 3, activation=a),
    )
    for call in calls:
        with pytest.raises(NotImplementedError, match="float32 and float64"):
            call(X.half(), None)
        with pytest.raises(ValueError, match="activation 'tanh' is not fused"):
            call(X, "tanh")


def test_operators_of_the_backward_pass_check_their_arguments():
    ops, every = torch.ops.minidl, [True, True, True]
    stats = torch.ones(3, 6, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="same shape"):
        ops.batch_norm_backward(X[:3], X, P, P, stats, True, "none", every)
    with pytest.raises(RuntimeError, match="stats of shape"):
        ops.batch_norm_backward(X, X, P, P, stats[:2], True, "none", every)
    with pytest.raises(RuntimeError, match="stats of shape"):
        ops.group_norm_backward(X, X, 3, P, P, stats, "none", every)
    with pytest.raises(RuntimeError, match="stats of shape"):
        ops.layer_norm_backward(X, X, [5], None, None, stats.float(), "none", [True, False, False])
    with pytest.raises(RuntimeError, match="stats of shape"):
        ops.batch_norm_update(P, P, stats[:2], 0.1)
    with pytest.raises(RuntimeError, match="running_var of shape"):
        ops.batch_norm_update(P, P[:5], stats, 0.1)
    assert torch.equal(P, torch.ones(6))


# ---- autograd and the compiler ---------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradients_of_every_order(activation):
    def double(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    running = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.1
    for shape in ((3, 4), (2, 4, 3)):
        inputs = double(*shape), double(4), double(4)
        for f in (
            batch(True, activation)[0],
            batch(False, activation, running)[0],
            norms("group_norm", 2, activation)[0],
        ):
            assert_derivatives_of_every_order(f, *inputs)
            assert_derivatives_of_every_order(f, inputs[0])
        normalized = shape[1:]
        assert_derivatives_of_every_order(
            norms("layer_norm", normalized, activation)[0],
            inputs[0],
            double(*normalized),
            double(*normalized),
        )
        assert_derivatives_of_every_order(norms("layer_norm", normalized, activation)[0], inputs[0])


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # opcheck looks at it
def test_operators_pass_opcheck():
    ops, check = torch.ops.minidl, torch.library.opcheck
    x, w, b = (torch.randn(*s, requires_grad=True) for s in ((4, 6, 5), (6,), (6,)))
    flat, last = x.detach()[..., 0], x.detach().clone()[..., None].contiguous(memory_format=LAST)
    mean, var = torch.zeros(6), torch.ones(6)
    for activation, training, given in itertools.product(("none", "relu"), (True, False), (x, last)):
        check(ops.batch_norm_forward.default, (given, w, b, mean, var, training, 1e-5, activation))
    check(ops.batch_norm_forward.default, (x, None, None, None, None, True, 1e-5))
    stats = torch.rand(3, 6, dtype=torch.float64)
    check(ops.batch_norm_update.default, (mean, var, stats, 0.1))
    for given in (x.detach(), flat, last):
        for wanted in ([True, True, True], [False, True, False]):
            args = (torch.rand_like(given), given, w.detach(), b.detach(), stats, True, "relu", wanted)
            check(ops.batch_norm_backward.default, args)
    for activation in ("none", "relu"):
        check(ops.group_norm_forward.default, (x, 3, w, b, 1e-5, activation))
        check(ops.layer_norm_forward.default, (x, [5], None, None, 1e-5, activation))
    dy, every = torch.rand(4, 6, 5), [True, True, True]
    stats = torch.rand(2, 12, dtype=torch.float64)
    check(ops.group_norm_backward.default, (dy, x.detach(), 3, w.detach(), b.detach(), stats, "relu", every))
    stats, p = torch.rand(2, 4, dtype=torch.float64), torch.rand(6, 5)
    check(ops.layer_norm_backward.default, (dy, x.detach(), [6, 5], p, p, stats, "none", every))
    for call in (
        (ops.batch_norm.default, (x, w, b, mean, var, True, 0.1, 1e-5, "relu")),
        (ops.group_norm.default, (x, 3, w, b, 1e-5)),
        (ops.layer_norm.default, (x, [5], None, None, 1e-5)),
    ):
        check(*call)


# ---- modules ---------------------------------------------------------------------------------------------------

MODULES = [
    ("BatchNorm1d", (6,), {}, (4, 6)),
    ("BatchNorm1d", (6,), {"eps": 1e-3, "momentum": 0.3}, (4, 6, 5)),
    ("BatchNorm2d", (6,), {}, (4, 6, 5, 3)),
    ("BatchNorm2d", (6,), {"momentum": None}, (4, 6, 5, 3)),
    ("BatchNorm2d", (6,), {"track_running_stats": False}, (4, 6, 5, 3)),
    ("BatchNorm2d", (6,), {"affine": False}, (4, 6, 5, 3)),
    ("BatchNorm1d", (6,), {"affine": False, "track_running_stats": False}, (4, 6)),
    ("LayerNorm", (6,), {}, (4, 6)),
    ("LayerNorm", ([5, 6],), {"bias": False, "eps": 1e-3}, (4, 5, 6)),
    ("LayerNorm", (6,), {"elementwise_affine": False}, (4, 6)),
    ("GroupNorm", (3, 6), {}, (4, 6, 5)),
    ("GroupNorm", (2, 6), {"affine": False, "eps": 1e-3}, (4, 6)),
]


@pytest.mark.parametrize(("name", "args", "kwargs", "shape"), MODULES, ids=str)
def test_modules_train_and_exchange_their_state(name, args, kwargs, shape):
    ours, theirs = (getattr(module, name)(*args, **kwargs) for module in (nn, torch.nn))
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    optimizers = [torch.optim.SGD([*m.parameters(), torch.zeros(1)], lr=0.1) for m in (ours, theirs)]
    for _ in range(3):
        x = torch.randn(shape) + 1
        for module, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            y = module(x)
            if y.requires_grad:
                y.sin().sum().backward()
            optimizer.step()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, msg=key)
    fresh = getattr(nn, name)(*args, **kwargs)
    fresh.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    for training in (True, False):
        for module in (ours, theirs, fresh):
            module.train(training)
        expected = theirs(x)
        torch.testing.assert_close(ours(x), expected)
        torch.testing.assert_close(fresh(x), expected)


def test_frozen_modules_use_what_they_have():
    """eval() with statistics that a batch left behind, and statistics that were deleted."""
    x = torch.randn(4, 6)
    for edit in (lambda m: m.eval(), lambda m: (m.eval() and setattr(m, "running_mean", None)) or
                 setattr(m, "running_var", None), lambda m: setattr(m, "track_running_stats", False),
                 lambda m: setattr(m, "num_batches_tracked", None)):  # fmt: skip
        results = []
        for module in (nn, torch.nn):
            m = module.BatchNorm1d(6)
            m(x)
            edit(m)
            results.append([m(2 * x), *(p for p in m.state_dict().values())])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)


def test_modules_refuse_other_dimensions():
    for name, shape in (("BatchNorm1d", (6,)), ("BatchNorm1d", (2, 6, 3, 3)), ("BatchNorm2d", (2, 6, 3))):
        for module in (nn, torch.nn):
            with pytest.raises(ValueError, match=r"expected .* input"):
                getattr(module, name)(6)(torch.randn(shape))


# ---- Sequential ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.BatchNorm1d(6), (4, 6)),
        (lambda: nn.BatchNorm1d(6, momentum=None), (4, 6, 5)),
        (lambda: nn.BatchNorm2d(6), (4, 6, 5, 3)),
        (lambda: nn.LayerNorm(6), (4, 6)),
        (lambda: nn.GroupNorm(3, 6), (4, 6, 5)),
    ],
)
def test_sequential_fuses_a_norm_and_its_relu_to_the_same_bits(isa, layer, shape):
    pair = nn.Sequential(layer(), nn.ReLU())
    x = torch.randn(shape)
    runs = []
    for run in (lambda m, x: m(x), lambda m, x: m[1](m[0](x))):
        model, leaf = copy.deepcopy(pair), x.clone().requires_grad_()
        for _ in range(2):
            y = run(model, leaf)
        y.backward(torch.cos(x))
        runs.append([y, leaf.grad, *(p.grad for p in model.parameters()), *model.state_dict().values()])
        fused = y.grad_fn.next_functions[0][0].name() == "torch::autograd::AccumulateGrad"
        assert fused == (len(runs) == 1)
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


def test_sequential_leaves_other_activations_and_watched_norms_alone():
    x = torch.randn(4, 6, requires_grad=True)
    for edit in (lambda m: m.append(nn.Tanh()), lambda m: m.append(nn.ReLU(inplace=True)),
                 lambda m: m.append(nn.ReLU())[0].register_forward_hook(lambda *_: None)):  # fmt: skip
        model = nn.Sequential(nn.BatchNorm1d(6))
        edit(model)
        assert "BatchNorm" not in model(x).grad_fn.name()


# ---- the compiler ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    """Results, gradients and running statistics of a training step, and the evaluation after it."""

    def model():
        torch.manual_seed(1)
        return nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.GroupNorm(3, 6), nn.Flatten(2), nn.BatchNorm1d(6),
                             nn.LayerNorm(20))  # fmt: skip

    eager, other = model(), model()
    torch._dynamo.reset()
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (3, 5):
        x = torch.randn(n, 6, 4, 5)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        for f, given in zip((eager, compiled), inputs, strict=True):
            f(given).sin().sum().backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
        for (name, one), two in zip(eager.state_dict().items(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(one, two, msg=name)
        for one, two in zip(eager.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad)
    assert eager[0].num_batches_tracked == 2
    eager.eval(), other.eval()
    torch.testing.assert_close(compiled(x), eager(x))


def test_meta_tensors():
    with torch.device("meta"):
        model = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.GroupNorm(3, 6), nn.LayerNorm([4, 5]))
        y = model(torch.empty(3, 6, 4, 5).contiguous(memory_format=LAST))
    assert y.is_meta
    assert y.shape == (3, 6, 4, 5)
