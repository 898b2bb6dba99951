"""The memory that minidl's outputs on the CPU come from, and that is kept when they die.

A fresh page of 4 KB costs the system two to three microseconds, and malloc gives large blocks back at once: without a
cache, two thirds of the time of a relu of 1e7 elements are page faults. So blocks of 32 KB and more are kept, up to
a limit of 1 GB, and serve the next output of about their size. Nothing shows but speed and resident memory.

The environment variable ``MINIDL_CACHE_BYTES`` sets another limit when minidl is imported; 0 turns the cache off.
"""

import operator
import os
import sys
from typing import NamedTuple

from minidl import _C

__all__ = ["Stats", "empty_cache", "set_limit", "stats"]


class Stats(NamedTuple):
    """What :func:`stats` returns. Bytes count whole blocks, which are up to an eighth larger than their tensors."""

    limit: int  #: bytes that may be kept
    kept: int  #: bytes kept now, in no tensor
    in_use: int  #: bytes in tensors, of blocks that may be kept afterwards
    reused: int  #: allocations that the cache has served
    fetched: int  #: allocations that the system has served


def stats() -> Stats:
    """The state of the cache now, and what it has done since the import."""
    return Stats(**_C.memory_stats())


def empty_cache() -> None:
    """Give all kept memory back to the system; tensors keep theirs."""
    _C.empty_memory_cache()


def set_limit(bytes: int) -> None:
    """Keep at most ``bytes`` from now on; 0 turns the cache off. If more is kept, all of it is given back.

    TypeError for what is no integer, ValueError for a negative one.
    """
    limit = operator.index(bytes)
    if limit < 0:
        raise ValueError(f"minidl: a limit of {limit} bytes is negative; 0 turns the cache off")
    _C.set_memory_limit(min(limit, sys.maxsize))


def _read_environment() -> None:
    wanted = os.environ.get("MINIDL_CACHE_BYTES")
    if not wanted:
        return
    if not wanted.isdecimal():
        raise ValueError(
            f"minidl: MINIDL_CACHE_BYTES={wanted!r} is not a number of bytes; 0 turns the cache off"
        )
    set_limit(int(wanted))


_read_environment()
