"""Dropout: its generator against the published one, what it multiplies by, and that torch would do the same."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as native
from compare import assert_same_bits_on_threads, assert_same_error, views_of
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import minidl.functional as F
import minidl.nn as nn

INF, NAN = float("inf"), float("nan")
forward = torch.ops.minidl.dropout_forward
backward = torch.ops.minidl.dropout_backward


def philox4x32(counter, key):
    """Philox4x32-10 as Salmon et al., SC'11, have it: arrays of four words of 32 bits, in integers of 64."""
    c, (k0, k1), low = [np.asarray(w, np.uint64) for w in counter], key, np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p2 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        shift = np.uint64(32)
        c = [(p2 >> shift) ^ c[1] ^ np.uint64(k0), p2 & low, (p0 >> shift) ^ c[3] ^ np.uint64(k1), p0 & low]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


def random_words(n, state):
    """The word of each element: 16 counters to 64 elements, word w of counter l for element 16 w + l."""
    seed, offset = (int(s) % 2**64 for s in state)
    i = np.arange(n)
    counter = i // 64 * 16 + i % 16
    half = [np.full(n, offset % 2**32), np.full(n, offset >> 32)]
    words = philox4x32([counter, np.zeros(n), *half], (seed % 2**32, seed >> 32))
    return torch.from_numpy(np.choose(i % 64 // 16, words).astype(np.int64))


def factors(n, state, p, dtype):
    kept = random_words(n, state) >= round(p * 2**32)
    return kept.to(dtype) * (1 / (1 - p))


def with_seed(function, *args, **kwargs):
    torch.manual_seed(11)
    return function(*args, **kwargs)


def test_the_reference_is_philox():
    """The known answers that Random123 publishes."""
    known = {
        ((0, 0, 0, 0), (0, 0)): "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2): "408f276d 41c83b0e a20bc7c6 6d5451fd",
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
        ): "d16cfe09 94fdcceb 5001e420 24126ea1",
    }
    for (counter, key), words in known.items():
        assert " ".join(f"{int(w):08x}" for w in philox4x32(counter, key)) == words


@pytest.mark.parametrize("n", [0, 1, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 1009])
def test_the_mask_is_a_function_of_seed_and_offset(isa, dtype, n):
    x = torch.randn(n, dtype=dtype)
    for p in (0.1, 0.5, 0.75):
        y, state = forward(x, p)
        assert torch.equal(y, x * factors(n, state, p, dtype))
    state = torch.tensor([-(2**63) + 5, 2**33 + 7])
    assert torch.equal(backward(x, state, 0.3), x * factors(n, state, 0.3, dtype))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 4, 7), (2, 33, 1, 1), (4, 17, 3, 16), (1, 1, 2, 2)])
def test_whole_channels(isa, dtype, order, shape):
    x = torch.randn(shape, dtype=dtype).contiguous(memory_format=order)
    y, state = forward(x, 0.4, True)
    mask = factors(shape[0] * shape[1], state, 0.4, dtype).view(shape[0], shape[1], 1, 1)
    assert torch.equal(y, x * mask)
    assert y.stride() == x.stride()


def test_gradient_has_the_mask_of_the_forward_pass(isa, dtype):
    for x in (torch.randn(5, 6, 7, 3), torch.randn(5, 6, 7, 3).to(memory_format=torch.channels_last)):
        for function in (F.dropout, F.dropout2d):
            leaf = x.to(dtype).requires_grad_()
            y = function(leaf, 0.3)
            dy = torch.randn(3, 7, 6, 5, dtype=dtype).permute(3, 2, 1, 0)
            (dx,) = torch.autograd.grad(y, leaf, dy)
            kept = (y != 0).to(dtype) * (1 / (1 - 0.3))
            assert 0 < (y == 0).sum() < y.numel()
            torch.testing.assert_close(y, x.to(dtype) * kept, rtol=0, atol=0)
            torch.testing.assert_close(dx, dy * kept, rtol=0, atol=0)
            assert dx.stride() == x.stride()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1e-4])
def test_share_of_dropped_elements(p):
    """Within four standard deviations, over the elements and over any of a register's lanes, for a fixed seed."""
    n = 640_000
    dropped = (with_seed(F.dropout, torch.ones(n), p) == 0).double().view(-1, 64)
    deviation = (p * (1 - p)) ** 0.5
    assert abs(dropped.mean() - p) < 4 * deviation / n**0.5
    assert (dropped.mean(0) - p).abs().max() < 5 * deviation / len(dropped) ** 0.5
    together = (dropped[:, :-1] * dropped[:, 1:]).mean()  # neighbours
    assert abs(together - p * p) < 5 * p / n**0.5


