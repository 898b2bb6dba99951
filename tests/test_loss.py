"""mse, l1, smooth_l1, huber, bce and bce_with_logits against torch, float64 being the oracle."""

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

NAMES = [
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
]
OF_DIFFERENCE = NAMES[:4]
KINDS = ["mse", "l1", "smooth_l1", "huber", "bce", "bce_with_logits"]
REDUCTIONS = ["none", "mean", "sum"]
INF, NAN = float("inf"), float("nan")


def pair(name, *shape, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    if name.endswith("entropy"):
        return torch.rand(shape, generator=g, dtype=dtype), torch.rand(shape, generator=g, dtype=dtype)
    x = torch.randn(shape, generator=g, dtype=dtype) * 3
    if name.endswith("logits"):
        return x, torch.rand(shape, generator=g, dtype=dtype)
    return x, torch.randn(shape, generator=g, dtype=dtype)


@pytest.mark.parametrize("name", NAMES)
def test_sizes(isa, name):
    for n, reduction in itertools.product([0, 1, 31, 32, 33, 257, 8191, 70001], REDUCTIONS):
        assert_like_torch(name, pair(name, n, seed=n), {"reduction": reduction}, wrt=(0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_views(isa, name):
    x, t = pair(name, 5, 7, 3)
    for (a, b), reduction in itertools.product(itertools.product(views_of(x), views_of(t)), ["none", "mean"]):
        assert_like_torch(name, (a, b), {"reduction": reduction}, wrt=(0, 1))
    row, target = pair(name, 7)
    for reduction in REDUCTIONS:
        assert_like_torch(name, (row.expand(5, 7), target.expand(5, 7)), {"reduction": reduction})
    assert_like_torch(name, (torch.tensor(0.25), torch.tensor(0.5)), wrt=(0, 1))


@pytest.mark.parametrize("name", OF_DIFFERENCE)
def test_broadcasting_warns(name):
    x, t = pair(name, 4, 1)[0], pair(name, 5)[1]
    assert_like_torch(name, (x, t), wrt=(0, 1))
    with pytest.warns(UserWarning, match=r"target size .* different to the input size") as caught:
        getattr(F, name)(x, t)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "huber_loss"])
def test_weight_of_losses_of_a_difference(name):
    x, t = pair(name, 6, 5)
    w = torch.rand(6, 5)
    for reduction in REDUCTIONS:
        assert_like_torch(name, (x, t), {"weight": w, "reduction": reduction}, wrt=(0, 1))
    ours, theirs = (
        torch.autograd.grad(getattr(m, name)(x, t, weight=v), v)[0]
        for m, v in ((F, w.clone().requires_grad_()), (native, w.clone().requires_grad_()))
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(6, 5), (5,), (6, 1), ()])
def test_weights_of_bce(isa, shape):
    w, pos = torch.rand(shape), torch.rand(shape) * 3
    for reduction in REDUCTIONS:
        args = pair("binary_cross_entropy", 6, 5)
        assert_like_torch("binary_cross_entropy", args, {"weight": w, "reduction": reduction}, wrt=(0, 1))
        args = pair("binary_cross_entropy_with_logits", 6, 5)
        for kwargs in ({"weight": w}, {"pos_weight": pos}, {"weight": w, "pos_weight": pos}):
            kwargs["reduction"] = reduction
            assert_like_torch("binary_cross_entropy_with_logits", args, kwargs, wrt=(0, 1))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
def test_beta_and_delta(isa, beta):
    x, t = pair("smooth_l1_loss", 99)
    x[:5] = t[:5] + torch.tensor([0.0, beta, -beta, 2 * beta, -2 * beta])  # on the joints
    for reduction in REDUCTIONS:
        assert_like_torch("smooth_l1_loss", (x, t), {"beta": beta, "reduction": reduction}, wrt=(0, 1))
        if beta > 0:
            assert_like_torch("huber_loss", (x, t), {"delta": beta, "reduction": reduction}, wrt=(0, 1))


@pytest.mark.parametrize("name", OF_DIFFERENCE)
def test_special_values(isa, name):
    values = torch.tensor([0.0, -0.0, 1.0, -2.5, 1e4, -1e4, 1e38, INF, -INF, NAN])
    x, t = torch.meshgrid(values, values, indexing="ij")
    for reduction in REDUCTIONS:
        assert_same_specials(name, (x, t), {"reduction": reduction}, wrt=(0, 1))


