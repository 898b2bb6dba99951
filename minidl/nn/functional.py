"""``minidl.functional`` under the name that ``import torch.nn.functional as F`` suggests."""

from minidl.functional import *  # noqa: F403
from minidl.functional import __all__, __getattr__  # noqa: F401
