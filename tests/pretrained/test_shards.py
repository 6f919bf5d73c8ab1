"""Shards joined to one tensor."""

from __future__ import annotations

import numpy as np
import pytest

from plsc import CheckpointError
from plsc.pretrained.shards import JoinedRows, check_ranks, check_sizes
from plsc.pretrained.tensors import StoredTensor
from plsc.utils.ranges import Range


@pytest.mark.parametrize("sizes", [(3, 3, 2), (1, 5), (4,), (2, 0, 3)])
def test_any_rows_of_any_shards(sizes):
    whole = np.arange(sum(sizes) * 3, dtype="f8").reshape(-1, 3)
    ends = np.cumsum(sizes)
    joined = JoinedRows([StoredTensor(whole[end - size : end]) for size, end in zip(sizes, ends)])
    assert joined.shape == list(whole.shape) and joined.dtype == np.float32
    for start in range(len(whole)):
        for stop in range(start + 1, len(whole) + 1):
            np.testing.assert_array_equal(joined.read(start, stop), whole[start:stop])
            part = joined.cut(Range(start, stop))
            assert part.shape == [stop - start, 3]
            np.testing.assert_array_equal(part.read(0, 1), whole[start : start + 1])


def test_a_bias_has_one_axis():
    joined = JoinedRows([StoredTensor(np.float32([1, 2])), StoredTensor(np.float32([3]))])
    assert joined.shape == [3]
    np.testing.assert_array_equal(joined.read(1, 3), [2, 3])


def test_shards_of_other_columns_are_refused():
    with pytest.raises(CheckpointError, match=r"rows of \[\[3\], \[4\]\], expected the same of all"):
        JoinedRows([StoredTensor(np.ones([2, 3])), StoredTensor(np.ones([2, 4]))])


def test_sizes_of_one_run():
    for sizes in [(3, 3, 2, 2), (1, 0, 0), (5,), (2, 2)]:
        check_sizes(sizes, by="evenly")
    for sizes in [(4, 4, 2), (3, 3, 3), (5,), (4, 1)]:
        check_sizes(sizes, by="rounded up")
    for sizes, by in [((3, 2, 3), "evenly"), ((4, 4, 2), "evenly"), ((4, 3, 4), "rounded up"), ((2, 3), "rounded up")]:
        with pytest.raises(CheckpointError, match="of one run do not have together; give all files of one run"):
            check_sizes(sizes, by=by)


def test_ranks_that_are_missing_are_named():
    check_ranks([2, 0, 1], what="files")
    with pytest.raises(CheckpointError, match="files of rank 1, 3 is missing"):
        check_ranks([0, 2, 4], what="files")
