"""One function of minidl.functional beside torch's of the same name, on the same arguments."""

import warnings

import pytest
import torch
import torch.nn.functional as native
from check import assert_close_to_float64
from torch.autograd import gradcheck, gradgradcheck

import minidl.functional as F


def floats(value, dtype):
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def run(function, args, kwargs, wrt, dtype=None, seed=0):
    """The value, and the gradients of the arguments `wrt` for a dy that is the same for every function."""
    if dtype is not None:
        args = [floats(a, dtype) for a in args]
        kwargs = {k: floats(v, dtype) for k, v in kwargs.items()}
    # detach keeps strides and storage, so a view stays the view it is.
    args = [a.detach().requires_grad_() if i in wrt else a for i, a in enumerate(args)]
    y = function(*args, **kwargs)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gradients = torch.autograd.grad(y, [args[i] for i in wrt], dy.to(y.dtype)) if wrt else []
    return [y.detach(), *gradients]


def assert_like_torch(name, args, kwargs=None, wrt=(0,)):
    """Values and gradients within twice torch's float32 error; float64 to 1e-12; no argument written to."""
    kwargs = kwargs or {}
    tensors = [v for v in [*args, *kwargs.values()] if isinstance(v, torch.Tensor)]
    before = [t.clone() for t in tensors]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using a target size")
        ours = run(getattr(F, name), args, kwargs, wrt)
        theirs = run(getattr(native, name), args, kwargs, wrt)
        oracle = run(getattr(native, name), args, kwargs, wrt, torch.float64)
        ours64 = run(getattr(F, name), args, kwargs, wrt, torch.float64)
    for o, t, x, o64 in zip(ours, theirs, oracle, ours64, strict=True):
        assert_close_to_float64(o, t, x)
        torch.testing.assert_close(o64, x, rtol=1e-11, atol=1e-12, equal_nan=True)
    for t, b in zip(tensors, before, strict=True):
        torch.testing.assert_close(t, b, rtol=0, atol=0, equal_nan=True)


def assert_same_specials(name, args, kwargs=None, wrt=(0,)):
    """NaN and infinity exactly where torch has them, other values close."""
    ours = run(getattr(F, name), args, kwargs or {}, wrt)
    theirs = run(getattr(native, name), args, kwargs or {}, wrt)
    for o, t in zip(ours, theirs, strict=True):
        torch.testing.assert_close(o, t, rtol=1e-5, atol=1e-6, equal_nan=True)


def assert_same_error(name, args, kwargs=None):
    """torch raises, and minidl raises the same type."""
    kwargs = kwargs or {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception) as theirs:  # noqa: PT011 whatever torch raises
            getattr(native, name)(*args, **kwargs)
        with pytest.raises(theirs.type) as ours:
            getattr(F, name)(*args, **kwargs)
    assert ours.type is theirs.type


def assert_derivatives_of_every_order(function, *inputs):
    """Backward against finite differences, once and twice. Under create_graph backward goes another way,
    which gradgradcheck compares with itself alone: so also the two ways with each other."""
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)
    y = function(*inputs)
    dy = torch.randn_like(y)
    kernel = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    composite = torch.autograd.grad(y, inputs, dy, create_graph=True)
    torch.testing.assert_close(composite, kernel)


def views_of(x):
    """The values of x as a dense, an odd-offset, a transposed and a strided tensor."""
    offset = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)
    transposed = x.transpose(0, -1).contiguous().transpose(0, -1)
    strided = torch.empty(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)[..., ::2].copy_(x)
    return [x, offset, transposed, strided]


def bits_with_threads(function, n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        return function()
    finally:
        torch.set_num_threads(before)


def assert_same_bits_on_threads(function):
    """`function` gives tensors; they have the same bits on one and two threads."""
    for one, two in zip(bits_with_threads(function, 1), bits_with_threads(function, 2), strict=True):
        assert torch.equal(one, two)
