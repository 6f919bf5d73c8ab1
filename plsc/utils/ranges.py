"""Which rank owns which classes: half-open ranges of integers, and nothing else.

C classes are dealt to R shards in order. The first C mod R shards hold one class more than the
rest, so any C works over any R; with C < R the last shards are empty, which is legal everywhere.
"""

from __future__ import annotations

from typing import NamedTuple


class Range(NamedTuple):
    """The classes start, ..., stop - 1."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def overlap(self, other: Range) -> Range:
        """The classes in both ranges; of size 0 where there are none."""
        start = max(self.start, other.start)
        return Range(start, max(start, min(self.stop, other.stop)))


def shard_range(num_classes: int, num_shards: int, shard: int) -> Range:
    """The classes of one shard.

    Args:
        num_classes: C, 0 or more.
        num_shards: R, 1 or more.
        shard: 0 to R - 1.
    """
    base, extra = divmod(num_classes, num_shards)
    start = shard * base + min(shard, extra)
    return Range(start, start + base + (shard < extra))


def shard_ranges(num_classes: int, num_shards: int) -> list[Range]:
    """The classes of every shard, in order: disjoint, and together all C classes."""
    return [shard_range(num_classes, num_shards, shard) for shard in range(num_shards)]
