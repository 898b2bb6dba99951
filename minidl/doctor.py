"""``minidl doctor``: what is installed, what the machine offers, and whether every operator agrees with torch."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as TF
from torch import Tensor

import minidl
from minidl import _C, _build_info, data, memory, nn, optim
from minidl import functional as F


def main() -> int:
    """Print the report; return 0 if all is well, else 1."""
    for line in report():
        print(line)
    print("self-test (each operator forward and backward against torch, on each instruction set)")
    failures = list(self_test())
    for failure in failures:
        print(f"  FAILED {failure}")
    print(f"  {len(failures)} failures" if failures else "  all operators agree with torch")
    return 1 if failures else 0


def report() -> Iterator[str]:
    """The lines that describe this installation."""
    yield f"minidl   {minidl.__version__}, built with {_build_info.compiler} for torch {_build_info.torch}"
    yield f"python   {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield f"torch    {torch.__version__}"
    compiled, runnable = ", ".join(_build_info.isas), ", ".join(_C.available_isas())
    yield f"kernels  {_C.isa()} in use; compiled in: {compiled}; this machine runs: {runnable}"
    yield f"threads  {torch.get_num_threads()} (torch's), {_C.threads_used()} of them run in a kernel"
    yield f"memory   {_memory()}"
    yield f"cuda     {_cuda()}"
    yield "data     where the lessons look, in this order"
    for line in data.search_report():
        yield f"           {line}"


def _memory() -> str:
    limit = memory.stats().limit
    if not limit:
        return "outputs are given back when they die: the cache is off (MINIDL_CACHE_BYTES)"
    return f"up to {limit / 2**20:,.0f} MiB of dead outputs are kept for the next ones (MINIDL_CACHE_BYTES)"


def _cuda() -> str:
    built = "kernels built" if _build_info.cuda else f"no kernels: {_build_info.cuda_reason}"
    if torch.version.cuda is None:
        return f"{built}; this torch is a CPU build"
    if not torch.cuda.is_available():
        return f"{built}; torch has CUDA {torch.version.cuda}, but no device is there"
    return f"{built}; device {torch.cuda.get_device_name()}"


def self_test() -> Iterator[str]:
    """A line for each disagreement with torch; none if all is well. Takes about a second."""
    if torch.get_num_threads() > 1 and _C.threads_used() == 1:
        yield "threads: torch has several, but a kernel runs on one; was minidl built without OpenMP?"
    before = _C.isa()
    try:
        for isa in _C.available_isas():
            _C.set_isa(isa)
            for name, ours, theirs, inputs in _operators():
                try:
                    _compare(ours, theirs, inputs)
                except Exception as error:  # whatever is wrong, the other operators are still to be looked at
                    yield f"{name} on {isa}: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
            for name in ("SGD", "RMSprop", "Adam", "AdamW"):
                try:
                    _compare_optimizer(name)
                except Exception as error:
                    yield f"{name} on {isa}: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
            for name in ("clip_grad_norm_", "clip_grad_value_"):
                try:
                    _compare_clipping(name)
                except Exception as error:
                    yield f"{name} on {isa}: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    finally:
        _C.set_isa(before)


Operator = tuple[str, Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]


def _operators() -> Iterator[Operator]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, w, b, target = randn(37, 19), randn(23, 19), randn(23), randn(37, 19)
    yield "matmul", F.matmul, torch.matmul, (x, w.t())
    yield "linear", F.linear, TF.linear, (x, w, b)
    yield (
        "linear + relu",
        lambda x, w, b: F.linear(x, w, b, "relu"),
        lambda *t: TF.linear(*t).relu(),
        (x, w, b),
    )
    for name in ("relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu", "softplus"):
        yield name, getattr(F, name), getattr(TF, name), (x,)
    for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"):
        yield name, getattr(F, name), getattr(TF, name), (x, target)
    image, gamma, beta = randn(5, 6, 7, 3), randn(6), randn(6)
    last = image.contiguous(memory_format=torch.channels_last)
    for name, options, inputs in (
        ("batch_norm", {"running_mean": None, "running_var": None, "training": True}, (image, gamma, beta)),
        ("batch_norm", {"running_mean": None, "running_var": None, "training": True}, (last, gamma, beta)),
        ("layer_norm", {"normalized_shape": (19,)}, (x, w[0], w[1])),
        ("group_norm", {"num_groups": 3}, (image, gamma, beta)),
    ):
        ours, theirs = partial(getattr(F, name), **options), partial(getattr(TF, name), **options)
        yield name, partial(_affine, ours), partial(_affine, theirs), inputs
    p, q = torch.sigmoid(x), torch.sigmoid(target)
    yield "binary_cross_entropy", F.binary_cross_entropy, TF.binary_cross_entropy, (p, q)
    logits = F.binary_cross_entropy_with_logits, TF.binary_cross_entropy_with_logits
    yield "binary_cross_entropy_with_logits", *logits, (x, q)
    for name in ("softmax", "log_softmax"):
        ours, theirs = getattr(F, name), getattr(TF, name)
        yield name, lambda t, f=ours: f(t, 1), lambda t, f=theirs: f(t, 1), (x,)
    images = randn(3, 5, 11, 13)
    for name, args in (
        ("max_pool2d", (3, 2, 1)),
        ("avg_pool2d", (2,)),
        ("adaptive_max_pool2d", ((2, 3),)),
        ("adaptive_avg_pool2d", (1,)),
    ):
        ours, theirs = getattr(F, name), getattr(TF, name)
        yield (
            name,
            lambda t, f=ours, a=args: f(t, *a),
            lambda t, f=theirs, a=args: f(t, *a),
            (images.contiguous(memory_format=torch.channels_last),),
        )
    filters = randn(4, images.shape[1], 3, 3)
    for order in (torch.contiguous_format, torch.channels_last):
        yield "conv2d", F.conv2d, TF.conv2d, (images.contiguous(memory_format=order), filters, randn(4))
    yield "conv_transpose2d", F.conv_transpose2d, TF.conv_transpose2d, (images, filters.transpose(0, 1))
    yield "dropout", _kept(F.dropout), _kept(TF.dropout), (x.abs() + 1,)
    classes = torch.arange(37) % 19
    for name in ("cross_entropy", "nll_loss"):
        ours, theirs = getattr(F, name), getattr(TF, name)
        yield name, lambda t, f=ours: f(t, classes), lambda t, f=theirs: f(t, classes), (x,)


def _kept(dropout: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What dropout with p = 1/2 makes of elements that are not dropped, for elements that are not 0."""

    def doubled(x: Tensor) -> Tensor:
        y = dropout(x)
        return torch.where(y == 0, 2 * x, y)

    return doubled


def _affine(norm: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return norm(x, weight=weight, bias=bias)


def _compare(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    def run(f: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        y = f(*leaves)
        dy = torch.linspace(-1, 1, y.numel()).view_as(y) if y.dim() else torch.tensor(1.5)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

    for one, other in zip(run(ours), run(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def _compare_optimizer(name: str) -> None:
    def run(module: Any) -> Tensor:
        p = torch.linspace(-1, 1, 61).requires_grad_()
        optimizer = getattr(module, name)([p], lr=0.1)
        for _ in range(3):
            p.grad = p.detach().sin()
            optimizer.step()
        return p.detach()

    torch.testing.assert_close(run(optim), run(torch.optim), rtol=1e-4, atol=1e-5)


def _compare_clipping(name: str) -> None:
    def run(module: Any) -> Tensor | None:
        p = torch.linspace(-1, 1, 61).requires_grad_()
        p.grad = p.detach().sin()
        getattr(module.utils, name)([p], 0.5)
        return p.grad

    torch.testing.assert_close(run(nn), run(torch.nn), rtol=1e-4, atol=1e-5)
