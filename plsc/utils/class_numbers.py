"""One number per class, as weights and image counts: given as an array, or in a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plsc.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np


class ClassNumbers:
    """An array [C] of numbers of 0 or more.

    Args:
        values: an array, a tensor or a sequence.

    Attributes:
        size: C.
        digest: of the numbers.

    Raises:
        ValueError: not one row of finite numbers of 0 or more, one of which is above 0.

    Example:
        >>> ClassNumbers([1.0, 2.5]).size
        2
    """

    def __init__(self, values: Any) -> None:
        import numpy as np  # here, since settings are made without NumPy

        try:
            self.values: np.ndarray[Any, Any] = np.array(values, np.float64)
        except (TypeError, ValueError):
            raise ValueError("expected an array of numbers, one per class, or the path of a file of them") from None
        if self.values.ndim != 1 or not self.values.size:
            raise ValueError(f"expected one number per class, got an array of shape {list(self.values.shape)}")
        wrong = np.flatnonzero(~(np.isfinite(self.values) & (self.values >= 0.0)))
        if wrong.size:
            first = int(wrong[0])
            raise ValueError(f"the number of class {first} is {self.values[first]:g}, expected 0 or more")
        if not self.values.any():
            raise ValueError("all numbers are 0")
        self.size = int(self.values.size)
        self.digest = hashlib.sha256(self.values.tobytes()).hexdigest()[:12]

    @classmethod
    def read(cls, path: str | Path) -> ClassNumbers:
        """The numbers in a file: .npy, or text with one number per line.

        Raises:
            OSError: it cannot be read.
            ValueError: as for the constructor, or it does not hold numbers.
        """
        import numpy as np

        if str(path).endswith(".npy"):
            return cls(np.load(path, allow_pickle=False))
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        values = []
        for number, line in enumerate(lines, 1):
            try:
                values.append(float(line))
            except ValueError:
                raise ValueError(f"line {number} is {line[:40]!r}, expected a number") from None
        return cls(values)

    def __str__(self) -> str:
        return f"{self.size} numbers ({self.digest})"

    __repr__ = __str__


def read_numbers(name: str, given: str | ClassNumbers) -> ClassNumbers:
    """The numbers that the setting `name` gives: the value itself, or those of the file whose path it is.

    Raises:
        ConfigError: the file cannot be read or does not hold such numbers.
    """
    if isinstance(given, ClassNumbers):
        return given
    try:
        return ClassNumbers.read(given)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{name}: {given}: {error}; a file holds one number per class, as .npy or as lines of text"
        ) from None


def numbers_of_classes(name: str, given: str | ClassNumbers, num_classes: int) -> np.ndarray[Any, Any]:
    """[C] float64 of the setting `name`.

    Args:
        name: of the setting, for messages.
        given: its value: the numbers, or the path of a file of them.
        num_classes: C.

    Raises:
        ConfigError: the file cannot be read or does not hold such numbers, or they are not C.
    """
    numbers = read_numbers(name, given)
    if numbers.size != num_classes:
        where = "" if isinstance(given, ClassNumbers) else f" {given}:"
        raise ConfigError(
            f"{name}:{where} {numbers.size} numbers, expected one for each of the {num_classes} classes; "
            f"give {num_classes} numbers, in the order of the class numbers"
        )
    return numbers.values
