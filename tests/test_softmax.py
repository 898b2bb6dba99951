"""softmax, log_softmax, cross_entropy and nll_loss against torch, float64 being the oracle."""

import itertools

import pytest
import torch
import torch.nn.functional as native
from compare import (
    assert_derivatives_of_every_order,
    assert_like_torch,
    assert_same_bits_on_threads,
    assert_same_error,
    assert_same_specials,
    views_of,
)

import minidl.functional as F
from minidl import _C

REDUCTIONS = ["none", "mean", "sum"]
INF, NAN = float("inf"), float("nan")
# Rows along the lanes, and rows across them; one class, ragged vectors, several blocks.
SHAPES = [(0, 3), (3, 1), (1, 7), (64, 10), (5, 31), (5, 33), (3, 1031), (2, 40001), (300, 127)]
K_SHAPES = [
    (2, 3, 0),
    (1, 1, 1),
    (2, 5, 1),
    (3, 4, 2),
    (2, 7, 31),
    (2, 5, 3, 11),
    (2, 130, 17),
    (2, 3, 2, 2, 5),
]


def logits(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


def indices(shape, seed=1):
    """Class indices for logits of `shape`, a quarter of them ignored."""
    g = torch.Generator().manual_seed(seed)
    rows = (shape[0], *shape[2:])
    t = torch.randint(0, shape[1], rows, generator=g)
    return t.masked_fill(torch.rand(rows, generator=g) < 0.25, -100)


def probabilities(shape, seed=2):
    return torch.softmax(logits(*shape, seed=seed), 1)


# ---- softmax, log_softmax ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 0), *K_SHAPES])
def test_softmax_of_shapes(isa, name, shape):
    for dim in {-1, 0, 1}:
        assert_like_torch(name, (logits(*shape), dim))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_views(isa, name):
    for x, dim in itertools.product(views_of(logits(5, 7, 3)), [0, 1, 2]):
        assert_like_torch(name, (x, dim))
    assert_like_torch(name, (logits(7).expand(5, 7), 0))
    for dim in (0, -1):
        assert_like_torch(name, (torch.tensor(2.0), dim))
    x = logits(4, 5).requires_grad_()
    dx = torch.autograd.grad(getattr(F, name)(x, 1).sum(), x)  # the dy that sum() sends is expanded
    theirs = torch.autograd.grad(getattr(native, name)(x, 1).sum(), x)
    torch.testing.assert_close(dx, theirs)


SPECIAL_ROWS = [
    [0.0, -INF, 1.0],
    [-INF, 0.0, 1.0],
    [0.0, INF, 1.0],
    [0.0, NAN, 1.0],
    [NAN, 0.0, 1.0],
    [-INF, -INF, -INF],
    [INF, -INF, 0.0],
    [INF, INF, 0.0],
    [1e4, -1e4, 0.0],
    [3e38, -3e38, 0.0],
    [-3e38, -3e38, -INF],
]


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_special_values(isa, name):
    x = torch.tensor(SPECIAL_ROWS)
    assert_same_specials(name, (x, 1))
    assert_same_specials(name, (x.t().contiguous(), 0))
    # In the last of several blocks, and in a row whose first blocks are all -inf.
    long = torch.full((3, 5000), -INF)
    long[0, 4990:] = logits(10)
    long[1] = logits(5000)
    long[1, 4999] = NAN
    assert_same_specials(name, (long, 1))
    assert_same_specials(name, (long.t().contiguous(), 0))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "cross_entropy"])
def test_large_logits_keep_their_digits(isa, name):
    for scale, offset in ((1, 1e4), (1, -1e4), (1e4, 0)):
        x = logits(6, 40) * scale + offset
        for v in (x, x.t().contiguous().t()):
            assert_like_torch(name, (v, indices(x.shape)) if name == "cross_entropy" else (v, 1))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_arguments(name):
    x = logits(3, 4)
    function = getattr(F, name)
    assert function(x.half(), 1, dtype=torch.float64).dtype == torch.float64
    assert_same_specials(name, (torch.arange(5), 0), {"dtype": torch.float32}, wrt=())
    for shape in ((), (3,), (3, 4), (2, 3, 4), (2, 3, 4, 5)):
        with pytest.warns(UserWarning, match=f"Implicit dimension choice for {name}") as caught:
            y = function(logits(*shape))
        assert caught[0].filename == __file__
        dim = 0 if len(shape) in (0, 1, 3) else 1
        assert torch.equal(y, function(logits(*shape), dim))
    for args in (
        (x, 2),
        (x, -3),
        (torch.tensor(1.0), 1),
        (torch.arange(3), 0),
        (x + 0j, 0),
        (x, 1.5),
        (x > 0, 0),
    ):
        assert_same_error(name, args)
    with pytest.raises(NotImplementedError, match=r"minidl::softmax .*Half"):
        function(x.half(), 1)


