"""Models built from ``torch.nn``, computed by minidl: ``convert(model)``, and ``revert(model)`` back.

A module of minidl is torch's with another ``forward``, so to swap one is to change its class and nothing else. It
stays the same object with the same Parameters, buffers, hooks, names and training flag: optimizers, DDP and
``torch.compile`` that know it need not be made again, and a module that stands in two places stays one.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal, TypeVar, overload

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import Parameter, UninitializedBuffer, UninitializedParameter

from minidl import nn

__all__ = ["Report", "convert", "revert"]

M = TypeVar("M", bound=Module)

# What the kernels take.
_DTYPES = {torch.float32, torch.float64}
_DEVICES = {"cpu", "meta"}
_TENSORS = {Tensor, Parameter, UninitializedBuffer, UninitializedParameter}


@dataclass(frozen=True)
class Report:
    """What :func:`convert` did, by the modules' names in the model (``""`` is the model itself).

    ``swapped`` has the class that a module now has in ``minidl.nn``, ``left`` the reason why a module of ``torch.nn``,
    or of a class derived from one that could be swapped, still computes as before.
    """

    swapped: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.swapped.values()).items())
        lines = [f"swapped: {counts or 'nothing'}"]
        lines += [f"left: {name or 'the model itself'}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


@overload
def convert(model: M, report: Literal[False] = False) -> M: ...
@overload
def convert(model: M, report: Literal[True]) -> tuple[M, Report]: ...
def convert(model: M, report: bool = False) -> M | tuple[M, Report]:
    """Let ``minidl.nn`` compute the modules of ``torch.nn`` in ``model``, in place; return ``model``.

    With ``report`` a pair of the model and a :class:`Report`, made to be printed, is returned.

    Only modules whose class is exactly torch's are swapped. Left alone are classes derived from them (parametrized and
    lazy modules are such), modules whose ``forward`` was replaced, and what minidl cannot compute: other classes,
    dtypes, devices and tensor classes, and options that minidl's class names in a static method
    ``lacks(module) -> str | None``. Hooks stay and are called. Functions
    that a ``forward`` of your own calls are not changed: there the import lines decide.
    """
    pairs = _pairs()
    swapped, left = {}, {}
    of_all = _obstacle([*model.parameters(), *model.buffers()])
    for name, module in model.named_modules():
        theirs = type(module)
        if theirs not in pairs:
            if reason := _why_none(theirs, pairs):
                left[name] = reason
            continue
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        # A module without tensors is given those that the others compute.
        reason = _obstacle(own) if own else of_all
        if "forward" in vars(module):
            reason = "its forward was replaced"
        elif lacks := getattr(pairs[theirs], "lacks", None):
            reason = reason or lacks(module)
        if reason:
            left[name] = f"{theirs.__name__}: {reason}"
        else:
            module.__class__ = pairs[theirs]
            swapped[name] = theirs.__name__
    return (model, Report(swapped, left)) if report else model


def revert(model: M) -> M:
    """Let torch compute every module of ``model`` whose class is exactly one of ``minidl.nn``, in place; return it.

    Undoes :func:`convert`, and turns a model that was built from ``minidl.nn`` into one of ``torch.nn`` alone.
    """
    back = {ours: theirs for theirs, ours in _pairs().items()}
    for module in model.modules():
        module.__class__ = back.get(type(module), type(module))
    return model


def _pairs() -> dict[type[Module], type[Module]]:
    """torch's class -> minidl's, for each public class of ``minidl.nn`` that derives from torch's of the same name."""
    pairs = {}
    for name in nn.__all__:
        ours, theirs = getattr(nn, name), getattr(torch.nn, name)
        if isinstance(ours, type) and ours is not theirs and issubclass(ours, theirs):
            pairs[theirs] = ours
    return pairs


def _why_none(theirs: type[Module], pairs: dict[type[Module], type[Module]]) -> str | None:
    """Why no class of minidl stands for ``theirs``; None where none needs to: minidl's own, containers, users' code."""
    name = theirs.__name__
    for base in theirs.__mro__:
        if base in pairs.values():
            return None
        if base in pairs:
            return f"{name}: derived from {base.__name__}, so it may compute something else"
    if theirs.__module__.startswith("torch.nn.modules.") and getattr(nn, name, None) is not theirs:
        return f"{name}: minidl.nn has none"
    return None


def _obstacle(tensors: list[Tensor]) -> str | None:
    """What no kernel takes among ``tensors``, in words."""
    for tensor in tensors:
        if type(tensor) not in _TENSORS:
            return f"no kernel takes a {type(tensor).__name__}"
        if tensor.device.type not in _DEVICES:
            return f"no kernel runs on {tensor.device.type}"
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype not in _DTYPES:
            return f"no kernel takes {tensor.dtype}"
    return None
