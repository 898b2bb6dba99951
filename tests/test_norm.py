"""batch_norm, layer_norm and group_norm against torch, float64 being the oracle."""

import copy
import itertools

import pytest
import torch
import torch.nn
import torch.nn.functional as TF
from check import assert_close_to_float64, assert_same_gradients, layouts
from compare import (
    assert_derivatives_of_every_order,
    assert_like_torch,
    assert_same_bits_on_threads,
    assert_same_error,
    assert_same_specials,
)

import minidl.functional as F
import minidl.nn as nn

INF, NAN = float("inf"), float("nan")
LAST = torch.channels_last
# One value a channel but for the batch, ragged registers, planes of several pieces, several blocks of rows.
BATCH_SHAPES = [(2, 1), (1, 1, 2), (5, 3), (64, 17), (7, 16, 1), (3, 5, 31), (2, 3, 33), (2, 3, 4, 5), (4, 37, 3, 3),
                (2, 2, 70, 59), (601, 70)]  # fmt: skip
LAYER_SHAPES = [((1, 1), 1), ((5, 1), 1), ((3, 7), 1), ((6, 16), 2), ((5, 31), 1), ((4, 33), 1), ((2, 3, 4), 2),
                ((2, 3, 67), 1), ((70, 129), 1), ((3, 9001), 1), ((2501, 11), 1)]  # fmt: skip
GROUP_SHAPES = [((2, 4), 2), ((3, 6), 1), ((5, 34), 2), ((2, 3, 1), 1), ((2, 6, 31), 3), ((3, 4, 5, 3), 4),
                ((2, 6, 70, 59), 3), ((70, 9), 3)]  # fmt: skip


def batch(training, activation=None, running=None, eps=1e-5):
    """Ours and torch's batch norm of (x, w, b), with running statistics that fit x if not those of a batch."""

    def of(batch_norm, relu):
        def run(x, w=None, b=None):
            mean, var = (None, None) if running is None else (p.clone().to(x.dtype) for p in running)
            return relu(batch_norm(x, mean, var, w, b, training, eps=eps))

        return run

    def fused(*args, **kwargs):
        return F.batch_norm(*args, **kwargs, activation=activation)

    return of(fused, lambda y: y), of(TF.batch_norm, TF.relu if activation else lambda y: y)


def norms(name, parameter, activation=None):
    """Ours and torch's layer_norm or group_norm of (x, w, b)."""
    ours, theirs = getattr(F, name), getattr(TF, name)
    return (
        lambda x, w=None, b=None: ours(x, parameter, w, b, activation=activation),
        lambda x, w=None, b=None: (
            TF.relu(theirs(x, parameter, w, b)) if activation else theirs(x, parameter, w, b)
        ),
    )


def affine(shape, dtype):
    return torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)


def clear_of_zero(theirs, x, w, b):
    """x such that no result lies so near to 0 that its rounding could turn a ReLU over."""
    for _ in range(20):
        if theirs(x.double(), w.double(), b.double()).abs().min() > 2e-6:
            return x
        x = torch.randn_like(x)
    raise AssertionError("no such x")


def affine_variants(w, b):
    return [(w, b), (), (w,), (torch.ones_like(w), b)]


# ---- values and gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", BATCH_SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(isa, dtype, shape, training):
    w, b = affine(shape[1], dtype)
    running = None if training else (torch.randn(shape[1]), torch.rand(shape[1]) + 0.1)
    for channels_last in {False, len(shape) == 4}:
        x = torch.randn(shape, dtype=dtype) * 2 + 1
        x = x.contiguous(memory_format=LAST) if channels_last else x
        ours, theirs = batch(training, None, running)
        assert_same_gradients(ours, theirs, x, w, b)
        assert ours(x).stride() == x.stride()
        x = clear_of_zero(theirs, x, w, b)
        assert_same_gradients(*batch(training, "relu", running), x, w, b)


@pytest.mark.parametrize(("shape", "dims"), LAYER_SHAPES, ids=str)
def test_layer_norm(isa, dtype, shape, dims):
    normalized = shape[len(shape) - dims :]
    w, b = affine(normalized, dtype)
    x = torch.randn(shape, dtype=dtype) * 2 + 1
    ours, theirs = norms("layer_norm", normalized)
    assert_same_gradients(ours, theirs, x, w, b, floor=8)
    if normalized != (1,):  # then every result is b
        x = clear_of_zero(theirs, x, w, b)
        assert_same_gradients(*norms("layer_norm", normalized, "relu"), x, w, b, floor=8)


