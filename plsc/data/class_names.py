"""The names of classes, and the numbers in training of the classes of other data."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable

import numpy as np

from plsc.data.records import Labels, Records
from plsc.data.sources.string_table import StringTable
from plsc.errors import DataError
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

_MOST_NAMED = 5  # unknown classes in a message
LEFT_OUT = -1
"""In the place of the class of an image that is left out."""


class ClassNames:
    """The names of classes 0 to C - 1. Those without a name are known by their number. Takes the memory of the text.

    Args:
        names: of the first classes, or None where no class has a name.

    Example:
        >>> names = ClassNames(StringTable(["ann", "bob"]))
        >>> names[1], names[7]
        ('bob', '7')
    """

    def __init__(self, names: StringTable | None = None) -> None:
        self.table = names

    def __getitem__(self, number: int) -> str:
        """The name of a class."""
        return self.table[number] if self.table is not None and 0 <= number < len(self.table) else str(number)


def match_labels(
    records: Records, names: StringTable | None, *, num_classes: int, what: str, leave_out: bool = False
) -> Labels:
    """The number in training of the class of each record, [n] int64.

    Classes are matched by name where both sides have names, and by number where neither has. A side without names
    matches names that are numbers, as '7' or '007'.

    Args:
        records: the data.
        names: of the classes in training; None where they have none.
        num_classes: C, of training.
        what: the data, for messages.
        leave_out: records of classes that are not in training get `LEFT_OUT`, with a warning.

    Raises:
        DataError: without `leave_out`, a class is not in training; a record has a label beyond the classes of `records`
            ; one side has names and the other has not; a name that is needed stands for several classes; or no record
            is there or left.
    """
    if not len(records.labels):
        raise DataError(f"{what}: no image; give validation data with images of the classes of training")
    records.check_labels()
    present = np.unique(records.labels)
    texts = None if not records.class_names else [records.class_names[label] for label in present.tolist()]
    found = _find(present, texts, names, num_classes=num_classes, what=what)
    unknown = np.flatnonzero(found == LEFT_OUT)
    if unknown.size:
        shown = [repr(texts[place]) if texts else str(present[place]) for place in unknown[:_MOST_NAMED].tolist()]
        listed = f"{', '.join(shown)}{' and others' if unknown.size > len(shown) else ''}"
        is_unknown = np.isin(records.labels, present[unknown])
        if not leave_out or is_unknown.all():
            raise DataError(
                f"{what}: got {counted(int(unknown.size), 'class')} of {len(present)} that the training data has not: "
                f"{listed}; leave their {counted(int(is_unknown.sum()), 'image')} out, or rename "
                f"them as in training"
            )
        log.warning(
            "%s: left out %s of %s that training has left out: %s",
            what,
            counted(int(is_unknown.sum()), "image"),
            counted(int(unknown.size), "class"),
            listed,
        )
    matched: Labels = found[np.searchsorted(present, records.labels)]
    return matched


def _find(
    present: Labels, texts: list[str] | None, names: StringTable | None, *, num_classes: int, what: str
) -> Labels:
    """The number in training of each class that is present, or `LEFT_OUT`."""
    if texts is None and names is None:
        return np.where(present < num_classes, present, LEFT_OUT)
    if texts is None or names is None:
        named = texts if names is None else names
        if not all(name.isdecimal() for name in named or ()):
            sides = ("the training data", what) if texts is None else (what, "the training data")
            raise DataError(
                f"{what}: its classes cannot be matched with those of training: {sides[0]} names its classes, and "
                f"{sides[1]} numbers them; name the classes of both, as by class folders or a classes.txt"
            )
        if names is None:
            return np.array([int(text) if int(text) < num_classes else LEFT_OUT for text in texts or ()], np.int64)
        texts, names = [str(label) for label in present.tolist()], StringTable(str(int(name)) for name in names)
    return _by_name(texts, itertools.islice(names, num_classes), what)


def _by_name(texts: list[str], names: Iterable[str], what: str) -> Labels:
    wanted = dict.fromkeys(texts, LEFT_OUT)  # of the data alone: training may have millions of classes
    for number, name in enumerate(names):
        if name in wanted:
            if wanted[name] != LEFT_OUT:
                raise DataError(
                    f"{what}: its class {name!r} is the name of the classes {wanted[name]} and {number} of training; "
                    f"classes are matched by name, so rename one of them"
                )
            wanted[name] = number
    return np.array([wanted[text] for text in texts], np.int64)