def test_special_values_and_probabilities(isa):
    x = torch.tensor([INF, -INF, NAN, -1.0, 2.0, -0.0]).repeat(50)
    y, state = forward(x, 0.5)
    torch.testing.assert_close(y, x * factors(300, state, 0.5, x.dtype), rtol=0, atol=0, equal_nan=True)
    for p in (1.0, 1):
        y = F.dropout(x, p)
        torch.testing.assert_close(y, native.dropout(x, p), rtol=0, atol=0, equal_nan=True)
        assert torch.equal(y.signbit() | y.isnan(), native.dropout(x, p).signbit() | y.isnan())
    ones = torch.ones(4, 3, 2, 2, requires_grad=True)
    for function in (F.dropout, F.dropout2d):
        assert function(ones, 0.0) is ones
        assert function(ones, 0.7, training=False) is ones
        assert function(ones, 1 - 2**-40).count_nonzero() == 0
        (dx,) = torch.autograd.grad(function(ones, 1.0).sum(), ones)
        assert dx.count_nonzero() == 0
    assert torch.equal(forward(x[3:5], 0.0)[0], x[3:5])


def test_the_generator_decides():
    x = torch.ones(1000)
    first = with_seed(F.dropout, x)
    assert not torch.equal(first, F.dropout(x))
    assert torch.equal(first, with_seed(F.dropout, x))
    mine = torch.Generator().manual_seed(11)
    before = torch.get_rng_state()
    assert torch.equal(first, F.dropout(x, generator=mine))
    assert not torch.equal(first, F.dropout(x, generator=mine))
    assert torch.equal(before, torch.get_rng_state())
    images = torch.ones(20, 30, 2, 2)
    for function, like in ((F.dropout1d, images[..., 0]), (F.dropout2d, images)):
        again = [function(like, generator=mine.manual_seed(s)) for s in (3, 3, 4)]
        assert torch.equal(again[0], again[1])
        assert not torch.equal(again[0], again[2])


def test_checkpoint_drops_the_same_again():
    x = torch.randn(100, requires_grad=True)
    y = checkpoint(lambda v: F.dropout(v, 0.5) * v.sin(), x, use_reentrant=False)
    (dx,) = torch.autograd.grad(y.sum(), x)
    kept = (y != 0).float() * 2
    torch.testing.assert_close(dx, kept * (x.sin() + x * x.cos()))


def test_views_and_memory_order():
    for x in (*views_of(torch.randn(3, 5, 4, 6)), torch.randn(5, 1).expand(5, 9), torch.tensor(3.0)):
        for function in (F.dropout, F.dropout2d)[: x.dim()]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                y, z = with_seed(function, x), with_seed(function, x.contiguous())
            assert torch.equal(y, z)
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert F.dropout(x).stride() == F.dropout2d(x).stride() == x.stride()


def test_dimensions():
    """Channels, and warnings, as torch has them."""
    for shape in ((40, 30), (2, 40, 30)):
        y = F.dropout1d(torch.ones(shape))
        assert (y.sum(-1) % 60 == 0).all()
        assert 0 < y.count_nonzero() < y.numel()
    with pytest.warns(UserWarning, match="dropout2d: a 3D input") as caught:
        y = F.dropout2d(torch.ones(3, 40, 10))
    assert caught[0].filename == __file__
    assert (y.sum(-1) % 20 == 0).all()
    for shape in ((40, 30), (2, 40, 3, 4, 5)):
        with pytest.warns(UserWarning, match="deprecated"):
            y = F.dropout2d(torch.ones(shape))
        per_channel = y.flatten(2).sum(-1) if len(shape) > 2 else y
        assert set(per_channel.unique().tolist()) == {0.0, 2.0 * (60 if len(shape) > 2 else 1)}


