"""Where the values of a plan lie: one block of memory, in which a dead value's place is taken by a later one."""

from __future__ import annotations

from dataclasses import dataclass

ALIGNMENT = 64  # a cache line, and a register of AVX-512


@dataclass
class Slot:
    """A piece of memory, alive from the first to the last call that is given its address."""

    bytes: int
    bound: bool = False  # lies elsewhere
    first: int = -1
    last: int = -1


def offsets(slots: list[Slot]) -> tuple[list[int], int]:
    """An offset for each slot, -1 for the bound ones, and the size of the block.

    The largest are placed first, each at the lowest offset where it meets nobody who is alive at the same time.
    """
    placed: list[tuple[int, Slot]] = []
    result = [-1] * len(slots)
    order = sorted((i for i, s in enumerate(slots) if not s.bound), key=lambda i: (-slots[i].bytes, i))
    size = 0
    for i in order:
        slot = slots[i]
        neighbours = sorted(
            (offset, other.bytes)
            for offset, other in placed
            if slot.first <= other.last and other.first <= slot.last
        )
        offset = 0
        for begin, length in neighbours:
            if offset + slot.bytes <= begin:
                break
            offset = max(offset, begin + length)
            offset = -(-offset // ALIGNMENT) * ALIGNMENT
        result[i] = offset
        placed.append((offset, slot))
        size = max(size, offset + slot.bytes)
    return result, size
