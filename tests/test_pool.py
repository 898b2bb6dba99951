"""Pooling against torch: every option, both memory formats, on every kernel table."""

import itertools

import pytest
import torch
import torch.nn.functional as native
from compare import (
    assert_derivatives_of_every_order,
    assert_like_torch,
    assert_same_bits_on_threads,
    assert_same_error,
    views_of,
)

import minidl.functional as F
import minidl.nn as nn

INF, NAN = float("inf"), float("nan")
FORMATS = [torch.contiguous_format, torch.channels_last]
# kernel_size, stride, padding, ceil_mode
WINDOWS = [
    (2, None, 0, False), (3, 2, 1, False), (3, 1, 1, False), (1, 1, 0, False), (2, 1, 1, True), (3, 3, 0, True),
    (2, 3, 1, True), ((3, 2), (1, 2), (1, 0), False), ((1, 5), (2, 1), (0, 2), True), (4, 2, 2, True), (9, 1, 4, False),
    ((2, 11), (2, 3), (0, 5), True),
]  # fmt: skip
SHAPES = [(2, 3, 11, 13), (1, 17, 12, 40), (3, 16, 11, 11), (5, 12, 14)]
ADAPTIVE = [1, (2, 3), (None, 4), (5, None), (11, 7), (16, 45), (1, 3)]


def image(*shape, order=torch.contiguous_format):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return x.contiguous(memory_format=order) if len(shape) == 4 else x


def images(shapes=SHAPES):
    for shape, order in itertools.product(shapes, FORMATS):
        if len(shape) == 4 or order == torch.contiguous_format:
            yield image(*shape, order=order)


def assert_same_maxima(name, x, *args, indexed=True):
    """Values, indices, gradients and memory order are torch's, to the bit, whichever of them are asked for."""
    ours, theirs = (t.detach().requires_grad_() for t in (x, x))
    y, index = getattr(native, f"{name}_with_indices")(theirs, *args)
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, theirs, dy)
    mine = [getattr(F, name)(ours, *args)]
    if indexed:
        both = getattr(F, name)(ours, *args, return_indices=True)
        mine.append(both[0])
        assert torch.equal(both[1], index)
        assert both[1].stride() == index.stride()
    for m in mine:
        torch.testing.assert_close(m, y, rtol=0, atol=0, equal_nan=True)
        (g,) = torch.autograd.grad(m, ours, dy)
        torch.testing.assert_close(g, dx, rtol=0, atol=0)
        assert (m.stride(), g.stride()) == (y.stride(), dx.stride())


@pytest.mark.parametrize(("kernel", "stride", "padding", "ceil_mode"), WINDOWS)
def test_max_pool2d(isa, dtype, kernel, stride, padding, ceil_mode):
    for x in images():
        assert_same_maxima("max_pool2d", x.to(dtype), kernel, stride, padding, 1, ceil_mode)


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), [
    (2, 1, 0, 2), (3, 2, 1, (2, 3)), ((2, 3), 1, (1, 0), (1, 4)), (3, 4, 1, 5), ((1, 9), 1, 0, (3, 1)),
])  # fmt: skip
def test_dilated_max_pool2d(isa, kernel, stride, padding, dilation):
    for x, ceil_mode in itertools.product(images(), [False, True]):
        assert_same_maxima("max_pool2d", x, kernel, stride, padding, dilation, ceil_mode)


@pytest.mark.parametrize(("kernel", "stride", "padding", "ceil_mode"), WINDOWS)
def test_avg_pool2d(isa, kernel, stride, padding, ceil_mode):
    for x, count, divisor in itertools.product(images(), [True, False], [None, -3]):
        assert_like_torch("avg_pool2d", (x, kernel, stride, padding, ceil_mode, count, divisor))


@pytest.mark.parametrize("size", ADAPTIVE, ids=str)
def test_adaptive_pooling(isa, size):
    for x in images():
        assert_same_maxima("adaptive_max_pool2d", x, size)
        assert_like_torch("adaptive_avg_pool2d", (x, size))


@pytest.mark.parametrize("c", [1, 2, 7, 8, 9, 15, 31, 32, 33])
def test_widths_of_registers(isa, dtype, c):
    """As many channels, and as many columns."""
    for x in (image(2, c, 5, 5, order=torch.channels_last), image(2, 2, 3, c), image(2, 2, 3, 2 * c)):
        x = x.to(dtype)
        assert_same_maxima("max_pool2d", x, (3, 1), (1, 1), (1, 0))
        assert_same_maxima("max_pool2d", x, (1, 2), (1, 2), (0, 1))
        assert_same_maxima("adaptive_max_pool2d", x, 1)
        assert_like_torch("avg_pool2d", (x, (2, 1), (1, 1)))
        assert_like_torch("avg_pool2d", (x, (1, 3), (1, 2), (0, 1), False, False))
        assert_like_torch("adaptive_avg_pool2d", (x, 1))


