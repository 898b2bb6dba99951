"""minidl: a mini deep-learning framework on PyTorch, computed by kernels written here.

``import minidl.nn as nn``, ``import minidl.functional as F`` and ``import minidl.optim as optim`` stand where
torch's modules of these names stood.
"""

import torch

try:
    import minidl._build_info as _build_info
except ModuleNotFoundError as error:
    raise ImportError(
        f"this is minidl's source folder ({__path__[0]}), which holds no compiled kernels and hides the installed\n"
        "package. Run from another folder (for the tests: `pytest`, not `python -m pytest`), or install for\n"
        "development: pip install --no-build-isolation -e ."
    ) from error

__version__ = _build_info.version


def _release(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


# Before the extension is loaded: with another torch it fails on an undefined symbol, which tells nobody anything.
if _release(torch.__version__) != _release(_build_info.torch):
    raise ImportError(
        f"minidl was built for torch {_build_info.torch}, but torch {torch.__version__} is installed.\n"
        "Build it again for this torch, in the folder that holds minidl's source:\n"
        "    pip install --force-reinstall --no-deps --no-cache-dir .\n"
        "(minidl works with torch>=2.11,<2.14; where yours is another, a plain `pip install .` brings one that fits)"
    )

from minidl import _C, functional, memory, nn, optim  # noqa: E402
from minidl.convert import convert, revert  # noqa: E402
from minidl.step import TrainStep, UnsupportedError  # noqa: E402

__all__ = [
    "_C",
    "TrainStep",
    "UnsupportedError",
    "__version__",
    "convert",
    "functional",
    "memory",
    "nn",
    "optim",
    "revert",
]
