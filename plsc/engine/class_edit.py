"""A checkpoint with classes left out, merged and renamed, as a cleaning of the identities gives them.

Rows are read and written in blocks, so that memory for a few blocks is enough for any number of classes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.checkpoint import Checkpoint
from plsc.checkpoint.tools import CutRows, SavedRows, as_float64, from_float64, write_as_ranks
from plsc.data.class_identity import ClassIdentity
from plsc.data.sources.string_table import StringTable
from plsc.engine.about import About
from plsc.engine.class_change import about_classes, class_parts, read_classes, rows_of_classes
from plsc.engine.saved_centers import WEIGHT
from plsc.errors import CheckpointError
from plsc.utils.names import did_you_mean
from plsc.utils.plural import counted
from plsc.utils.ranges import Range
from plsc.utils.row_types import SCALE_BYTES, decoded, packed

log = logging.getLogger("plsc")


@dataclass(frozen=True)
class ClassEdit:
    """What was done.

    Attributes:
        path: the folder written.
        before: number of classes of the source.
        after: number of classes of the target.
        dropped: number of classes that were left out.
        merged: number of classes that were merged into another one.
        renamed: number of classes with a new name.
    """

    path: str
    before: int
    after: int
    dropped: int
    merged: int
    renamed: int


def edit_classes(
    source: str | Path,
    target: str | Path,
    *,
    drop: Sequence[str] = (),
    merge: Sequence[Sequence[str]] = (),
    rename: Mapping[str, str] | None = None,
) -> ClassEdit:
    """Write a checkpoint with other classes. The classes that stay keep their order, and are numbered anew.

    The center of merged classes, and each tensor of its optimizer state, is the mean of theirs.

    Args:
        source: a checkpoint, or a folder of checkpoints, of which the newest is taken.
        target: the folder to write; it must not exist.
        drop: the classes to leave out, by name; by number where the checkpoint has no names.
        merge: groups of two classes or more; the first stays and the others become part of it.
        rename: present name -> new name, of classes that stay.

    Raises:
        CheckpointError: a class is not there, is named twice, or a new name is taken; no class would be left; the
            source is damaged, or the target exists or cannot be written.
    """
    saved = Checkpoint(source)
    about = About.of(saved)
    identity = None if about.classes is None else read_classes(saved, about.classes)
    count, names = about.settings.num_classes, _names(identity)
    plan = _Plan(saved, names, count)
    for name in drop:
        plan.take(name, "dropped")
    parts: dict[int, list[int]] = {}
    for group in merge:
        if len(group) < 2:
            raise CheckpointError(f"{saved.path}: got the group {list(group)} to merge, expected two classes or more")
        first = plan.number_of(group[0])
        parts.setdefault(first, [first]).extend(plan.take(name, "merged") for name in group[1:])
    for first in parts:
        plan.check_stays(first, "others are to be merged into it")
    renamed = _rename(plan, rename or {})
    kept = [number for number in range(count) if number not in plan.taken]
    if not kept:
        raise CheckpointError(f"{saved.path}: no class would be left of {counted(count, 'class')}")
    groups = [parts.get(number, [number]) for number in kept]
    edited = _identity_of(identity, kept, renamed)
    tensors: dict[str, CutRows] = {}
    for name in saved.names():
        if name.startswith("classes."):
            continue
        sharded = saved.has_row_per_class(name)
        tensors[name] = _EditedRows(saved, name, groups, count) if sharded else SavedRows(saved, name)
    tensors.update({part.name: _ArrayRows(np.asarray(part.data)) for part in class_parts(edited)})
    settings = {**saved.about["settings"], "num_classes": len(kept)}
    ranks = max(len(saved.parts(name)) for name in saved.names())
    written = write_as_ranks(
        Path(target),
        tensors,
        sharded=lambda name: not name.startswith("classes.") and saved.has_row_per_class(name),
        # How many images the cleaned data has is not known.
        about={**saved.about, "settings": settings, "classes": about_classes(edited), "num_images": None},
        ranks=ranks,
    )
    merged = sum(len(group) - 1 for group in groups)
    return ClassEdit(str(written), count, len(kept), count - len(kept) - merged, merged, len(rename or {}))


def _names(identity: ClassIdentity | None) -> list[str] | None:
    return list(identity.table) if identity is not None and identity.by == "name" else None


class _Plan:
    """The classes by name, and which of them do not stay."""

    def __init__(self, saved: Checkpoint, names: list[str] | None, count: int) -> None:
        self._saved, self.names, self._count = saved, names, count
        self._numbers = {name: number for number, name in enumerate(names or map(str, range(count)))}
        self.taken: dict[int, str] = {}

    def number_of(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            known = "it has no names of classes, expected a number" if self.names is None else "no class has that name"
            hint = did_you_mean(name, self.names or [])
            raise CheckpointError(f"{self._saved.path}: class {name!r}: {known}; {hint}it has {self._classes()}")
        return number

    def take(self, name: str, what: str) -> int:
        """The number of a class that does not stay."""
        number = self.number_of(name)
        if number in self.taken:
            before = self.taken[number]
            raise CheckpointError(f"{self._saved.path}: class {name!r} is to be {what}, and was {before} before")
        self.taken[number] = what
        return number

    def check_stays(self, number: int, why: str) -> None:
        """Refuse what is asked of a class that does not stay; `why` says what that is."""
        if number in self.taken:
            name = str(number) if self.names is None else self.names[number]
            raise self.error(f"class {name!r} is {self.taken[number]}, but {why}; take it out of one of the two")

    def error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self._saved.path}: {text}")

    def _classes(self) -> str:
        return counted(self._count, "class")


def _rename(plan: _Plan, rename: Mapping[str, str]) -> dict[int, str]:
    """The new names by number."""
    if rename and plan.names is None:
        raise plan.error("its classes have no names, so none can be renamed")
    found = {plan.number_of(old): new for old, new in rename.items()}
    for number in found:
        plan.check_stays(number, "it is to be renamed")
    names = [found.get(number, name) for number, name in enumerate(plan.names or []) if number not in plan.taken]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice and rename:
        raise plan.error(f"two classes would have the name {twice[0]!r}; merge them, or choose another name")
    return found


def _identity_of(identity: ClassIdentity | None, kept: list[int], renamed: dict[int, str]) -> ClassIdentity | None:
    if identity is None:
        return None
    if identity.by == "label":
        log.warning(
            "the classes are known by the labels of some images, which change with their numbers: whether classes have "
            "kept their numbers cannot be told of this checkpoint any more"
        )
        return None
    table = list(identity.table)
    strings = [renamed.get(number, table[number]) for number in kept if number < len(table)]
    return ClassIdentity(identity.by, identity.num_images, StringTable(strings), identity.labels)


class _EditedRows:
    """A tensor with a row, or several, for each class, with those of the classes that stay.

    Args:
        saved: the checkpoint.
        name: of the tensor.
        groups: of each class that stays, the classes of the checkpoint whose mean it is.
        count: number of classes of the checkpoint.
        own: the rows, of those of all classes that stay.
    """

    is_view = False

    def __init__(
        self, saved: Checkpoint, name: str, groups: list[list[int]], count: int, own: Range | None = None
    ) -> None:
        self._saved, self._name, self._groups, self._count = saved, name, groups, count
        shape = saved.shape(name)
        self._per_class = shape[0] // count
        self._own = own or Range(0, len(groups) * self._per_class)
        self.shape, self.dtype = [self._own.size, *shape[1:]], saved.dtype(name)

    def cut(self, rows: Range) -> _EditedRows:
        """The same tensor's rows in a range."""
        return _EditedRows(self._saved, self._name, self._groups, self._count, rows)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop)."""
        numbers = np.arange(self._own.start + start, self._own.start + stop)
        classes, within = numbers // self._per_class, numbers % self._per_class
        groups = [self._groups[number] for number in classes.tolist()]
        firsts = np.array([group[0] for group in groups], np.int64)
        found = self._saved.read_rows(self._name, firsts * self._per_class + within)
        merged = [place for place, group in enumerate(groups) if len(group) > 1]
        if merged:
            self._merge(found, merged, groups, within)
        return found

    def _merge(
        self, found: NDArray[Any], merged: list[int], groups: list[list[int]], within: NDArray[np.int64]
    ) -> None:
        every = np.concatenate([rows_of_classes(np.array(groups[place], np.int64)) for place in merged])
        places = np.repeat(merged, [len(groups[place]) for place in merged])
        rows = self._saved.read_rows(self._name, every * self._per_class + within[places])
        is_packed = self.dtype == np.int8 and self._name.startswith(f"{WEIGHT}:")  # state with a scale in each row
        values = as_float64(decoded(rows, rows.shape[-1] - SCALE_BYTES) if is_packed else rows)
        ends = np.cumsum([len(groups[place]) for place in merged])
        for place, own in zip(merged, np.split(values, ends[:-1])):
            mean = own.mean(axis=0)
            found[place] = packed(mean[None])[0] if is_packed else from_float64(mean, self.dtype)


class _ArrayRows:
    """An array."""

    is_view = True

    def __init__(self, values: NDArray[Any]) -> None:
        self._values, self.shape, self.dtype = values, list(values.shape), values.dtype

    def cut(self, rows: Range) -> _ArrayRows:
        """Its rows in a range."""
        return _ArrayRows(self._values[rows.start : rows.stop])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop)."""
        return self._values[start:stop]