def test_windows_of_more_than_256_elements(isa):
    for order in FORMATS:
        x = image(1, 3, 40, 41, order=order)
        assert torch.ops.minidl.max_pool2d_forward(x, 16)[1].dtype == torch.uint8
        assert torch.ops.minidl.max_pool2d_forward(x, 17)[1].dtype == torch.int64
        for kernel, stride in ((16, 8), (17, 7), ((300, 1), 1), ((2, 129), 2)):
            grown = native.pad(x, (0, 100, 0, 270))
            assert_same_maxima("max_pool2d", grown, kernel, stride)
        assert_same_maxima("adaptive_max_pool2d", x, 1)
        assert_same_maxima("adaptive_max_pool2d", x, (2, 1))


def test_numbers_that_no_float_counts():
    wide, at = 2**23 + 8, 2**24 + 13
    for x in (torch.zeros(1, 2, 2, wide), torch.zeros(1, 2, wide, 2).permute(0, 3, 1, 2)):
        assert x.shape == (1, 2, 2, wide)
        x[0, 1, at // wide, at % wide] = 5
        y, index = F.adaptive_max_pool2d(x, 1, return_indices=True)
        assert y.flatten().tolist() == [0, 5]
        assert index.flatten().tolist() == [0, at]


@pytest.mark.parametrize("order", FORMATS, ids=str)
def test_special_values(isa, order):
    """Few different values, so that maxima are met again, and many that compare in odd ways."""
    values = torch.tensor([-INF, -INF, -1.0, -0.0, 0.0, 2.0, INF, NAN])
    for seed in range(4):
        pick = torch.randint(
            len(values) - seed % 2, (2, 19, 9, 20), generator=torch.Generator().manual_seed(seed)
        )
        x = values[pick].contiguous(memory_format=order)
        x[1, :, 5:] = -INF
        for window in ((2,), (3, 2, 1), (3, 1, 1), ((2, 9), 1, 0), (3, 3, 1), (9,)):
            assert_same_maxima("max_pool2d", x, *window)
        for size in ADAPTIVE:
            assert_same_maxima("adaptive_max_pool2d", x, size)
        ours, theirs = F.avg_pool2d(x, 3, 2, 1), native.avg_pool2d(x, 3, 2, 1)
        torch.testing.assert_close(ours, theirs, equal_nan=True)
        ours, theirs = F.adaptive_avg_pool2d(x, (1, 4)), native.adaptive_avg_pool2d(x, (1, 4))
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_windows_wholly_in_the_padding(isa):
    """Their maximum is -inf, as torch's; torch may write their gradient to another row, minidl drops it."""
    for shape, window in (
        ((1, 1, 1, 3), ((2, 1), 1, (1, 0), (2, 1))),
        ((1, 1, 3, 1), ((1, 2), 1, (0, 1), (1, 2))),
    ):
        for order in FORMATS:
            x = (
                image(*shape, order=order)
                .expand(1, 4, -1, -1)
                .contiguous(memory_format=order)
                .requires_grad_()
            )
            y, index = F.max_pool2d(x, *window, return_indices=True)
            assert torch.equal(index, native.max_pool2d(x, *window, return_indices=True)[1])
            for z in (y, F.max_pool2d(x, *window)):
                assert torch.equal(z, torch.full_like(z, -INF))
                for graph in (False, True):
                    (dx,) = torch.autograd.grad(z.sum(), x, create_graph=graph, retain_graph=True)
                    assert torch.equal(dx, torch.zeros_like(x))


def test_views():
    for x in (
        *views_of(image(3, 5, 8, 9)),
        image(3, 1, 8, 9).expand(3, 5, 8, 9),
        image(8, 9).expand(5, 8, 9),
    ):
        assert_same_maxima("max_pool2d", x, 3, 2, 1, indexed=x.is_contiguous())
        assert_same_maxima("adaptive_max_pool2d", x, (2, 3), indexed=x.is_contiguous())
        assert_like_torch("avg_pool2d", (x, 3, 2, 1))
        assert_like_torch("adaptive_avg_pool2d", (x, (2, 3)))


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 1, 4, 6), (2, 3, 1, 1), (1, 1, 1, 1), (3, 4, 6)])
def test_memory_format_is_that_of_the_input(shape):
    for x in images([shape]):
        x.requires_grad_()
        for name, args in (("max_pool2d", (1,)), ("avg_pool2d", (2, 1, 1)), ("adaptive_max_pool2d", (2,))):
            y, z = getattr(F, name)(x, *args), getattr(native, name)(x, *args)
            assert y.stride() == z.stride()
            dy = torch.randn(y.shape[::-1]).permute(*reversed(range(y.dim())))
            (ours,), (theirs,) = (torch.autograd.grad(t, x, dy) for t in (y, z))
            assert ours.stride() == theirs.stride()
            torch.testing.assert_close(ours, theirs)
        assert F.adaptive_avg_pool2d(x, 2).stride() == native.adaptive_avg_pool2d(x, 2).stride()


