"""batch_norm, layer_norm and group_norm against torch, float64 being the oracle."""

import itertools

import pytest
import torch
import torch.nn.functional as TF
from check import assert_close_to_float64, assert_same_gradients, layouts
from compare import (
    assert_like_torch,
    assert_same_bits_on_threads,
    assert_same_specials,
)
from norms import affine, batch, floor, norms

import minidl.functional as F

INF, NAN = float("inf"), float("nan")
LAST = torch.channels_last
# One value a channel but for the batch, ragged registers, planes of several pieces, several blocks of rows.
BATCH_SHAPES = [(3, 1), (1, 1, 3), (5, 3), (64, 17), (7, 16, 1), (3, 5, 31), (2, 3, 33), (2, 3, 4, 5), (4, 37, 3, 3),
                (2, 2, 70, 59), (601, 70)]  # fmt: skip
LAYER_SHAPES = [((3, 7), 1), ((6, 16), 2), ((5, 31), 1), ((4, 33), 1), ((2, 3, 4), 2),
                ((2, 3, 67), 1), ((70, 129), 1), ((3, 9001), 1), ((2501, 11), 1)]  # fmt: skip
GROUP_SHAPES = [((2, 4), 2), ((3, 6), 1), ((5, 34), 2), ((2, 3, 1), 1), ((2, 6, 31), 3), ((3, 4, 5, 3), 4),
                ((2, 6, 70, 59), 3), ((70, 9), 3)]  # fmt: skip


def clear_of_zero(theirs, x, w, b):
    """x such that no result lies so near to 0 that its rounding could turn a ReLU over."""
    for _ in range(20):
        if theirs(x.double(), w.double(), b.double()).abs().min() > 2e-6:
            return x
        x = torch.randn_like(x)
    raise AssertionError("no such x")


# ---- values and gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", BATCH_SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(isa, dtype, shape, training):
    w, b = affine(shape[1], dtype)
    # eps: of two or three values the gradients are little but the share of eps in the variance.
    running = None if training else (torch.randn(shape[1]), torch.rand(shape[1]) + 0.1)
    for channels_last in {False, len(shape) == 4}:
        x = torch.randn(shape, dtype=dtype) * 2 + 1
        x = x.contiguous(memory_format=LAST) if channels_last else x
        ours, theirs = batch(training, None, running, eps=1.0)
        assert_same_gradients(ours, theirs, x, w, b, floor=floor(dtype))
        assert ours(x).stride() == x.stride()
        x = clear_of_zero(theirs, x, w, b)
        assert_same_gradients(*batch(training, "relu", running, eps=1.0), x, w, b, floor=floor(dtype))


@pytest.mark.parametrize(("shape", "dims"), LAYER_SHAPES, ids=str)
def test_layer_norm(isa, dtype, shape, dims):
    normalized = shape[len(shape) - dims :]
    w, b = affine(normalized, dtype)
    x = torch.randn(shape, dtype=dtype) * 2 + 1
    ours, theirs = norms("layer_norm", normalized)
    assert_same_gradients(ours, theirs, x, w, b, floor=floor(dtype))
    x = clear_of_zero(theirs, x, w, b)
    assert_same_gradients(*norms("layer_norm", normalized, "relu"), x, w, b, floor=floor(dtype))


@pytest.mark.parametrize(("shape", "groups"), GROUP_SHAPES, ids=str)
def test_group_norm(isa, dtype, shape, groups):
    w, b = affine(shape[1], dtype)
    x = torch.randn(shape, dtype=dtype) * 2 + 1
    ours, theirs = norms("group_norm", groups)
    assert_same_gradients(ours, theirs, x, w, b, floor=floor(dtype))
    x = clear_of_zero(theirs, x, w, b)
    assert_same_gradients(*norms("group_norm", groups, "relu"), x, w, b, floor=floor(dtype))


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
                    assert_same_gradients(*pair, x, w, b, floor=floor(dtype))
            w, b = (p[::2] for p in affine(2 * shape[-1], dtype))
            if x.stride(-1):
                assert_same_gradients(*norms("layer_norm", shape[-1:]), x, w, b, floor=floor(dtype))


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


def test_one_feature_is_its_own_mean(isa):
    x, w, b = torch.randn(5, 1, requires_grad=True), *affine(1, torch.float32)
    y = F.layer_norm(x, (1,), w, b)
    assert torch.equal(y, b.expand(5, 1))
    y.backward(torch.ones(5, 1))
    torch.testing.assert_close(x.grad, torch.zeros(5, 1), rtol=0, atol=1e-4)


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
    return x, x.transpose(1, 2).contiguous().transpose(1, 2), x[..., 3].contiguous()


def test_special_values(isa):
    for x in special_batches():
        assert_same_specials("batch_norm", (x, None, None), {"training": True})
        mean, var = torch.tensor([0.0, NAN, INF, 1]), torch.tensor([1.0, 2, NAN, 0])
        assert_same_specials("batch_norm", (x, mean, var))
        assert_same_specials("group_norm", (x, 1))  # two values a group would be rounding alone
        assert_same_specials("layer_norm", (x, x.shape[-1:]))
        running = [(torch.zeros(4), torch.ones(4)) for _ in range(2)]
        for batch_norm, (mean, var) in zip((F.batch_norm, TF.batch_norm), running, strict=True):
            batch_norm(x, mean, var, training=True)
        torch.testing.assert_close(*running, equal_nan=True)


def test_values_whose_squares_overflow(isa):
    x = torch.randn(6, 4, 30) * 1e25
    for given in (x, x.transpose(1, 2).contiguous().transpose(1, 2), x[..., 0].contiguous()):
        pairs = [batch(True), norms("layer_norm", given.shape[-1:]), norms("group_norm", 2)]
        for ours, theirs in pairs:
            torch.testing.assert_close(ours(given).double(), theirs(given.double()), rtol=1e-5, atol=1e-6)


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
    mine, theirs = ([torch.full((3,), value, dtype=dtype) for value in (0.5, 1.5)] for _ in range(2))
    oracle = [p.clone().double() for p in mine]
    for _ in range(3):
        x = torch.randn(shape, dtype=dtype)
        F.batch_norm(x, *mine, training=True, momentum=momentum)
        TF.batch_norm(x, *theirs, training=True, momentum=momentum)
        TF.batch_norm(x.double(), *oracle, training=True, momentum=momentum)
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
    for shape in ((9001, 10), (40, 5, 33, 31), (2, 3, 190, 191), (64, 16, 12, 12)):
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
