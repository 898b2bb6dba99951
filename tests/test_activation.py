"""relu, leaky_relu, sigmoid, tanh, gelu, silu, softplus against torch, on every kernel table."""

import pytest
import torch
import torch.nn.functional as TF
from check import assert_same_gradients, layouts
from torch import Tensor

import minidl.functional as F
from minidl import _C

# name -> (ours, torch's)
ACTIVATIONS = {
    "relu": (F.relu, TF.relu),
    "leaky_relu": (F.leaky_relu, TF.leaky_relu),
    "leaky_relu_0.3": (lambda x: F.leaky_relu(x, 0.3), lambda x: TF.leaky_relu(x, 0.3)),
    "sigmoid": (F.sigmoid, torch.sigmoid),
    "tanh": (F.tanh, torch.tanh),
    "gelu": (F.gelu, TF.gelu),
    "gelu_tanh": (lambda x: F.gelu(x, "tanh"), lambda x: TF.gelu(x, approximate="tanh")),
    "silu": (F.silu, TF.silu),
    "softplus": (F.softplus, TF.softplus),
    "softplus_2_5": (lambda x: F.softplus(x, 2, 5), lambda x: TF.softplus(x, 2, 5)),
}
NAMES = {"relu", "leaky_relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu", "softplus"}


@pytest.fixture(params=ACTIVATIONS)
def pair(request):
    return ACTIVATIONS[request.param]


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 31, 33, 1009])
def test_sizes(isa, dtype, pair, n):
    x = torch.randn(n, dtype=dtype) * 3
    x[:1] = 0.7  # where no derivative is small: rounding is measured by the largest result
    assert_same_gradients(*pair, x)


def test_many_elements_on_two_threads(isa, dtype, pair, two_threads):
    assert_same_gradients(*pair, torch.randn(100_003, dtype=dtype) * 3)


@pytest.mark.parametrize("layout", ["dense", "odd offset", "strided", "expanded", "transposed"])
def test_layouts(dtype, pair, layout):
    assert_same_gradients(*pair, dict(layouts((5, 7, 9), dtype))[layout])


def test_memory_order_of_the_input_is_kept():
    x = torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last)
    assert F.relu(x).stride() == x.stride()


def test_upstream_gradient_of_any_layout(pair):
    x = torch.randn(6, 8, requires_grad=True)
    for _, dy in layouts((6, 8), torch.float32):
        (ours,) = torch.autograd.grad(pair[0](x), x, dy)
        (theirs,) = torch.autograd.grad(pair[1](x), x, dy)
        torch.testing.assert_close(ours, theirs)


def test_extreme_values(isa, dtype, pair):
    x = torch.tensor([-0.0, 0.0, 1e4, -1e4, 1e-30, -1e-30, 88.0, -88.0, 700.0, 1e-42], dtype=dtype)
    assert_same_gradients(*pair, x)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_infinity_and_nan(isa, dtype, pair, value):
    """One element: for many, torch's float32 gelu takes a vector path that makes a NaN of +inf."""
    assert_same_gradients(*pair, torch.tensor([float(value)], dtype=dtype))


def test_relative_error_of_small_arguments(isa, dtype):
    """tanh and sigmoid keep their digits near 0 and in the tail, where an absolute error would hide their loss."""
    x = torch.logspace(-30, 0, 4001, dtype=dtype)
    negative = -80 * x
    for ours, theirs in (
        (F.tanh(x), torch.tanh(x.double())),
        (F.sigmoid(negative), torch.sigmoid(negative.double())),
    ):
        relative = ((ours.double() - theirs) / theirs).abs().max()
        assert relative <= 4 * torch.finfo(dtype).eps


def test_same_bits_for_any_number_of_threads(pair):
    x = torch.randn(100_003)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(pair[0](x))
    torch.set_num_threads(before)
    assert all(torch.equal(r, results[0]) for r in results)