def test_no_elements():
    x = torch.randn(0, 3, 6, 6)
    assert_like_torch("max_pool2d", (x, 2))
    assert_like_torch("avg_pool2d", (x, 2))
    for name in ("adaptive_max_pool2d", "adaptive_avg_pool2d"):
        assert_like_torch(name, (x, (2, 3)))
        y = getattr(F, name)(image(2, 3, 6, 6).requires_grad_(), (0, 4))
        assert y.shape == (2, 3, 0, 4)
        y.sum().backward()
    assert_like_torch("adaptive_avg_pool2d", (image(2, 0, 6, 6), 2), wrt=())  # torch has no gradient of it
    assert_like_torch("adaptive_avg_pool2d", (torch.randn(2, 3, 0, 4), 1))


X = image(2, 3, 8, 8)


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize("args", [
    (X, 2, 2, 2), (X, 2, 2, -1), (X, 2, 0), (X, 0, 1), (X, 9), (X, -1, 1), (X[0, 0], 2), (X[None], 2), (X[0, 0, 0], 2),
    (X[:, :0], 2), (X[:, :, :0], 2, 1, 1), (X[0, :0], 2), (X, (2, 2, 2)), (X, 2, (2, 2, 2)), (X, 2, 2, (0, 0, 0)),
    (X, ()), (X, 2.0), (X, None), (X, "2"), (X, (2, None)),
])  # fmt: skip
def test_errors(name, args):
    assert_same_error(name, args)


@pytest.mark.parametrize("name", ["adaptive_max_pool2d", "adaptive_avg_pool2d"])
@pytest.mark.parametrize("args", [
    (X, (-1, 1)), (X, (2, 2, 2)), (X, (2,)), (X, None), (X, 1.5), (X[0, 0], 2), (X[0, 0], (2, 2)), (X[None], 2),
    (X[:, :, :0], 2), (X, "2"),
])  # fmt: skip
def test_errors_of_adaptive_pooling(name, args):
    assert_same_error(name, args)


def test_errors_of_single_options():
    assert_same_error("avg_pool2d", (X, 2), {"divisor_override": 0})
    assert_same_error("max_pool2d", (X, 2), {"dilation": 0})
    assert_same_error("max_pool2d", (X, 2), {"dilation": (1, 1, 1)})
    assert_same_error("adaptive_max_pool2d", (X[:, :0], 2))
    with pytest.raises(NotImplementedError, match=r"minidl::max_pool2d .*Half"):
        F.max_pool2d(X.half(), 2)
    with pytest.raises(
        RuntimeError, match=r"minidl::avg_pool2d: the output 0x0 is too small, of input \[2, 3, 8, 8\]"
    ):
        F.avg_pool2d(X, 9)
    backward = torch.ops.minidl.max_pool2d_backward
    y, position = torch.ops.minidl.max_pool2d_forward(X, 2)
    with pytest.raises(RuntimeError, match="does not fit input"):
        backward(y, position, [3, 3, 8, 8], False, 2)
    with pytest.raises(RuntimeError, match="must be uint8 or int64"):
        backward(y, position.int(), [2, 3, 8, 8], False, 2)
    with pytest.raises(RuntimeError, match="same shape"):
        backward(y, position[:1], [2, 3, 8, 8], False, 2)


def test_any_position_is_safe(isa):
    """The backward operator is open to all: a position that no forward pass gave reads and writes nothing outside."""
    for order, dtype in itertools.product(FORMATS, [torch.uint8, torch.int64]):
        dy = image(2, 3, 4, 4, order=order)
        position = torch.randint(-(2**40), 2**40, dy.shape).to(dtype).contiguous(memory_format=order)
        for kernel, stride in ((2, 2), (3, 1), (3, 5), ([], [])):
            torch.ops.minidl.max_pool2d_backward(
                dy, position, [2, 3, 5, 5], order != FORMATS[0], kernel, stride
            )