@pytest.mark.parametrize(("shape", "groups"), GROUP_SHAPES, ids=str)
def test_group_norm(isa, dtype, shape, groups):
    w, b = affine(shape[1], dtype)
    x = torch.randn(shape, dtype=dtype) * 2 + 1
    ours, theirs = norms("group_norm", groups)
    assert_same_gradients(ours, theirs, x, w, b)
    x = clear_of_zero(theirs, x, w, b)
    assert_same_gradients(*norms("group_norm", groups, "relu"), x, w, b)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_either_of_weight_and_bias_may_be_missing(isa, activation):
    x, w, b = torch.randn(4, 6, 5), *affine(6, torch.float32)
    for shape in (x, x[..., 0].contiguous()):
        for pair in (batch(True, activation), norms("group_norm", 3, activation)):
            assert_same_gradients(*pair, shape)
            assert_same_gradients(*pair, shape, w)
            assert_same_gradients(*((lambda x, b, f=f: f(x, None, b)) for f in pair), shape, b)
    pair, (w, b) = norms("layer_norm", (5,), activation), affine(5, torch.float32)
    assert_same_gradients(*pair, x)
    assert_same_gradients(*pair, x, w)
    assert_same_gradients(*((lambda x, b, f=f: f(x, None, b)) for f in pair), x, b)


def test_views(isa, dtype):
    for shape in ((5, 6), (4, 6, 3), (3, 6, 2, 5)):
        for _, x in layouts(shape, dtype):
            w, b = (p[::2] for p in affine(12, dtype))
            for pair in (batch(True), norms("group_norm", 2)):
                if x.stride(-1) or x.dim() > 3:  # an expanded row is constant: torch's result is its rounding
                    assert_same_gradients(*pair, x, w, b, floor=16)
            w, b = (p[::2] for p in affine(2 * shape[-1], dtype))
            if x.stride(-1):
                assert_same_gradients(*norms("layer_norm", shape[-1:]), x, w, b, floor=16)