def test_bce_at_the_edges(isa):
    """The logarithms stop at -100, the gradient's denominator at 1e-12."""
    values = torch.tensor([0.0, 1e-45, 1e-38, 1e-12, 1e-7, 0.5, 1 - 6e-8, 1.0])
    x, t = torch.meshgrid(values, values, indexing="ij")
    assert_same_specials("binary_cross_entropy", (x, t), {"reduction": "none"}, wrt=(0, 1))
    assert F.binary_cross_entropy(torch.zeros(1), torch.ones(1)) == 100
    small = torch.full((1,), 1e-10)
    torch.testing.assert_close(F.binary_cross_entropy(small, torch.zeros(1)), small[0])


def test_bce_with_logits_of_large_logits(isa):
    x, t = torch.meshgrid(
        torch.tensor([0.0, -0.0, 30.0, -30.0, 1e4, -1e4, 3e38, INF, NAN]),
        torch.tensor([0.0, 0.25, 1.0, 2.0, NAN]),
        indexing="ij",
    )
    name = "binary_cross_entropy_with_logits"
    for pos_weight in (None, torch.tensor(3.0)):
        assert_same_specials(name, (x, t), {"reduction": "none", "pos_weight": pos_weight}, wrt=(0,))
    # At -inf torch cancels infinities to NaN; ours are NaN or the limit, inf, but never finite.
    assert not F.binary_cross_entropy_with_logits(torch.tensor(-INF), torch.tensor(1.0)).isfinite()
    tiny = F.binary_cross_entropy_with_logits(torch.tensor(-40.0), torch.tensor(0.0))
    torch.testing.assert_close(tiny, torch.tensor(-40.0).exp())


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "smooth_l1_loss"])
def test_dtypes_promote(name):
    x, t = pair(name, 3, 4)
    for other in (t.double(), t.long(), t.half()):
        assert_same_specials(name, (x, other))
    assert getattr(F, name)(x, t.double()).dtype == torch.float64
    logits = F.binary_cross_entropy_with_logits(x, torch.rand(3, 4, dtype=torch.float64))
    assert logits.dtype == torch.float64


@pytest.mark.filterwarnings("ignore:size_average and reduce")
@pytest.mark.parametrize("flags", list(itertools.product([None, True, False], repeat=2)))
def test_legacy_flags(flags):
    size_average, reduce = flags
    for name in set(NAMES) - {"huber_loss"}:
        assert_same_specials(name, pair(name, 5), {"size_average": size_average, "reduce": reduce})


def test_deprecated_names_of_reductions_warn():
    x, t = pair("mse_loss", 5)
    with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
        F.mse_loss(x, t, size_average=False)
    with pytest.warns(UserWarning, match="elementwise_mean"):
        assert F.mse_loss(x, t, reduction="elementwise_mean") == F.mse_loss(x, t)


X, T = torch.rand(3, 4), torch.rand(3, 4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X, T[:, :2]), {}),
        ((X, T), {"reduction": "average"}),
        ((X, 1.0), {}),
        ((X.long(), T.long()), {"reduction": "sum"}),
        ((X.requires_grad_(), T), {"nonsense": 1}),
    ],
)
def test_errors(name, args, kwargs):
    if name == "l1_loss" and not args[0].is_floating_point():
        pytest.skip("torch sums integers")
    assert_same_error(name, args, kwargs)


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        ("mse_loss", (X, T), {"weight": torch.rand(4)}),
        ("mse_loss", (X, T), {"weight": T, "reduction": "average"}),
        ("smooth_l1_loss", (X, T), {"beta": -1.0}),
        ("huber_loss", (X, T), {"delta": 0.0}),
        ("huber_loss", (X, T), {"delta": -1.0}),
        ("huber_loss", (X.clone().requires_grad_(), T), {"size_average": True}),
        ("binary_cross_entropy", (X, T[:1]), {}),
        ("binary_cross_entropy", (X + 1, T), {}),
        ("binary_cross_entropy", (X, T - 1), {}),
        ("binary_cross_entropy", (X * NAN, T), {}),
        ("binary_cross_entropy", (X, T.double()), {}),
        ("binary_cross_entropy", (X, T.long()), {}),
        ("binary_cross_entropy", (X, T), {"weight": torch.rand(3)}),
        ("binary_cross_entropy", (X, T), {"weight": torch.rand(2, 3, 4)}),
        ("binary_cross_entropy", (X, T), {"weight": torch.rand(4, requires_grad=True)}),
        ("binary_cross_entropy_with_logits", (X, T[:1]), {}),
        ("binary_cross_entropy_with_logits", (X, T.long()), {}),
        ("binary_cross_entropy_with_logits", (X, T), {"pos_weight": torch.rand(3)}),
        ("binary_cross_entropy_with_logits", (X, T), {"weight": torch.rand(2, 3, 4)}),
        ("binary_cross_entropy_with_logits", (X, T), {"weight": torch.rand(4, requires_grad=True)}),
        ("binary_cross_entropy_with_logits", (X, T), {"pos_weight": torch.rand(4, requires_grad=True)}),
    ],
)
def test_errors_of_one(name, args, kwargs):
    assert_same_error(name, args, kwargs)


