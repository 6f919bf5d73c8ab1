"""Class ranges: disjoint, complete, balanced."""

from hypothesis import given
from hypothesis import strategies as st

from plsc.utils.ranges import Range, shard_range, shard_ranges


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_shards_cover_all_classes_once_in_order(classes, shards):
    ranges = shard_ranges(classes, shards)
    assert [c for r in ranges for c in range(r.start, r.stop)] == list(range(classes))
    assert max(r.size for r in ranges) - min(r.size for r in ranges) <= 1


def test_more_shards_than_classes_leave_the_last_ones_empty():
    assert [shard_range(3, 4, shard).size for shard in range(4)] == [1, 1, 1, 0]


@given(*[st.integers(0, 50)] * 4)
def test_overlap_is_the_set_of_common_classes(a, b, c, d):
    one, other = Range(min(a, b), max(a, b)), Range(min(c, d), max(c, d))
    common = set(range(*one)) & set(range(*other))
    overlap = one.overlap(other)
    assert set(range(*overlap)) == common
    assert overlap.size == len(common)
