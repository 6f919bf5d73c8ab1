"""What tells the classes of a data set apart, for a run that resumes on data that may have changed since.

A class is known by its name where the source has names: class folders, tables of names, `classes.txt`. Without names
only the images can say that class 5 is still the same class. No image is read for that. Where images have paths, as in
a list, each class is known by the path of its first image: the path may be gone later, but it must not turn up in
another class. Elsewhere the labels of records at fixed places are kept; they are compared as long as the number of
images is the same or the data has only been added to at its end.

So data that only grew is never taken for other data, and some changes cannot be seen: of unnamed classes without paths,
new numbers together with a new order of the images; of any, images that were replaced under the same name.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from plsc.data.records import Labels, Records
from plsc.data.sources.string_table import StringTable
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

_MOST_LABELS = 4096  # records whose labels are kept

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class ClassIdentity:
    """What tells the classes of a data set apart.

    Attributes:
        by: 'name', 'image' (the path of a class's first image) or 'label' (the labels of some records).
        num_images: n, of the data set.
        table: C names, or paths relative to the data's folder, '' for a class without an image; empty by label.
        labels: [k] int64, of the records that `sample_places(n)` gives; empty but by label.
    """

    by: Literal["name", "image", "label"]
    num_images: int
    table: StringTable
    labels: Labels

    @property
    def digest(self) -> str:
        """Of all attributes, the number of images only by label: the same for the same classes."""
        digest = hashlib.sha256(self.by.encode())
        for values in (self.table.text, self.table.ends, self.labels):
            digest.update(np.ascontiguousarray(values).tobytes() + b"|")
        if self.by == "label":
            digest.update(str(self.num_images).encode())
        return digest.hexdigest()

    def arrays(self) -> Arrays:
        """The tensors from which `from_arrays` makes the same identity."""
        if self.by == "label":
            return {"labels": self.labels}
        return {"text": self.table.text, "ends": self.table.ends}

    @classmethod
    def from_arrays(
        cls, by: Literal["name", "image", "label"], num_images: int, *, arrays: Mapping[str, npt.NDArray[Any]]
    ) -> ClassIdentity:
        """The identity whose `arrays` these are."""
        if by == "label":
            return cls(by, num_images, StringTable([]), arrays["labels"])
        return cls(by, num_images, StringTable.from_arrays(arrays["text"], arrays["ends"]), _NO_LABELS)


_NO_LABELS: Labels = np.zeros([0], np.int64)


def identify_classes(records: Records, folder: str) -> ClassIdentity | None:
    """The identity of the classes of a source, without reading an image; None where only images would tell.

    Args:
        records: the source.
        folder: of the data; cut off from paths, so that the data may be moved.
    """
    count = len(records)
    if records.class_names:
        return ClassIdentity("name", count, StringTable(records.class_names[: records.num_classes]), _NO_LABELS)
    labels = records.known_labels()
    if labels is not None and records.path_of(0) is not None:
        paths = ("" if first < 0 else _path(records, first, folder) for first in _first_of_each(labels))
        return ClassIdentity("image", count, StringTable(paths), _NO_LABELS)
    sampled = records.labels_at(sample_places(count))
    return None if sampled is None else ClassIdentity("label", count, StringTable([]), sampled)


def sample_places(count: int) -> npt.NDArray[np.int64]:
    """The records of `count` whose labels are kept: all of them, or some, evenly spread."""
    kept = min(count, _MOST_LABELS)
    return np.arange(kept, dtype=np.int64) * count // max(kept, 1)


def find_change(before: ClassIdentity, now: ClassIdentity, *, records: Records, folder: str) -> str | None:
    """What shows that class numbers mean other classes than before; None where nothing shows it.

    Args:
        before: of the data that was trained on.
        now: of `records`.
        records: the source now.
        folder: as for `identify_classes`.

    Returns:
        The first difference with both sides, and how many there are.
    """
    if before.digest == now.digest:
        return None
    before, now = _as_names(before, now), _as_names(now, before)
    if before.by == now.by == "name":
        return _changed_names(before, now)
    if before.by == now.by == "image":
        return _moved_images(before, now, records, folder)
    if before.by == now.by == "label":
        return _changed_labels(before, records)
    log.info(
        "classes were known by %s and are known by %s now: whether their numbers have changed cannot be told",
        before.by,
        now.by,
    )
    return None


def rows_by_name(before: ClassIdentity, now: ClassIdentity) -> npt.NDArray[np.int64] | str:
    """The number before of each class that is named now, [C] int64, -1 for a new name; or why names do not match."""
    before, now = _as_names(before, now), _as_names(now, before)
    if before.by != "name" or now.by != "name":
        return "not both have names"
    names, others = list(before.table), list(now.table)
    number_of = {name: number for number, name in enumerate(names)}
    if len(number_of) < len(names) or len(set(others)) < len(others):
        return "several classes have the same name"
    return np.fromiter((number_of.get(name, -1) for name in others), np.int64, len(others))


def _as_names(identity: ClassIdentity, other: ClassIdentity) -> ClassIdentity:
    """Names that are all numbers without leading zeros; unnamed classes by their numbers where the others are such.

    A part of a source without names has the numbers of the whole as names, see `SelectedRecords`.
    """
    if identity.by == "name":
        names = list(identity.table)
        if all(name.isdecimal() for name in names):
            return _named(map(str, map(int, names)), identity)
    elif other.by == "name" and all(name.isdecimal() for name in other.table):
        return _named(map(str, range(len(other.table))), identity)
    return identity


def _named(names: Iterator[str], identity: ClassIdentity) -> ClassIdentity:
    return ClassIdentity("name", identity.num_images, StringTable(names), _NO_LABELS)


def _changed_names(before: ClassIdentity, now: ClassIdentity) -> str | None:
    # Names that were added at the end, or are gone there, change no other class's number.
    changed = [(number, old, new) for number, (old, new) in enumerate(zip(before.table, now.table)) if old != new]
    if not changed:
        return None
    number, old, new = changed[0]
    return (
        f"class {number} was {old!r} and is {new!r} now; changed are {len(changed)} of "
        f"{counted(len(before.table), 'class name')}"
    )


def _moved_images(before: ClassIdentity, now: ClassIdentity, records: Records, folder: str) -> str | None:
    """Images that were the first of a class and are in another class now."""
    pairs = enumerate(zip(before.table, now.table))
    sought = {old: number for number, (old, new) in pairs if old and old != new}
    sought.update({old: number for number, old in enumerate(before.table) if number >= len(now.table) and old})
    classes: dict[str, set[int]] = {}  # of the images that are sought
    for index, label in enumerate(records.labels.tolist() if sought else ()):
        path = _path(records, index, folder)
        if path in sought:
            classes.setdefault(path, set()).add(label)
    moved = [(sought[path], min(found), path) for path, found in classes.items() if sought[path] not in found]
    if not moved:
        return None
    number, label, path = min(moved)
    return (
        f"{path!r} was in class {number} and is in class {label} now; in another class are {len(moved)} "
        f"of {counted(len(before.table), 'image')} that stood first in their class"
    )


def _changed_labels(before: ClassIdentity, records: Records) -> str | None:
    places = sample_places(before.num_images)
    if len(records) < before.num_images:
        return None  # which records are gone is not known
    found = records.labels_at(places)
    changed = np.flatnonzero(found != before.labels) if found is not None else _NO_LABELS
    if found is None or not changed.size:
        return None
    if len(records) > before.num_images:
        log.warning(
            "the data has grown, and not at its end: whether classes have kept their numbers cannot be told, because "
            "they have no names"
        )
        return None
    first = int(changed[0])
    return (
        f"{records.describe(int(places[first]))} was in class {before.labels[first]} and is in class {found[first]} "
        f"now; changed are {len(changed)} of {counted(len(places), 'compared label')}"
    )


def _first_of_each(labels: Labels) -> list[int]:
    """The index of the first record of each class, -1 for a class without one."""
    first = np.full([int(labels.max()) + 1], -1, np.int64)
    first[labels[::-1]] = np.arange(len(labels), dtype=np.int64)[::-1]
    indices: list[int] = first.tolist()
    return indices


def _path(records: Records, index: int, folder: str) -> str:
    return (records.path_of(index) or "").removeprefix(f"{folder}/")
