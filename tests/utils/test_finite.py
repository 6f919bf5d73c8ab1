"""The first number that is not finite."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from plsc.utils.finite import find_nonfinite


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape, index", [((), ()), ((5,), (4,)), ((700, 600), (500, 7)), ((2, 3, 4), (1, 0, 3))])
def test_the_first_is_found_with_its_place(dtype, bad, shape, index):
    array = np.ones(shape, dtype)
    assert find_nonfinite(array) is None
    array[index] = bad
    if shape:
        array[-1] = np.where(np.isfinite(array[-1]), array[-1], bad)
    found, value = find_nonfinite(array)
    assert found == index
    np.testing.assert_equal(value, bad)


def test_large_numbers_are_finite_unless_a_limit_is_given():
    array = np.array([[1.0, 2.0], [-1e30, 1.0]], np.float32)
    assert find_nonfinite(array) is None
    index, value = find_nonfinite(array, 1e19)
    assert index == (1, 0) and value == pytest.approx(-1e30)


def test_bfloat16_comes_as_its_bits():
    bits = np.array([1.0, -2.0, np.inf, np.nan], np.float32).view(np.uint32) >> 16
    assert find_nonfinite(bits.astype(np.uint16)) == ((2,), np.inf)
    assert find_nonfinite(bits[:2].astype(np.uint16)) is None


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_whole_numbers_are_finite(dtype):
    assert find_nonfinite(np.ones([3], dtype)) is None


def test_no_large_temporary_is_made():
    array = np.ones([1 << 22], np.float32)
    array[-1] = np.nan
    tracemalloc.start()
    assert find_nonfinite(array)[0] == (len(array) - 1,)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < array.nbytes / 3