# ---- cross_entropy, nll_loss -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("shape", SHAPES + K_SHAPES)
def test_index_targets(isa, name, shape):
    weight = torch.rand(shape[1], generator=torch.Generator().manual_seed(3))
    x, t = logits(*shape), indices(shape)
    for reduction, w in itertools.product(REDUCTIONS, [None, weight]):
        assert_like_torch(name, (x, t), {"reduction": reduction, "weight": w})
        if (
            name == "cross_entropy" and shape[1] > 1
        ):  # of one class the gradient is 0, to rounding of the smoothing
            assert_like_torch(name, (x, t), {"reduction": reduction, "weight": w, "label_smoothing": 0.1})


@pytest.mark.parametrize("shape", SHAPES + K_SHAPES)
def test_probability_targets(isa, shape):
    weight = torch.rand(shape[1], generator=torch.Generator().manual_seed(3))
    x, t = logits(*shape), probabilities(shape)
    for reduction, w, eps in itertools.product(REDUCTIONS, [None, weight], [0.0, 0.2]):
        kwargs = {"reduction": reduction, "weight": w, "label_smoothing": eps}
        assert_like_torch("cross_entropy", (x, t), kwargs)


def test_probabilities_and_their_weights_have_gradients():
    x, t, w = logits(4, 5, 3), probabilities((4, 5, 3)), torch.rand(5)
    for reduction in REDUCTIONS:
        assert_like_torch("cross_entropy", (x, t, w), {"reduction": reduction}, wrt=(0, 1, 2))
        assert_like_torch("cross_entropy", (x, t), {"reduction": reduction, "label_smoothing": 0.1}, wrt=(1,))


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_one_row_and_views(isa, name):
    assert F.cross_entropy(X[0], T[1:2], reduction="none").shape == ()  # which torch cannot differentiate
    for target in (torch.tensor(2), torch.tensor(-100)):
        for reduction in REDUCTIONS:
            assert_like_torch(name, (logits(5), target), {"reduction": reduction, "weight": torch.rand(5)})
    t = indices((5, 7, 3))
    for x, target in itertools.product(views_of(logits(5, 7, 3)), [t, t.t().contiguous().t()]):
        assert_like_torch(name, (x, target))
        assert_like_torch(name, (x, target), {"reduction": "none", "weight": torch.rand(7, 2)[:, 0]})
    assert_like_torch(name, (logits(7).expand(5, 7), torch.tensor(3).expand(5)))
    assert_like_torch(name, (logits(64, 10), indices((64, 10)).clamp_min(0).byte()))
    assert_like_torch("cross_entropy", (logits(5), torch.rand(5)), wrt=(0,))


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3)])
def test_ignored_rows(isa, name, shape):
    x, all_ignored = logits(*shape), torch.full_like(indices(shape), -100)
    for reduction in REDUCTIONS:
        assert_like_torch(name, (x, all_ignored), {"reduction": reduction})
        for ignore_index in (2, -1, 9):
            t = indices(shape).clamp_min(0)
            t[0] = ignore_index
            assert_like_torch(name, (x, t), {"reduction": reduction, "ignore_index": ignore_index})
    zero_weight = torch.zeros(4)
    assert_same_specials(name, (x, indices(shape).clamp_min(0), zero_weight))


def test_cross_entropy_of_special_values(isa):
    x = torch.tensor(SPECIAL_ROWS)
    for column, eps, reduction in itertools.product([0, 1, 2, -100], [0.0, 0.1], ["none", "sum"]):
        kwargs = {"label_smoothing": eps, "reduction": reduction}
        t = torch.full((len(x),), column)
        assert_same_specials("cross_entropy", (x, t), kwargs)
        assert_same_specials(
            "cross_entropy", (x[:, :, None].expand(-1, -1, 2), t[:, None].expand(-1, 2)), kwargs
        )
        p = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 0], [0, 0.25, 0.75]])[column % 4]
        assert_same_specials("cross_entropy", (x, p.expand_as(x).contiguous()), kwargs)
        w = torch.tensor([0.0, 1.0, 2.0])
        assert_same_specials("cross_entropy", (x, t, w), kwargs)
    masked = torch.full((4, 5000), -INF)
    masked[:, 4000:] = logits(4, 1000)
    assert_like_torch("cross_entropy", (masked, torch.tensor([4000, 4999, 4500, 7])), {"reduction": "none"})