@pytest.mark.parametrize("name", ["dropout", "dropout1d", "dropout2d"])
def test_inplace(name):
    function = getattr(F, name)
    for shape in ((3, 8, 4, 4), (3, 8, 4), (8, 4))[{"dropout": 0, "dropout1d": 1, "dropout2d": 0}[name] :]:
        if name == "dropout2d" and len(shape) < 4:
            continue
        x = torch.randn(shape)
        expected = with_seed(function, x)
        kept = x.clone()
        assert with_seed(function, kept, inplace=True) is kept
        assert torch.equal(kept, expected)
        leaf = torch.randn(shape, requires_grad=True)
        y = with_seed(function, leaf * 1, inplace=True)
        (dx,) = torch.autograd.grad(y.sum(), leaf)
        assert torch.equal(dx, (y != 0) * 2.0)
        with pytest.raises(RuntimeError, match="leaf Variable"):
            function(leaf, inplace=True)
        assert function(leaf, training=False, inplace=True) is leaf


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("dropout", (torch.ones(3), 1.5)),
        ("dropout", (torch.ones(3), -0.1)),
        ("dropout", (torch.ones(3), 1.5, False)),
        ("dropout", (torch.ones(3), NAN)),
        ("dropout", (torch.ones(3), "a")),
        ("dropout1d", (torch.ones(3), 0.5)),
        ("dropout1d", (torch.ones(3, 3, 3, 3), 0.5, False)),
        ("dropout1d", (torch.ones(3, 3), 2)),
        ("dropout2d", (torch.ones(3), 0.5)),
        ("dropout2d", (torch.ones(()), 0.5)),
        ("dropout2d", (torch.ones(3, 3, 3, 3), 1.01)),
    ],
)
@pytest.mark.filterwarnings("ignore:dropout2d")
def test_errors(name, args):
    assert_same_error(name, args)


def test_errors_of_the_operators():
    for dtype in (torch.float16, torch.int64):
        with pytest.raises(
            NotImplementedError, match="minidl::dropout is implemented for float32 and float64"
        ):
            F.dropout(torch.ones(3, dtype=dtype))
    for state in (torch.zeros(2), torch.zeros(3, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64)):
        with pytest.raises(RuntimeError, match="state must be two int64"):
            backward(torch.ones(3), state, 0.5)
    with pytest.raises(RuntimeError, match="at least 2 dimensions"):
        backward(torch.ones(3), torch.zeros(2, dtype=torch.int64), 0.5, True)


@pytest.mark.parametrize("p", [0.4, 1.0])
def test_gradients_of_every_order(p):
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    for leaf in (x, last):
        for function in (F.dropout, F.dropout2d):
            assert gradcheck(lambda v, f=function: with_seed(f, v, p), leaf)
            assert gradgradcheck(lambda v, f=function: with_seed(f, v, p), leaf)
            (dx,) = torch.autograd.grad(with_seed(function, leaf, p).sum(), leaf, create_graph=True)
            kept = (with_seed(function, leaf, p) != 0).double() * (1 / max(1 - p, 0.5))
            assert torch.equal(dx, kept)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_operators_pass_opcheck():
    check, state = torch.library.opcheck, torch.tensor([3, 4])
    for x in (torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)):
        last = x.is_contiguous(memory_format=torch.channels_last)
        leaf = x.requires_grad_()
        for channels in (False, True):
            check(forward.default, (leaf, 0.5, channels))
            check(backward.default, (leaf, state, 0.5, channels, last))


def test_compiles_in_one_graph():
    def dropped(x):
        return F.dropout(x, 0.3) + F.dropout2d(x, 0.6) + F.dropout(x, 0.2, inplace=False, training=False)

    for dynamic in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(dropped, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        for n in (2, 5):
            one, other = (torch.ones(n, 3, 4, 5, requires_grad=True) for _ in range(2))
            a, b = with_seed(compiled, one), with_seed(dropped, other)
            a.sum().backward(), b.sum().backward()
            assert torch.equal(a, b)
            assert torch.equal(one.grad, other.grad)


def test_meta_tensors_have_shapes():
    before = torch.get_rng_state()
    x = torch.empty(2, 3, 4, 5, device="meta").to(memory_format=torch.channels_last)
    assert F.dropout(x).stride() == x.stride()
    assert torch.equal(before, torch.get_rng_state())


def test_same_bits_on_any_number_of_threads(isa):
    x = torch.randn(7, 33, 41, 40)

    def every():
        return [
            with_seed(f, v)
            for f in (F.dropout, F.dropout2d)
            for v in (x, x.to(memory_format=torch.channels_last))
        ]

    assert_same_bits_on_threads(every)


@pytest.mark.parametrize("name", ["Dropout", "Dropout1d", "Dropout2d"])
def test_modules(name):
    ours, theirs = getattr(nn, name)(0.2), getattr(torch.nn, name)(0.2)
    assert repr(ours) == repr(theirs)
    x = torch.ones((3, 40, 5) if name == "Dropout1d" else (3, 40, 5, 5))
    y = ours(x)
    assert set(y.unique().tolist()) == {0.0, 1.25}
    assert ours.eval()(x) is x
    y = getattr(nn, name)(inplace=True)(x)
    assert y is x


def test_forward_mode_raises():
    import torch.autograd.forward_ad as fwad

    with fwad.dual_level(), pytest.raises(RuntimeError):
        F.dropout(fwad.make_dual(torch.ones(3), torch.ones(3)))
