"""conv1d, conv2d and their transposes against torch, on every kernel table."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as native
from check import assert_same_gradients, layouts
from compare import assert_derivatives_of_every_order, assert_same_bits_on_threads, assert_same_error
from torch import nn as native_nn

import minidl.functional as F
from minidl import nn

CHANNELS_LAST = torch.channels_last


def compare(ours, theirs, x, w, b, **options):
    """The result and three gradients. float32: rounding errors in proportion to the sums of absolute products; float64:
    as the oracle, which has such errors too."""

    def run(function, *tensors):
        tensors = [t.detach().requires_grad_() for t in tensors]
        y = function(*tensors, **options)
        dy = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
        return [y, *torch.autograd.grad(y, tensors, dy)]

    if x.dtype == torch.float64:
        for one, other in zip(run(ours, x, w, b), run(theirs, x, w, b), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
        return
    assert_same_gradients(
        lambda *t: ours(*t, **options),
        lambda *t: theirs(*t, **options),
        x,
        w,
        b,
        products=lambda *t: theirs(*t, **options),
    )


def operands(x_shape, w_shape, dtype, bias):
    return (
        torch.randn(x_shape, dtype=dtype),
        torch.randn(w_shape, dtype=dtype),
        torch.randn(bias, dtype=dtype),
    )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("out", [1, 5, 16, 33, 70])
@pytest.mark.parametrize("channels", [1, 3, 16, 17])
def test_channels(isa, dtype, channels, out, channels_last):
    x, w, b = operands((2, channels, 9, 7), (out, channels, 3, 3), dtype, out)
    if channels_last:
        x = x.contiguous(memory_format=CHANNELS_LAST)
    compare(F.conv2d, native.conv2d, x, w, b, padding=1)


OPTIONS = [
    {"stride": 2},
    {"stride": (3, 1), "padding": (0, 2)},
    {"stride": 4, "padding": 1},  # further apart than the kernel is wide
    {"padding": 4},
    {"dilation": 2, "padding": 2},
    {"dilation": (1, 3), "stride": 2, "padding": 3},
    {"dilation": 2, "stride": 2, "padding": 2},
    {"dilation": 2, "stride": 4, "padding": (3, 2)},
    {"padding": "valid"},
]


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(isa, options, kernel):
    x, w, b = operands((3, 5, 13, 17), (6, 5, *kernel), torch.float32, 6)
    compare(F.conv2d, native.conv2d, x, w, b, **options)
    x, w = x.contiguous(memory_format=CHANNELS_LAST), w.contiguous(memory_format=CHANNELS_LAST)
    compare(F.conv2d, native.conv2d, x.double(), w.double(), b.double(), **options)


@pytest.mark.parametrize(
    ("groups", "channels", "out"), [(2, 4, 6), (3, 3, 9), (7, 7, 7), (70, 70, 70), (5, 5, 10)]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_groups(isa, dtype, groups, channels, out, stride):
    x, w, b = operands((2, channels, 8, 9), (out, channels // groups, 3, 3), dtype, out)
    for form in (torch.contiguous_format, CHANNELS_LAST):
        x = x.contiguous(memory_format=form)
        compare(F.conv2d, native.conv2d, x, w, b, groups=groups, stride=stride, padding=1)


@pytest.mark.filterwarnings(
    "ignore:Using padding='same' with even kernel:UserWarning"
)  # torch's: it copies x
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, (2, 3)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_padding_same(kernel, dilation):
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    x, w, b = operands((2, 3, 7, 8), (4, 3, *size), torch.float32, 4)
    compare(F.conv2d, native.conv2d, x, w, b, padding="same", dilation=dilation)
    compare(F.conv1d, native.conv1d, x[:, :, 0], w[:, :, 0], b, padding="same", dilation=dilation)


TRANSPOSED = [
    {},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": (3, 2), "padding": (0, 1), "output_padding": (2, 0)},
    {"stride": 2, "dilation": 3, "padding": 2, "output_padding": 1},
    {"stride": 2, "groups": 2},
    {"stride": 5},  # pixels that no tap reaches
]


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_transposed(isa, dtype, options):
    x, w, b = operands((2, 4, 5, 6), (4, 6 // options.get("groups", 1), 3, 2), dtype, 6)
    for form in (torch.contiguous_format, CHANNELS_LAST):
        x = x.contiguous(memory_format=form)
        compare(F.conv_transpose2d, native.conv_transpose2d, x, w, b, **options)


@pytest.mark.parametrize(("stride", "dilation", "groups"), [*itertools.product([1, 3], [1, 2], [1, 2])])
def test_one_dimension(isa, dtype, stride, dilation, groups):
    x, w, b = operands((3, 4, 57), (6, 4 // groups, 5), dtype, 6)
    compare(F.conv1d, native.conv1d, x, w, b, stride=stride, dilation=dilation, groups=groups, padding=3)
    w = torch.randn(4, 6 // groups, 5, dtype=dtype)
    options = {"stride": stride, "dilation": dilation, "groups": groups, "padding": 1}
    compare(F.conv_transpose1d, native.conv_transpose1d, x, w, b, **options)


@pytest.mark.parametrize(
    ("x_shape", "w_shape"),
    [
        ((1, 200, 5, 6), (9, 200, 3, 3)),  # a panel of weights in several blocks
        ((40, 3, 2, 2), (80, 3, 2, 2)),  # small pictures, taken together
        ((2, 2, 1, 3001), (3, 2, 1, 7)),  # a row that is cut
        ((2, 2, 300, 5), (3, 2, 7, 1)),
        ((1, 16, 90, 91), (17, 16, 3, 3)),
    ],
)
def test_blocks(isa, two_threads, x_shape, w_shape):
    x, w, b = operands(x_shape, w_shape, torch.float32, w_shape[0])
    compare(F.conv2d, native.conv2d, x, w, b, padding=1)


@pytest.mark.parametrize(("x_shape", "w_shape"), [((0, 3, 5, 5), (4, 3, 3, 3)), ((2, 3, 1, 1), (4, 3, 1, 1))])
def test_smallest_sizes(isa, dtype, x_shape, w_shape):
    x, w, b = operands(x_shape, w_shape, dtype, 4)
    x, w, b = (t.requires_grad_() for t in (x, w, b))
    y = F.conv2d(x, w, b)
    torch.testing.assert_close(y, native.conv2d(x, w, b))
    for gradient, tensor in zip(torch.autograd.grad(y.sum(), (x, w, b)), (x, w, b), strict=True):
        assert gradient.shape == tensor.shape
        if not len(x):
            assert not gradient.any()


def test_without_batch_and_without_bias():
    x, w = torch.randn(3, 8, 9), torch.randn(4, 3, 3, 3)
    torch.testing.assert_close(F.conv2d(x, w), native.conv2d(x, w))
    torch.testing.assert_close(
        F.conv1d(x[0], w[:, :1, 0].expand(4, 8, 3)), native.conv1d(x[0], w[:, :1, 0].expand(4, 8, 3))
    )
    torch.testing.assert_close(F.conv_transpose2d(x, w[:3]), native.conv_transpose2d(x, w[:3]))


@pytest.mark.parametrize("layout", ["dense", "odd offset", "strided", "expanded", "transposed"])
def test_layouts(dtype, layout):
    x = dict(layouts((2, 3, 6, 7), dtype))[layout]
    w = dict(layouts((5, 3, 3, 2), dtype))[layout]
    compare(F.conv2d, native.conv2d, x, w, torch.randn(5, dtype=dtype))


def test_upstream_gradient_of_any_layout():
    x, w, b = (t.requires_grad_() for t in operands((2, 3, 6, 7), (5, 3, 3, 3), torch.float32, 5))
    gradients = layouts((2, 5, 6, 7), torch.float32)
    gradients.append(("channels last", torch.randn(2, 5, 6, 7).contiguous(memory_format=CHANNELS_LAST)))
    for activation in (None, "relu"):
        for _, dy in gradients:
            ours = torch.autograd.grad(F.conv2d(x, w, b, padding=1, activation=activation), (x, w, b), dy)
            y = native.conv2d(x, w, b, padding=1)
            theirs = torch.autograd.grad(y.relu() if activation else y, (x, w, b), dy)
            for one, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("x_form", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("w_form", [torch.contiguous_format, CHANNELS_LAST])
def test_memory_format_of_results_is_torchs(x_form, w_form):
    x = torch.randn(2, 3, 6, 7).contiguous(memory_format=x_form).requires_grad_()
    w = torch.randn(5, 3, 3, 3).contiguous(memory_format=w_form).requires_grad_()
    y = F.conv2d(x, w)
    assert y.stride() == native.conv2d(x, w).stride()
    y.sum().backward()
    assert x.grad.stride() == x.stride()
    assert w.grad.stride() == w.stride()


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "gelu", "silu"])
@pytest.mark.parametrize("form", [torch.contiguous_format, CHANNELS_LAST])
def test_fused_activation(isa, dtype, activation, form):
    x, w, b = operands((2, 3, 9, 8), (6, 3, 3, 3), dtype, 6)
    x = x.contiguous(memory_format=form)
    function = getattr(torch, activation, None) or getattr(native, activation)
    assert_same_gradients(
        lambda *t: F.conv2d(*t, activation=activation),
        lambda *t: function(native.conv2d(*t)),
        x,
        w,
        b,
        floor=64,
    )


def test_infinity_and_nan_reach_what_they_touch(isa):
    x, w, b = operands((1, 2, 6, 6), (3, 2, 3, 3), torch.float32, 3)
    x[0, 1, 2, 3], x[0, 0, 5, 5] = float("nan"), float("inf")
    y, theirs = F.conv2d(x, w, b), native.conv2d(x, w, b)
    torch.testing.assert_close(y, theirs, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_threads_do_not_change_the_bits():
    x, w, b = (t.requires_grad_() for t in operands((9, 5, 20, 20), (70, 5, 3, 3), torch.float32, 70))
    dy = torch.randn(9, 70, 20, 20)

    def run():
        y = F.conv2d(x, w, b, padding=1, activation="relu")
        return [y.detach(), *torch.autograd.grad(y, (x, w, b), dy)]

    assert_same_bits_on_threads(run)


@pytest.mark.parametrize("transposed", [False, True])
def test_derivatives_of_every_order(transposed):
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, requires_grad=True)
    function = F.conv_transpose2d if transposed else F.conv2d
    assert_derivatives_of_every_order(lambda *t: function(*t, stride=2, padding=1, groups=2), x, w, b)


def test_derivatives_through_the_activation():
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert_derivatives_of_every_order(lambda *t: F.conv2d(*t, activation="tanh"), x, w)


def test_operators_are_well_formed():
    x, w, b = (t.requires_grad_() for t in operands((2, 4, 6, 7), (6, 2, 3, 3), torch.float32, 6))
    options = ([2, 1], [1], [1, 2], False, [0], 2, "relu")
    torch.library.opcheck(torch.ops.minidl.convolution, (x, w, b, *options))
    y = torch.ops.minidl.convolution(x, w, b, *options).detach()
    arguments = (torch.randn_like(y), x.detach(), w.detach(), y, *options, [True, True, True])
    torch.library.opcheck(torch.ops.minidl.convolution_backward, arguments)


def test_compiles_in_one_graph():
    x, w, b = (t.requires_grad_() for t in operands((2, 3, 8, 8), (4, 3, 3, 3), torch.float32, 4))

    def f(x, w, b):
        return F.conv2d(x, w, b, padding="same", activation="relu").square().sum()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(x, w, b), (x, w, b))
    for one, other in zip(ours, torch.autograd.grad(f(x, w, b), (x, w, b)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("name", "shapes", "options"),
    [
        ("conv2d", {"weight": (4, 2, 3, 3)}, {}),
        ("conv2d", {"weight": (4, 3, 7, 3)}, {}),
        ("conv2d", {"weight": (0, 3, 3, 3)}, {}),
        ("conv2d", {"weight": (4, 3, 0, 3)}, {}),
        ("conv2d", {"weight": (3, 3, 3)}, {}),
        ("conv2d", {"input": (5, 5)}, {}),
        ("conv2d", {"bias": (3,)}, {}),
        ("conv2d", {}, {"stride": 0}),
        ("conv2d", {}, {"stride": (1, 1, 1)}),
        ("conv2d", {}, {"stride": ()}),
        ("conv2d", {}, {"padding": -1}),
        ("conv2d", {}, {"padding": "half"}),
        ("conv2d", {}, {"padding": "same", "stride": 2}),
        ("conv2d", {}, {"dilation": 0}),
        ("conv2d", {}, {"groups": 0}),
        ("conv2d", {}, {"groups": 2}),
        ("conv_transpose2d", {"weight": (4, 2, 3, 3)}, {}),
        ("conv_transpose2d", {"weight": (3, 3, 3, 3)}, {"output_padding": 1}),
        ("conv_transpose2d", {"weight": (3, 3, 3, 3)}, {"output_padding": -1, "stride": 2}),
        ("conv_transpose2d", {"weight": (3, 3, 3, 3)}, {"padding": 10}),
        ("conv_transpose2d", {"weight": (3, 3, 3, 3), "bias": (5,)}, {}),
        ("conv_transpose2d", {"weight": (3, 3, 3, 3)}, {"groups": 2}),
        ("conv1d", {"input": (2, 3, 5)}, {}),
    ],
    ids=str,
)
def test_errors_are_of_torchs_type(name, shapes, options):
    tensors = {"input": (2, 3, 5, 5), "weight": (4, 3, 3, 3), **shapes}
    assert_same_error(name, (), {key: torch.randn(shape) for key, shape in tensors.items()} | options)


def test_dtypes_that_differ():
    assert_same_error("conv2d", (torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3).double()))


def test_errors_that_are_minidls_own():
    x, w = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    with pytest.raises(NotImplementedError, match="float32 and float64"):
        F.conv2d(x.half(), w.half())
    with pytest.raises(ValueError, match="has parameters and is not fused"):
        F.conv2d(x, w, activation="softplus")
    with pytest.raises(RuntimeError, match=r"convolution: .*\[2, 3, 5, 5\] to have 2 channels, but got 3"):
        F.conv2d(x, w[:, :2])


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [2, "same"])
def test_modules_are_torchs(mode, padding):
    for name, shape in (("Conv1d", (2, 3, 11)), ("Conv2d", (2, 3, 9, 10))):
        ours = getattr(nn, name)(3, 4, 4, padding=padding, padding_mode=mode)
        theirs = getattr(native_nn, name)(3, 4, 4, padding=padding, padding_mode=mode)
        theirs.load_state_dict(ours.state_dict())
        assert repr(ours) == repr(theirs)
        x = torch.randn(shape)
        torch.testing.assert_close(ours(x), theirs(x))


def test_transposed_modules_take_an_output_size():
    for name, shape in (("ConvTranspose1d", (2, 3, 5)), ("ConvTranspose2d", (2, 3, 5, 6))):
        ours, theirs = (getattr(m, name)(3, 4, 3, stride=2) for m in (nn, native_nn))
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(shape)
        size = [2 * n + 2 for n in shape[2:]]
        torch.testing.assert_close(ours(x, size), theirs(x, size))


def test_memory_stays_small():
    """No im2col: the workspace of a convolution whose patches would take 59 MB stays below 8 MB a thread."""
    code = (
        "import torch, minidl.functional as F, resource\n"
        "torch.set_num_threads(1)\n"
        "x, w = torch.randn(4, 64, 80, 80, requires_grad=True), torch.randn(8, 64, 3, 3, requires_grad=True)\n"
        "kb = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "F.conv2d(x[:1, :, :4, :4], w, padding=1).sum().backward()\n"
        "before = kb()\n"
        "with torch.no_grad(): y = F.conv2d(x, w, padding=1)\n"
        "print(kb() - before - y.numel() * 4 // 1024)\n"
    )
    here = Path(
        __file__
    ).parent  # in the repository's root Python would import the source folder, without kernels
    ran = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 8 * 1024
