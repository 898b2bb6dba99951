"""matmul and linear against torch, on every kernel table."""

import itertools

import pytest
import torch
import torch.nn.functional as TF
from check import assert_close_to_float64, assert_same_gradients, layouts
from hypothesis import given, settings
from hypothesis import strategies as st

import minidl.functional as F

# Ragged against every tile and block: panels of 1 to 4 vectors, tiles of 1 to 14 rows, 512 of k, 1024 of m; rows of B
# 4 KB apart, and so long that a single row of A passes over them in two blocks.
SIZES = [
    (1, 1, 1), (1, 7, 3), (3, 1, 5), (5, 1, 1), (4, 4, 2), (8, 64, 70), (9, 65, 70), (31, 33, 32), (64, 10, 64),
    (97, 130, 385), (64, 128, 784), (257, 131, 521), (1, 300, 700), (300, 1, 700),
    (1, 4111, 13), (1031, 197, 40), (26, 1024, 70),
]  # fmt: skip


def matrix(rows: int, columns: int, layout: str, dtype: torch.dtype) -> torch.Tensor:
    if layout == "row-major":
        return torch.randn(rows, columns, dtype=dtype)
    if layout == "transposed":
        return torch.randn(columns, rows, dtype=dtype).t()
    if layout == "every other column":
        return torch.randn(rows, 2 * columns + 1, dtype=dtype)[:, 1::2]
    return torch.randn(rows, 1, dtype=dtype).expand(rows, columns)


def assert_product(a: torch.Tensor, b: torch.Tensor) -> None:
    scale = a.double().abs() @ b.double().abs()
    assert_close_to_float64(F.matmul(a, b), a.float() @ b.float(), a.double() @ b.double(), scale=scale)


@pytest.mark.parametrize("m_n_k", SIZES, ids=str)
def test_layouts_of_both_operands(isa, dtype, m_n_k):
    m, n, k = m_n_k
    kinds = ["row-major", "transposed", "every other column", "expanded"]
    for a_kind, b_kind in itertools.product(kinds, kinds):
        a, b = matrix(m, k, a_kind, dtype), matrix(k, n, b_kind, dtype)
        assert_product(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3,), (3,)), ((0,), (0,)), ((3,), (3, 4)), ((2, 3), (3,)), ((2, 3), (3, 4)),
        ((5, 2, 3), (3, 4)), ((5, 2, 3), (3,)), ((3,), (5, 3, 4)), ((2, 3), (5, 3, 4)),
        ((5, 2, 3), (5, 3, 4)), ((5, 1, 2, 3), (6, 3, 4)), ((1, 2, 3), (6, 3, 4)), ((7, 6, 2, 3), (7, 1, 3, 4)),
        ((0, 3), (3, 4)), ((2, 0), (0, 4)), ((2, 3), (3, 0)), ((0, 2, 3), (3, 4)), ((0, 2, 3), (0, 3, 4)),
    ],
    ids=str,
)  # fmt: skip
def test_shapes_and_gradients(isa, dtype, a, b):
    assert_same_gradients(
        F.matmul,
        torch.matmul,
        torch.randn(*a, dtype=dtype),
        torch.randn(*b, dtype=dtype),
        products=torch.matmul,
    )


def test_batches_of_views(dtype):
    a = torch.randn(4, 6, 5, dtype=dtype).mT  # 4, 5, 6
    b = torch.randn(6, 4, 7, dtype=dtype).transpose(0, 1)  # 4, 6, 7
    assert_same_gradients(F.matmul, torch.matmul, a, b, products=torch.matmul)
    assert_same_gradients(F.matmul, torch.matmul, a, torch.randn(6, 7, dtype=dtype), products=torch.matmul)
    assert_same_gradients(F.matmul, torch.matmul, a, b[:1].expand(4, 6, 7), products=torch.matmul)


@settings(deadline=None, max_examples=60)
@given(m=st.integers(0, 70), n=st.integers(0, 140), k=st.integers(0, 50), transposed=st.booleans())
def test_any_size(m, n, k, transposed):
    a = torch.randn(m, k)
    b = torch.randn(n, k).t() if transposed else torch.randn(k, n)
    assert_product(a, b)


def test_nothing_outside_the_result_is_written(isa):
    """The operands are the middle of larger buffers whose other elements are NaN: reading them would show."""
    for m, n, k in [(5, 17, 3), (14, 64, 9), (1, 33, 5), (7, 1, 2)]:

        def inside(rows, columns):
            buffer = torch.full((rows + 4, columns + 6), float("nan"))
            buffer[2:-2, 3:-3] = torch.randn(rows, columns)
            return buffer[2:-2, 3:-3]

        a, b, bt = inside(m, k), inside(k, n), inside(n, k)
        assert F.matmul(a, b).isfinite().all()
        assert F.linear(a, bt, inside(1, n)[0]).isfinite().all()


