"""Half-open ranges of integers, and how a range is divided into shards.

`count` items are divided in order: the first `count mod shards` shards hold one item more than the others. Any number
of items is divided over any number of shards; where there are fewer items than shards, the last shards are empty.
"""

from __future__ import annotations

from typing import NamedTuple


class Range(NamedTuple):
    """The integers start, ..., stop - 1.

    Example:
        >>> Range(2, 5).overlap(Range(4, 9))
        Range(start=4, stop=5)
    """

    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many integers there are."""
        return self.stop - self.start

    def overlap(self, other: Range) -> Range:
        """The integers in both ranges; a range of size 0 where there are none."""
        start = max(self.start, other.start)
        return Range(start, max(start, min(self.stop, other.stop)))

    def shift(self, offset: int) -> Range:
        """The range with `offset` added to both ends."""
        return Range(self.start + offset, self.stop + offset)


def shard_range(count: int, shards: int, *, shard: int) -> Range:
    """The items of one shard.

    Args:
        count: number of items, 0 or more.
        shards: number of shards, 1 or more.
        shard: index of the shard, 0 to shards - 1.

    Example:
        >>> shard_range(10, 4, 0), shard_range(10, 4, 3)
        (Range(start=0, stop=3), Range(start=8, stop=10))
    """
    base, extra = divmod(count, shards)
    start = shard * base + min(shard, extra)
    return Range(start, start + base + (shard < extra))


def shard_ranges(count: int, shards: int) -> list[Range]:
    """The items of every shard, in order: disjoint ranges that together hold all `count` items."""
    return [shard_range(count, shards, shard=shard) for shard in range(shards)]