def read_class_lists(path: Path, *, columns: int | None) -> list[list[str]]:
    """The lines of a file of class names: columns divided by tabs, or by commas where there is no tab in the line.

    Args:
        path: a text file in UTF-8, with or without a byte order mark; empty lines count for nothing.
        columns: how many each line has; None for two or more; with 1 a line is one name, commas included.

    Raises:
        CheckpointError: the file cannot be read, or a line has another number of columns.
    """
    try:
        text = path.read_text("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror}; expected a text file of class names"
        ) from None
    lines = []
    for number, line in enumerate(text.split("\n"), 1):  # `splitlines` divides at characters that names may have
        if not line.strip():
            continue
        fields = (
            [line.strip()] if columns == 1 else [field.strip() for field in line.split("\t" if "\t" in line else ",")]
        )
        if (len(fields) < 2 if columns is None else len(fields) != columns) or not all(fields):
            expected = "two class names or more" if columns is None else counted(columns, "class name")
            raise CheckpointError(
                f"{path}, line {number}: got {line!r}, expected {expected}, divided by tabs or commas"
            )
        lines.append(fields)
    return lines


def read_new_names(path: Path) -> dict[str, str]:
    """The lines of a file of present names and new ones, as `read_class_lists` reads it.

    Raises:
        CheckpointError: as there, or a class has two new names.
    """
    found: dict[str, str] = {}
    for present, new in read_class_lists(path, columns=2):
        if found.setdefault(present, new) != new:
            raise CheckpointError(
                f"{path}: class {present!r} is to become {found[present]!r} and {new!r}, expected one new name"
            )
    return found
