"""What counts as a number."""

from __future__ import annotations

import math
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import paddle
import pytest

from plsc.utils.numbers import as_array, as_count, as_number


class Own:
    """A number of a user's own."""

    def __float__(self):
        return 0.5


NUMBERS = [0.5, np.float32(0.5), np.float16(0.5), np.array(0.5), np.array([0.5]), np.longdouble(0.5), Fraction(1, 2)]


@pytest.mark.parametrize("value", [*NUMBERS, Decimal("0.5"), Own(), paddle.to_tensor(0.5), paddle.to_tensor([0.5])])
def test_numbers_of_any_kind(value):
    assert as_number(value) == 0.5
    assert type(as_number(value)) is float


@pytest.mark.parametrize("value", [2, np.int64(2), np.uint8(2), paddle.to_tensor(2)])
def test_integers(value):
    assert as_number(value) == 2.0


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        np.True_,
        "0.5",
        b"0.5",
        1j,
        np.complex64(1),
        [0.5],
        np.array([0.5, 0.5]),
        np.array([]),
        10**400,
        object,
    ],
)
def test_what_is_no_number(value):
    assert math.isnan(as_number(value))


def test_whole_numbers_of_one_or_more():
    for value in (3, np.int8(3), np.uint64(3), np.array(3)):
        assert as_count(value) == 3
    assert as_count(10**30) == sys.maxsize
    for none in (0, -1, 3.0, "3", None, True, [3], math.nan):
        assert as_count(none) is None


def test_arrays_of_any_kind():
    assert as_array([[1, 2], [3, 4]]).shape == (2, 2) and as_array(paddle.ones([2])).tolist() == [1, 1]
    for value in ([[1, 2], [3]], None, Own()):
        assert as_array(value).shape == () and as_array(value).dtype == object