def test_no_classes():
    t = torch.full((3,), -100)
    for reduction in REDUCTIONS:
        assert_like_torch("cross_entropy", (logits(3, 0), t), {"reduction": reduction})
        assert_like_torch("cross_entropy", (logits(3, 0), logits(3, 0)), {"reduction": reduction})
        assert_like_torch("nll_loss", (logits(3, 0), t), {"reduction": reduction})


def test_odd_label_smoothing():
    for eps in (-1.0, NAN, 1.0, 1):
        kwargs = {"label_smoothing": eps}
        assert_like_torch("cross_entropy", (logits(4, 5), indices((4, 5))), kwargs)


def test_probabilities_of_another_dtype_promote():
    x = logits(4, 5)
    y = F.cross_entropy(x, probabilities((4, 5)).double())
    assert y.dtype == torch.float64
    assert_like_torch("cross_entropy", (x.double(), probabilities((4, 5)).double()))


X, T, P = logits(3, 5), torch.tensor([0, 4, 2]), torch.rand(3, 5)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X, T.int()), {}),
        ((X, T.short()), {}),
        ((X, T.bool()), {}),
        ((X, T.float()), {}),
        ((X, torch.tensor([0, 7, 1])), {}),
        ((X, torch.tensor([0, -1, 1])), {}),
        ((X, torch.tensor([0, 5, 1])), {"label_smoothing": 0.1}),
        ((logits(1, 5, 2, 2), torch.full((1, 2, 2), 9)), {}),
        ((X, T[:2]), {}),
        ((X[0], T), {}),
        ((X[:1], torch.tensor(0)), {}),
        ((X, T[:, None]), {}),
        ((logits(3, 5, 2), torch.zeros(3, 3, dtype=torch.long)), {}),
        ((logits(3, 5, 2), T), {}),
        ((logits(3, 5, 2), torch.zeros(3, 2, dtype=torch.uint8)), {}),
        ((logits(3, 5, 2, 2), torch.zeros(3, 2, 3, dtype=torch.long)), {}),
        ((X, T, torch.rand(4)), {}),
        ((X, T, torch.rand(1, 5)), {}),
        ((X, T, torch.rand(5).double()), {}),
        ((X, T, torch.rand(5, requires_grad=True)), {}),
        ((X.long(), T), {}),
        ((X[:, :0], T), {}),
        ((X, T), {"reduction": "average"}),
    ],
)
def test_errors(name, args, kwargs):
    if "label_smoothing" in kwargs and name == "nll_loss":
        kwargs = {}
    assert_same_error(name, args, kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X, P), {"ignore_index": 1}),
        ((X, P.long()), {}),
        ((X, P[:, :4]), {}),
        ((X, P, torch.rand(4)), {}),
        ((X, P), {"label_smoothing": 2.0}),
        ((X, T), {"label_smoothing": 2.0}),
        ((X, T, torch.rand(5, requires_grad=True)), {"label_smoothing": 0.1}),
    ],
)
def test_errors_of_cross_entropy(args, kwargs):
    assert_same_error("cross_entropy", args, kwargs)


def test_errors_name_the_operator_and_the_shapes():
    with pytest.raises(IndexError, match="Target 7 is out of bounds"):
        F.cross_entropy(X, torch.tensor([0, 7, 9]))
    with pytest.raises(ValueError, match=r"cross_entropy: .*\[3, 5\] and target \[2\]"):
        F.cross_entropy(X, T[:2])
    with pytest.raises(NotImplementedError, match=r"minidl::nll_loss .*Half"):
        F.nll_loss(X.half(), T)
    with pytest.raises(RuntimeError, match=r"weight \[4\]"):
        F.nll_loss(X, T, torch.rand(4))
    one = torch.ones(())
    with pytest.raises(RuntimeError, match="stats of shape"):
        torch.ops.minidl.cross_entropy_backward(one, X, T, torch.ones(2, 4), one)
    with pytest.raises(RuntimeError, match=r"dy of shape \[2\]"):
        torch.ops.minidl.nll_loss_backward(torch.ones(2), X, T, one)
    with pytest.raises(IndexError, match="out of bounds"):
        torch.ops.minidl.nll_loss_backward(one, X, T + 3, one)