def test_expanded_inputs_and_gradients():
    x = torch.randn(1, 6, 5).expand(3, 6, 5)
    for f, theirs in (batch(True), norms("layer_norm", (5,)), norms("group_norm", 2)):
        ours = x.clone().requires_grad_()
        other = x.double().clone().requires_grad_()
        f(ours).square().sum().backward()  # square: the gradient of a plain sum is 0
        theirs(other).square().sum().backward()
        torch.testing.assert_close(ours.grad, other.grad.float(), rtol=1e-4, atol=1e-5)
        f(x).sum()
        torch.testing.assert_close(f(x), theirs(x))
        y = f(ours.detach().requires_grad_())
        assert torch.equal(*(torch.autograd.grad(y, y.grad_fn.next_functions[0][0].variable, dy, retain_graph=True)[0]
                             for dy in (torch.ones(()).expand_as(y), torch.ones_like(y))))  # fmt: skip


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (0, 3, 4, 5), (2, 3, 0), (2, 3, 4, 0)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_empty_batches(shape, training):
    running = torch.tensor([1.0, 2, 3]), torch.tensor([4.0, 5, 6])
    before = [p.clone() for p in running]
    args = (torch.randn(shape), *running, torch.randn(3), torch.randn(3), training)
    assert_like_torch("batch_norm", args, wrt=(0, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(running, before, strict=True))
    if 0 not in shape[1:]:
        assert_like_torch(
            "layer_norm", (args[0], shape[1:], torch.randn(shape[1:]), torch.randn(shape[1:])), wrt=(0, 2, 3)
        )
    if shape[0] == 0:
        assert_like_torch("group_norm", (args[0], 3, torch.randn(3), torch.randn(3)), wrt=(0, 2, 3))


def test_no_channels_and_no_features():
    assert F.batch_norm(torch.empty(2, 0, 3), None, None, training=True).shape == (2, 0, 3)
    assert F.layer_norm(torch.empty(2, 0), (0,), torch.empty(0), torch.empty(0)).shape == (2, 0)


def test_only_what_is_wanted_is_computed():
    x, w, b = torch.randn(4, 6, 5), *affine(6, torch.float32)
    for f in (
        batch(True)[0],
        batch(False, running=(torch.zeros(6), torch.ones(6)))[0],
        norms("group_norm", 2)[0],
    ):
        for given in (x, x[..., 0]):
            every = [given.clone().requires_grad_(), w.clone().requires_grad_(), b.clone().requires_grad_()]
            dy = torch.randn_like(given)
            expected = torch.autograd.grad(f(*every), every, dy)
            for wanted in itertools.product([False, True], repeat=3):
                if any(wanted):
                    leaves = [t.detach().requires_grad_(k) for t, k in zip(every, wanted, strict=True)]
                    got = torch.autograd.grad(f(*leaves), [t for t in leaves if t.requires_grad], dy)
                    for one, other in zip(got, itertools.compress(expected, wanted), strict=True):
                        assert torch.equal(one, other)


# ---- digits and special values -------------------------------------------------------------------------------


LARGE_MEANS = [
    *[("batch_norm", shape) for shape in ((300, 5), (6, 5, 90), (6, 5, 9, 10), (3, 5, 70, 59))],
    ("layer_norm", (7, 6, 90)),
    ("layer_norm", (3, 5000)),
    ("group_norm", (3, 300)),
    ("group_norm", (3, 6, 70, 59)),
]


@pytest.mark.parametrize(("name", "shape"), LARGE_MEANS, ids=str)
def test_a_large_mean_costs_no_digits(isa, name, shape):
    """Data around 1e4 with a spread of 1e-2, of which float32 keeps a few bits: of these none is to be lost."""
    parameter = {"batch_norm": None, "layer_norm": shape[-1:], "group_norm": 3}[name]
    ours, theirs = batch(True, eps=1e-8) if name == "batch_norm" else norms(name, parameter)
    x = 1e4 + 0.01 * torch.randn(shape)
    w, b = affine(parameter if name == "layer_norm" else shape[1], torch.float32)
    dy = torch.randn(shape)
    for given in [x, x.contiguous(memory_format=LAST)] if len(shape) == 4 else [x]:
        results = []
        for f, dtype in ((ours, torch.float32), (theirs, torch.float64)):
            leaves = [t.detach().to(dtype).requires_grad_() for t in (given, w, b)]
            y = f(*leaves)
            results.append([y, *torch.autograd.grad(y, leaves, dy.to(dtype))])
        for one, truth in zip(*results, strict=True):
            torch.testing.assert_close(one.double(), truth, rtol=1e-5, atol=2e-6 * truth.abs().max().item())


def test_running_statistics_of_a_large_mean(isa):
    x = 1e4 + 0.01 * torch.randn(50, 3, 40)
    for given in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):
        mean, var = torch.zeros(3), torch.zeros(3)
        F.batch_norm(given, mean, var, training=True, momentum=1.0)
        torch.testing.assert_close(var.double(), x.double().var((0, 2)), rtol=1e-5, atol=0)
        torch.testing.assert_close(mean.double(), x.double().mean((0, 2)), rtol=1e-7, atol=0)


def special_batches():
    x = torch.randn(6, 4, 10)
    x[2, 1, 3], x[0, 2, 0], x[5, 3, 9] = NAN, INF, -INF
    large = torch.randn(6, 4, 10) * 1e25
    for t in (x, large):
        yield from (t, t.transpose(1, 2).contiguous().transpose(1, 2), t[..., 3].contiguous())


def test_special_values(isa):
    for x in special_batches():
        assert_same_specials("batch_norm", (x, None, None), {"training": True})
        mean, var = torch.tensor([0.0, NAN, INF, 1]), torch.tensor([1.0, 2, NAN, 0])
        assert_same_specials("batch_norm", (x, mean, var))
        if x.abs().nan_to_num(0, 0).max() < 1e20:  # torch's sums of squares overflow, ours need not
            assert_same_specials("group_norm", (x, 2))
            assert_same_specials("layer_norm", (x, x.shape[-1:]))
    x = torch.randn(6, 4) * 1e25
    y = F.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(
        y.double(), TF.batch_norm(x.double(), None, None, training=True), rtol=1e-5, atol=1e-6
    )
    y = F.layer_norm(x, (4,))
    torch.testing.assert_close(y.double(), TF.layer_norm(x.double(), (4,)), rtol=1e-5, atol=1e-6)


