"""Ranges and shards: disjoint, complete, balanced."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from plsc.utils.ranges import Range, shard_range, shard_ranges


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_shards_hold_every_item_once_in_order(count, shards):
    ranges = shard_ranges(count, shards)
    assert [item for r in ranges for item in range(r.start, r.stop)] == list(range(count))
    assert max(r.size for r in ranges) - min(r.size for r in ranges) <= 1


def test_more_shards_than_items_leave_the_last_ones_empty():
    assert [shard_range(3, 4, shard=shard).size for shard in range(4)] == [1, 1, 1, 0]


@given(*[st.integers(0, 50)] * 4)
def test_overlap_is_the_set_of_common_integers(a, b, c, d):
    one, other = Range(min(a, b), max(a, b)), Range(min(c, d), max(c, d))
    common = set(range(*one)) & set(range(*other))
    overlap = one.overlap(other)
    assert set(range(*overlap)) == common
    assert overlap.size == len(common)


def test_a_shift_moves_both_ends():
    assert Range(3, 7).shift(-3) == Range(0, 4)