def test_nan_and_infinity_go_where_torch_lets_them(isa, dtype):
    a, b = torch.randn(9, 20, dtype=dtype), torch.randn(20, 37, dtype=dtype)
    a[3, 5], a[4, 0], b[7, 9] = float("nan"), float("inf"), -float("inf")
    ours, theirs = F.matmul(a, b), a @ b
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.isinf(), theirs.isinf())


ACTIVATIONS = {
    None: lambda z: z,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": TF.gelu,
    "gelu_tanh": lambda z: TF.gelu(z, approximate="tanh"),
    "silu": TF.silu,
}


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (7,), (2, 3, 7), (0, 7), (64, 784)], ids=str)
@pytest.mark.parametrize("n", [1, 10, 128])
def test_linear(isa, activation, shape, n):
    x, w, b = torch.randn(*shape), torch.randn(n, shape[-1]) / 8, torch.randn(n)

    def torchs(x, w, b=None):
        return ACTIVATIONS[activation](TF.linear(x, w, b))

    def products(*t):  # three units: the activation and its derivative round as well
        return 3 * TF.linear(*t)

    assert_same_gradients(lambda *t: F.linear(*t, activation=activation), torchs, x, w, b, products=products)
    assert_same_gradients(lambda *t: F.linear(*t, None, activation), torchs, x, w, products=products)
    with torch.no_grad():  # the fused epilogue also where training needs two nodes
        ours, theirs = F.linear(x, w, b, activation), torchs(x, w, b)
    scale = products(x.double().abs(), w.double().abs(), b.double().abs())
    assert_close_to_float64(ours, theirs, torchs(x.double(), w.double(), b.double()), scale=scale)


def test_linear_float64_and_layouts(isa):
    w, b = torch.randn(9, 6, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    for _, x in layouts((4, 5, 6), torch.float64):
        assert_same_gradients(F.linear, TF.linear, x, w, b, products=TF.linear)
        assert_same_gradients(
            F.linear, TF.linear, x, torch.randn(6, 9, dtype=torch.float64).t(), b, products=TF.linear
        )


def test_linear_with_a_weight_vector():
    x, w, b = torch.randn(4, 6), torch.randn(6), torch.randn(())
    torch.testing.assert_close(F.linear(x, w, b, "relu"), torch.relu(x @ w + b))
    torch.testing.assert_close(F.linear(x, w), TF.linear(x, w))


def test_only_wanted_gradients_are_computed():
    x, w, b = torch.randn(4, 6), torch.randn(3, 6, requires_grad=True), torch.randn(3)
    y = F.linear(x, w, b)
    y.sum().backward()
    assert x.grad is None
    assert b.grad is None
    torch.testing.assert_close(w.grad, x.sum(0).expand(3, 6))


def test_bias_gradient_of_many_rows(isa):
    """A running float sum over 200,000 rows would lose digits; torch's does not."""
    dy = torch.rand(200_003, 3)
    x, w = torch.zeros(200_003, 1), torch.zeros(3, 1)
    _, _, ours = torch.ops.minidl.linear_backward(dy, x, w, None, "none", [False, False, True])
    assert_close_to_float64(ours, dy.sum(0), dy.double().sum(0))


def test_same_bits_for_any_number_of_threads():
    before = torch.get_num_threads()
    a, b, c = torch.randn(200, 300), torch.randn(300, 190), torch.randn(6, 50, 300)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((F.matmul(a, b), F.linear(a, b.t().contiguous()), F.matmul(c, b)))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_gradcheck():
    def double(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    for a, b in [
        ((3, 4), (4, 5)),
        ((4,), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((2, 3, 4), (2, 4, 5)),
        ((3, 4), (4,)),
    ]:
        inputs = (double(*a), double(*b))
        assert torch.autograd.gradcheck(F.matmul, inputs)
        assert torch.autograd.gradgradcheck(F.matmul, inputs)
    inputs = (double(2, 3, 4), double(5, 4), double(5))
    for activation in ACTIVATIONS:

        def f(*t, activation=activation):
            return F.linear(*t, activation)

        assert torch.autograd.gradcheck(f, inputs)
        assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # opcheck looks at it
def test_opcheck():
    x, w, b = (torch.randn(*s, requires_grad=True) for s in ((2, 3, 4), (5, 4), (5,)))
    torch.library.opcheck(torch.ops.minidl.matmul, (x, torch.randn(4, 5, requires_grad=True)))
    torch.library.opcheck(torch.ops.minidl.matmul, (w.detach().t(), w.detach()))
    torch.library.opcheck(torch.ops.minidl.matmul, (x.detach()[0, 0], torch.randn(2, 4, 5)))
    for activation in ("none", "tanh", "gelu"):
        torch.library.opcheck(torch.ops.minidl.linear, (x, w, b, activation))
    torch.library.opcheck(torch.ops.minidl.linear, (x, w))
    dy, y = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    x, w = x.detach(), w.detach()
    torch.library.opcheck(torch.ops.minidl.linear_backward, (dy, x, w, None, "none", [True, True, True]))
    torch.library.opcheck(torch.ops.minidl.linear_backward, (dy, x, w, y, "tanh", [False, True, False]))


def test_linear_backward_refuses_what_does_not_fit():
    x, w, dy = torch.randn(4, 6), torch.randn(3, 6), torch.randn(4, 3)
    backward = torch.ops.minidl.linear_backward
    every = [True, True, True]
    for bad in (torch.randn(4, 2), torch.randn(3, 3), torch.randn(1, 4, 3)):
        with pytest.raises(RuntimeError, match="does not fit"):
            backward(bad, x, w, None, "none", every)
    with pytest.raises(RuntimeError, match="an output is needed"):
        backward(dy, x, w, None, "relu", every)
    with pytest.raises(RuntimeError, match="an output is needed"):
        backward(dy, x, w, dy, "gelu", every)
    with pytest.raises(RuntimeError, match="same shape"):
        backward(dy, x, w, torch.randn(4, 2), "relu", every)
    with pytest.raises(RuntimeError, match="same dtype"):
        backward(dy, x.double(), w, None, "none", every)
    torch.testing.assert_close(backward(dy, x, w, None, "none", every)[0], dy @ w)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    w, b = torch.randn(8, 6, requires_grad=True), torch.randn(8, requires_grad=True)

    def model(x):
        return F.matmul(F.linear(x, w, b, "relu"), w)

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (5, 7):
        x = torch.randn(rows, 6)
        expected = torch.autograd.grad(model(x).square().sum(), (w, b))
        torch.testing.assert_close(compiled(x), model(x))
        torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), (w, b)), expected)


