"""What the tests of the memory cache share: the fixture, which every module that imports it uses, and outputs."""

import pytest
import torch

import minidl.functional as F
from minidl import memory

KB, MB = 2**10, 2**20
N = 2**18  # elements: 1 MB of float32, a block of exactly that


@pytest.fixture(autouse=True)
def cache():
    """An empty cache with 64 MB of room."""
    before = memory.stats().limit
    memory.empty_cache()
    memory.set_limit(64 * MB)
    yield
    memory.set_limit(before)
    memory.empty_cache()


def output(n=N, value=1.0):
    """An output of n elements, filled with ``value``. Its input comes from torch's allocator."""
    return F.relu(torch.full((n,), value))


def kept():
    return memory.stats().kept