def test_operator_says_what_is_wrong():
    with pytest.raises(NotImplementedError, match=r"minidl::loss .*Half"):
        F.mse_loss(X.half(), T.half())
    with pytest.raises(ValueError, match="unknown loss 'mae'"):
        _C.loss(X, T, "mae")
    with pytest.raises(ValueError, match="reduction must be"):
        _C.loss(X, T, "mse", 3)
    with pytest.raises(RuntimeError, match=r"\[3, 4\] and \[3, 2\]"):
        _C.loss(X, T[:, :2], "mse")
    with pytest.raises(RuntimeError, match="pos_weight"):
        _C.loss(X, T, "mse", pos_weight=T)
    with pytest.raises(RuntimeError, match=r"expected one dy, but got shape \[3, 4\]"):
        torch.ops.minidl.loss_backward(T, X, T, "mse", 1)


def double_pair(kind, *shape):
    x, t = pair({"bce": "binary_cross_entropy", "bce_with_logits": "logits"}.get(kind, kind), *shape)
    return x.double().requires_grad_(), t.double().requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_gradients_of_every_order(kind, reduction):
    x, t = double_pair(kind, 3, 4)
    weight = torch.rand(4, dtype=torch.float64)
    pos_weight = 2 * weight if kind == "bce_with_logits" else None
    for w, p in {(None, None), (weight, pos_weight)}:

        def loss(x, t, w=w, p=p):
            return _C.loss(x, t, kind, reduction, w, p, 0.7)

        assert_derivatives_of_every_order(loss, x, t)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_operators_pass_opcheck(kind):
    x, t = double_pair(kind, 3, 4)
    w = torch.rand(4, dtype=torch.float64)
    for reduction in (0, 1):
        torch.library.opcheck(torch.ops.minidl.loss.default, (x, t, kind, reduction, w))
        dy = torch.randn(() if reduction else (3, 4), dtype=torch.float64)
        for wrt_target in (False, True):
            args = (dy, x.detach(), t.detach(), kind, reduction, w, None, 1.0, wrt_target)
            torch.library.opcheck(torch.ops.minidl.loss_backward.default, args)


@pytest.mark.parametrize("name", NAMES)
def test_compiles_in_one_graph(name):
    compiled = torch.compile(getattr(F, name), fullgraph=True, backend="aot_eager")
    for n in (5, 9):
        x, t = pair(name, n)
        x, y = x.requires_grad_(), x.detach().clone().requires_grad_()
        a, b = compiled(x, t), getattr(F, name)(y, t)
        a.backward()
        b.backward()
        assert torch.equal(a, b)
        assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_on_any_number_of_threads(isa, name):
    x, t = pair(name, 300007, dtype=torch.float64)  # sums in double would round to the same float anyway

    def both():
        v = x.detach().requires_grad_()
        y = getattr(F, name)(v, t)
        return y, torch.autograd.grad(y, v)[0]

    assert_same_bits_on_threads(both)


def test_large_sums_are_accumulated_in_double():
    """A million equal terms: in float32 the running sum would drift by far more than its last digit."""
    x = torch.full((1_000_003,), 0.1)
    mean = F.l1_loss(x, torch.zeros(()).expand_as(x))
    assert abs(mean.item() - x[0].item()) <= 1e-8


def test_function_transforms_work_or_raise():
    x, t = pair("mse_loss", 4, 3)
    try:
        grad = torch.func.grad(F.mse_loss)(x, t)
    except RuntimeError:
        return
    torch.testing.assert_close(grad, 2 * (x - t) / 12)