def test_functorch_is_right_or_raises():
    x, w, b = torch.randn(3, 4, 6), torch.randn(5, 6), torch.randn(5)
    vmapped = torch.func.vmap(lambda v: F.linear(v, w, b))(x)
    torch.testing.assert_close(vmapped, TF.linear(x, w, b))
    try:
        ours = torch.func.grad(lambda w: F.linear(x, w, b).square().sum())(w)
    except RuntimeError:
        return
    torch.testing.assert_close(ours, torch.func.grad(lambda w: TF.linear(x, w, b).square().sum())(w))


@pytest.mark.parametrize(
    ("call", "torchs"),
    [
        (lambda f, x: f(x(2, 3), x(4, 5)), torch.matmul),
        (lambda f, x: f(x(()), x(4, 5)), torch.matmul),
        (lambda f, x: f(x(2, 2, 3), x(3, 3, 5)), torch.matmul),
        (lambda f, x: f(x(2, 3), x(3, 5).double()), torch.matmul),
    ],
)
def test_bad_matmul_input_raises_as_torch(call, torchs):
    def x(*shape):
        return torch.ones(*shape) if shape != ((),) else torch.tensor(1.0)

    with pytest.raises(RuntimeError):
        call(torchs, x)
    with pytest.raises(RuntimeError, match=r"minidl::matmul|must match the size"):
        call(F.matmul, x)


def test_bad_linear_input():
    x, w = torch.ones(2, 3), torch.ones(5, 3)
    with pytest.raises(
        RuntimeError, match=r"cannot be multiplied \(input \[2, 3\] and transposed weight \[5, 4\]"
    ):
        F.linear(x, torch.ones(5, 4))
    with pytest.raises(RuntimeError, match=r"bias of shape \(5\), but got \[4\]"):
        F.linear(x, w, torch.ones(4))
    with pytest.raises(RuntimeError, match="same dtype"):
        F.linear(x, w.double())
    with pytest.raises(NotImplementedError, match="float32 and float64"):
        F.linear(x.half(), w.half())
    with pytest.raises(ValueError, match="unknown activation 'swish'"):
        F.linear(x, w, None, "swish")
    for activation in ("leaky_relu", "softplus"):  # what would their parameters be?
        for weight in (w, w.clone().requires_grad_()):
            with pytest.raises(ValueError, match="has parameters and is not fused"):
                F.linear(x, weight, None, activation)