# ---- autograd and the compiler -----------------------------------------------------------------------------


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 2), ()])
def test_softmax_gradients_of_every_order(log, shape):
    x = logits(*shape).double().requires_grad_()
    for dim in range(max(1, len(shape))):
        assert_derivatives_of_every_order(lambda v, dim=dim: _C.softmax(v, dim, log), x)


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 2)])
def test_gradients_of_every_order(reduction, shape):
    x = logits(*shape).double().requires_grad_()
    t = torch.tensor(1) if len(shape) == 1 else indices(shape)
    p = torch.rand(shape, dtype=torch.float64)
    classes = shape[0] if len(shape) == 1 else shape[1]
    for w, eps in itertools.product([None, torch.rand(classes, dtype=torch.float64)], [0.0, 0.3]):
        functions = [
            lambda v, w=w, eps=eps: _C.cross_entropy(v, t, w, reduction, -100, eps),
            lambda v, w=w, eps=eps: _C.cross_entropy(v, p, w, reduction, -100, eps),
            lambda v, w=w: _C.nll_loss(v, t, w, reduction),
        ]
        for function in functions:
            assert_derivatives_of_every_order(function, x)
        q = p.clone().requires_grad_()
        both = lambda v, q, w=w, eps=eps: _C.cross_entropy(v, q, w, reduction, -100, eps)  # noqa: E731
        assert_derivatives_of_every_order(both, x, q)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_operators_pass_opcheck():
    ops, check = torch.ops.minidl, torch.library.opcheck
    x, t = logits(4, 5).requires_grad_(), indices((4, 5))
    p, w, one, dy = probabilities((4, 5)), torch.rand(5), torch.ones(()), torch.rand(4, 5)
    for log in (False, True):
        check(ops.softmax.default, (x, 1, log))
        check(ops.softmax_backward.default, (dy, x.detach().softmax(1), 1, log))
    for target, reduction in itertools.product([t, p], [0, 1]):
        g = torch.rand(4) if reduction == 0 else one
        check(ops.cross_entropy.default, (x, target, w, reduction, -100, 0.1))
        check(ops.cross_entropy_forward.default, (x, target, w, reduction, -100, 0.1))
        args = (g, x.detach(), target, torch.rand(2, 4), one, w, reduction, -100, 0.1)
        check(ops.cross_entropy_backward.default, args)
    for reduction in (0, 1):
        g = torch.rand(4) if reduction == 0 else one
        check(ops.nll_loss.default, (x, t, w, reduction))
        check(ops.nll_loss_forward.default, (x, t, w, reduction))
        check(ops.nll_loss_backward.default, (g, x.detach(), t, one, w, reduction))


def test_compiles_in_one_graph():
    def step(x, t, p):
        y = F.log_softmax(x, 1)
        return (
            F.nll_loss(y, t)
            + F.cross_entropy(x, t, label_smoothing=0.1)
            + F.cross_entropy(F.softmax(x, 1), p)
        )

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for n in (5, 9):
        x, t, p = logits(n, 4).requires_grad_(), indices((n, 4)), probabilities((n, 4))
        y = x.detach().clone().requires_grad_()
        a, b = compiled(x, t, p), step(y, t, p)
        a.backward()
        b.backward()
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(x.grad, y.grad)


def test_same_bits_on_any_number_of_threads(isa):
    for shape in ((4001, 10), (7, 20011), (3, 5, 8009)):
        # In float64, since sums in double would round to the same float anyway.
        x, t, p = logits(*shape).double().requires_grad_(), indices(shape), probabilities(shape).double()

        def every(x=x, t=t, p=p):
            values = [
                F.softmax(x, 1),
                F.log_softmax(x, 1),
                F.cross_entropy(x, t),
                F.cross_entropy(x, p, label_smoothing=0.1),
                F.nll_loss(x, t),
            ]
            return values + [torch.autograd.grad(y.sum() * 1.7, x)[0] for y in values]

        assert_same_bits_on_threads(every)


def test_function_transforms_work_or_raise():
    x, t = logits(4, 5), indices((4, 5))
    try:
        grad = torch.func.grad(F.cross_entropy)(x, t)
    except RuntimeError:
        return
    torch.testing.assert_close(grad, torch.func.grad(native.cross_entropy)(x, t))