def test_more_than_one_thread_runs():
    """at::parallel_for is serial without a word where -fopenmp is missing."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    threads = _C.threads_used()
    torch.set_num_threads(before)
    assert threads == 2


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "silu"])
def test_inplace(name):
    ours, theirs = getattr(F, name), getattr(TF, name)
    x = torch.randn(17)
    expected = theirs(x)
    y = ours(x, inplace=True)
    assert y is x
    torch.testing.assert_close(x, expected)

    grads = []
    for f in (ours, theirs):
        leaf = torch.linspace(-3, 3, 17, requires_grad=True)
        y = f(leaf * 1, inplace=True)
        (y * torch.linspace(1, 2, 17)).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        ours(torch.randn(3, requires_grad=True), inplace=True)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_gradcheck(name):
    x = torch.randn(23, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(ACTIVATIONS[name][0], x)
    assert torch.autograd.gradgradcheck(ACTIVATIONS[name][0], x)


def test_gradient_under_create_graph_is_the_kernels_gradient(pair):
    x = torch.randn(101, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(101, dtype=torch.float64)
    (kernel,) = torch.autograd.grad(pair[0](x), x, dy)
    (formula,) = torch.autograd.grad(pair[0](x), x, dy, create_graph=True)
    torch.testing.assert_close(kernel, formula, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_opcheck(name):
    parameters = {"leaky_relu": (0.1,), "softplus": (1.0, 20.0)}.get(name, ())
    x = torch.randn(3, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.minidl.activation, (x, name, *parameters))
    torch.library.opcheck(torch.ops.minidl.activation_backward, (x.detach(), x.detach(), name, *parameters))


def test_differentiating_the_backward_operator_raises():
    dy = torch.randn(3, requires_grad=True)
    dx = torch.ops.minidl.activation_backward(dy, torch.randn(3), "relu")
    with pytest.raises(RuntimeError, match="not implemented"):
        dx.sum().backward()


def test_compile(pair):
    x = torch.randn(4, 9, requires_grad=True)
    compiled = torch.compile(pair[0], fullgraph=True, backend="aot_eager")
    for f in (compiled, torch.compile(pair[0], fullgraph=True, backend="aot_eager", dynamic=True)):
        y = f(x)
        torch.testing.assert_close(y, pair[1](x))
        dy = torch.randn_like(y)
        torch.testing.assert_close(
            torch.autograd.grad(y, x, dy)[0], torch.autograd.grad(pair[1](x), x, dy)[0]
        )


def test_functorch_is_right_or_raises(pair):
    x = torch.randn(4, 5)
    torch.testing.assert_close(torch.func.vmap(pair[0])(x), pair[1](x))

    def total(f) -> Tensor:
        return torch.func.grad(lambda v: f(v).sum())(x)

    try:
        ours = total(pair[0])
    except RuntimeError:
        return
    torch.testing.assert_close(ours, total(pair[1]))


def test_forward_mode_raises_instead_of_dropping_the_tangent(pair):
    import torch.autograd.forward_ad as fwad

    with fwad.dual_level():
        x = fwad.make_dual(torch.randn(3), torch.randn(3))
        with pytest.raises(RuntimeError):
            pair[0](x)


def test_bad_input():
    with pytest.raises(
        NotImplementedError, match="minidl::activation is implemented for float32 and float64"
    ):
        F.relu(torch.ones(3, dtype=torch.float16))
    with pytest.raises(NotImplementedError, match="SparseCPU"):
        F.relu(torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match="unknown activation 'swish'"):
        _C.activation(torch.ones(3), "swish")
    with pytest.raises(RuntimeError, match="approximate"):
        F.gelu(torch.ones(3), "erf")
    with pytest.raises(RuntimeError, match="same shape"):
        torch.ops.minidl.activation_backward(torch.ones(3), torch.ones(4), "relu")
    with pytest.raises(TypeError):
        F.relu([1.0])


def test_unknown_isa():
    before = _C.isa()
    with pytest.raises(ValueError, match="no kernels for ISA 'sse9'"):
        _C.set_isa("sse9")
    assert _C.isa() == before