def test_relu_of_special_values(isa):
    """NaN stays NaN, and its gradient passes, as in two calls."""
    for x in special_batches():
        runs = []
        for f in (lambda x: F.relu(F.batch_norm(x, None, None, training=True)),
                  lambda x: F.batch_norm(x, None, None, training=True, activation="relu")):  # fmt: skip
            leaf = x.detach().requires_grad_()
            y = f(leaf)
            runs.append([y, *torch.autograd.grad(y, leaf, torch.ones_like(y))])
        for one, other in zip(*runs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_constant_rows():
    for value in (0.0, 0.1, 1e4):
        x = torch.full((3, 4, 100), value)
        for f, _ in (batch(True), norms("layer_norm", (100,)), norms("group_norm", 2)):
            torch.testing.assert_close(f(x), torch.zeros_like(x), rtol=0, atol=1e-4)


# ---- running statistics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, 0.37])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4), (4, 3, 5, 6)], ids=str)
def test_running_statistics(isa, dtype, momentum, shape):
    for which in itertools.product([True, False], repeat=2):
        running = [torch.rand(3, dtype=dtype) + 0.5 for _ in range(2)]
        mine, theirs, oracle = ([p.clone() for p in running] for _ in range(3))
        oracle = [p.double() for p in oracle]
        for _ in range(3):
            x = torch.randn(shape, dtype=dtype)
            for f, (mean, var), given in (
                (F.batch_norm, mine, x), (TF.batch_norm, theirs, x), (TF.batch_norm, oracle, x.double())
            ):  # fmt: skip
                args = (mean if which[0] else None, var if which[1] else None)
                f(given, *args, training=True, momentum=momentum)
        for one, two, truth in zip(mine, theirs, oracle, strict=True):
            assert_close_to_float64(one, two, truth)


def test_running_statistics_are_written_where_they_lie():
    x = torch.randn(5, 3)
    memory = torch.zeros(2, 3, 2)
    mean, var = memory[0, :, 0], memory[1, :, 1]
    versions = mean._version, var._version
    F.batch_norm(x, mean, var, training=True, momentum=1.0)
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(var, x.var(0))
    assert not memory[0, :, 1].any()
    assert (mean._version, var._version) > versions
    F.batch_norm(x, mean, var)
    torch.testing.assert_close(mean, x.mean(0))


def test_a_graph_that_needs_the_old_statistics_says_so():
    x, mean, var = torch.randn(5, 3, requires_grad=True), torch.zeros(3), torch.ones(3)
    z = (x * mean).sum()
    F.batch_norm(x, mean, var, training=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward()


def test_statistics_that_share_memory_are_refused():
    one = torch.zeros(1).expand(3)
    with pytest.raises(RuntimeError, match="single memory location"):
        F.batch_norm(torch.randn(5, 3), one, torch.ones(3), training=True)


# ---- threads ---------------------------------------------------------------------------------------------------


def test_same_bits_on_any_number_of_threads(isa):
    """Sets that fit a cache and sets that do not, fewer and more of them than threads."""
    for shape in ((9001, 10), (40, 5, 33, 31), (3, 2, 300, 301), (2, 3, 400, 401), (64, 16, 12, 12)):
        x = torch.randn(shape, dtype=torch.float64)
        w, b = affine(shape[1], torch.float64)
        functions = [batch(True, "relu")[0], batch(True)[0]]
        if len(shape) > 2:
            functions += [norms("group_norm", 1)[0], lambda x, w, b: F.layer_norm(x, x.shape[2:])]
            forms = [x, x.contiguous(memory_format=LAST)]
        else:
            functions.append(lambda x, w, b: F.layer_norm(x, x.shape[1:], w, b))
            forms = [x]
        for f, form in itertools.product(functions, forms):
            leaves = [form.detach().requires_grad_(), w.requires_grad_(), b.requires_grad_()]

            def run(f=f, leaves=leaves):
                y = f(*leaves)
                grads = torch.autograd.grad(y, leaves, torch.cos(y).detach(), allow_unused=True)
                return [y, *[g for g in grads if g is not None]]

            assert_same_bits_on_threads(run)


# ---- bad input -------------------------------------------------------------------------------------------------

X, P = torch.randn(4, 6, 5), torch.ones(6)
BAD = [
    ("batch_norm", (X, P, P, P[:5], P, True), {}),
    ("batch_norm", (X, P, P, P, P[:5], True), {}),
    ("batch_norm", (X, P[:5], P, P, P, True), {}),
    ("batch_norm", (X, P, P[:5], P, P, True), {}),
    ("batch_norm", (X, None, None), {}),
    ("batch_norm", (X, P, None), {}),
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
    for call in (lambda x, a: F.batch_norm(x, None, None, training=True, activation=a),
                 lambda x, a: F.layer_norm(x, (5,), activation=a), lambda x, a: F.group_norm(x, 3, activation=a)):  # fmt: skip
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
    check(ops.batch_norm_update.default, (mean, None, stats, 0.1))
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
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(fresh(x), theirs(x))


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