@pytest.mark.parametrize("order", FORMATS, ids=str)
def test_gradients_of_every_order(order):
    x = (
        torch.randperm(2 * 3 * 5 * 6)
        .double()
        .view(2, 3, 5, 6)
        .contiguous(memory_format=order)
        .requires_grad_()
    )
    functions = [
        lambda v: F.max_pool2d(v, 2),
        lambda v: F.max_pool2d(v, 3, 2, 1, 2, True),
        lambda v: F.max_pool2d(v, (2, 3), 1, 1, return_indices=True)[0],
        lambda v: F.avg_pool2d(v, 2),
        lambda v: F.avg_pool2d(v, 3, 2, 1, True, False),
        lambda v: F.avg_pool2d(v, 3, 1, 1, divisor_override=2),
        lambda v: F.adaptive_max_pool2d(v, (2, 4)),
        lambda v: F.adaptive_max_pool2d(v, 1, return_indices=True)[0],
        lambda v: F.adaptive_avg_pool2d(v, (2, 4)),
        lambda v: F.adaptive_avg_pool2d(v, 1),
    ]
    for function in functions:
        assert_derivatives_of_every_order(function, x)
        assert_derivatives_of_every_order(function, x.detach()[0].requires_grad_())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_operators_pass_opcheck():
    ops, check = torch.ops.minidl, torch.library.opcheck
    for x in images([(2, 3, 6, 7)]):
        last = x.is_contiguous(memory_format=torch.channels_last)
        leaf = x.detach().requires_grad_()
        for indices in (False, True):
            check(ops.max_pool2d_forward.default, (leaf, 3, 2, 1, 1, True, indices))
            check(ops.adaptive_max_pool2d_forward.default, (leaf, (2, 3), indices))
            y, position = ops.max_pool2d_forward(x, 3, 2, 1, 1, True, indices)
            check(ops.max_pool2d_backward.default, (y, position, x.shape, last, 3, 2, 1))
        check(ops.avg_pool2d.default, (leaf, 3, 2, 1, False, False))
        check(ops.adaptive_avg_pool2d.default, (leaf, (2, 3)))
        y = F.avg_pool2d(x, 3, 2, 1).requires_grad_()
        check(ops.avg_pool2d_backward.default, (y, x.shape, last, 3, 2, 1))


def test_compiles_in_one_graph():
    def pooled(x):
        a, index = F.max_pool2d(x, 2, return_indices=True)
        b = F.avg_pool2d(F.max_pool2d(x, 3, 2, 1), 2, 1) + F.adaptive_avg_pool2d(x, (1, None))[..., :3].mean()
        return a.sum() + (b * b).sum() + F.adaptive_max_pool2d(x, (2, 2)).sum() + index.sum()

    for dynamic in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(pooled, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        for x in images([(2, 3, 8, 8), (4, 3, 8, 10)]):
            one, other = (x.clone().requires_grad_() for _ in range(2))
            a, b = compiled(one), pooled(other)
            a.backward(), b.backward()
            torch.testing.assert_close(a, b)
            torch.testing.assert_close(one.grad, other.grad)


def test_meta_tensors_have_shapes():
    x = torch.empty(2, 3, 9, 9, device="meta").to(memory_format=torch.channels_last)
    y = F.max_pool2d(x, 2)
    assert (y.is_meta, y.shape, y.stride()) == (True, (2, 3, 4, 4), (48, 1, 12, 3))
    assert F.adaptive_avg_pool2d(x, (None, 2)).shape == (2, 3, 9, 2)


@pytest.mark.parametrize("order", FORMATS, ids=str)
def test_same_bits_on_any_number_of_threads(isa, order):
    x = image(3, 17, 61, 60, order=order).requires_grad_()

    def every():
        values = [
            F.max_pool2d(x, 2),
            F.max_pool2d(x, 3, 2, 1, 2),
            F.avg_pool2d(x, 3, 1, 1),
            F.adaptive_avg_pool2d(x, (7, 6)),
        ]
        return values + [torch.autograd.grad(y.square().sum(), x)[0] for y in values]

    assert_same_bits_on_threads(every)


@pytest.mark.parametrize(("name", "args"), [
    ("MaxPool2d", (3, 2, 1)), ("MaxPool2d", (2, 1, 0, 2, True, True)), ("AvgPool2d", (3, 2, 1, True, False)),
    ("AvgPool2d", (2, None, 0, False, True, 3)), ("AdaptiveMaxPool2d", ((2, None),)), ("AdaptiveMaxPool2d", (2, True)),
    ("AdaptiveAvgPool2d", (3,)),
])  # fmt: skip
def test_modules(name, args):
    ours, theirs = getattr(nn, name)(*args), getattr(torch.nn, name)(*args)
    assert repr(ours) == repr(theirs)
    torch.testing.assert_close(ours(X), theirs(X))


def test_forward_mode_raises():
    import torch.autograd.forward_ad as fwad

    with fwad.dual_level():
        x = fwad.make_dual(X, X)
        for name, args in (("max_pool2d", (2,)), ("avg_pool2d", (2,)), ("adaptive_avg_pool2d", (2,))):
            with pytest.raises(RuntimeError):
                getattr(F, name)(x, *args)
