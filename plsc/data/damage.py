"""Warnings of images that are damaged but can be decoded in part: each image once, and a bounded number of lines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

from plsc.errors import DataError
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

_MOST_NAMED = 20


def refuse(damage: str) -> None:
    """Make a damaged image an unreadable one: what is called on damage in a strict mode.

    Raises:
        DataError: always.
    """
    raise DataError(f"the image is damaged, a part of its pixels may be wrong: {damage}")


class DamageLog:
    """Warns of the first 20 damaged images by name and counts the others.

    Args:
        describe: the place of an image in words, from its key.

    Attributes:
        count: number of different images so far.

    Example:
        >>> damaged = DamageLog(records.describe)
        >>> damaged.warn(7, "Corrupt JPEG data: premature end of data segment")
        >>> damaged.count
        1
    """

    def __init__(self, describe: Callable[[Any], str] = str) -> None:
        self._describe = describe
        self._seen: set[Hashable] = set()
        self._counted = 0

    @property
    def count(self) -> int:
        return len(self._seen)

    def warn(self, key: Hashable, damage: str) -> None:
        """Warn of an image, unless it was warned of before.

        Args:
            key: an index, a path.
            damage: what is wrong.
        """
        if key in self._seen:
            return
        self._seen.add(key)
        if self.count <= _MOST_NAMED:
            log.warning("%s: damaged, a part of its pixels may be wrong: %s", self._describe(key), damage)
        elif self.count == _MOST_NAMED + 1:
            log.warning("more images are damaged; they are counted and not named (plsc data inspect names them)")

    def summarize(self) -> None:
        """Log the number of damaged images, unless it is 0 or was logged before."""
        if self.count > self._counted:
            log.warning("%s so far, a part of whose pixels may be wrong", counted(self.count, "damaged image"))
        self._counted = self.count
