"""Numbers that are not finite, which are neither saved nor loaded."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from plsc.errors import CheckpointError
from plsc.utils.finite import find_nonfinite


class NotFiniteError(CheckpointError):
    """A number to save or to load is not finite."""


def check_finite(name: str, array: NDArray[Any], *, first_row: int = 0) -> None:
    """Refuse a tensor that holds a number that is not finite.

    Args:
        name: for the message.
        array: [rows, ...].
        first_row: index in the global tensor of the first row.

    Raises:
        NotFiniteError: names the tensor, the row and the number.
    """
    found = find_nonfinite(array)
    if found is not None:
        index, value = found
        where = f" in row {first_row + index[0]}" if index else ""
        raise NotFiniteError(f"{name} holds {value:g}{where}, expected finite numbers; use an earlier checkpoint")
