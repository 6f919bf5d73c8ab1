"""Parts of a source: some records in a given order, classes left out and the rest renumbered."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from plsc.data.records import Record, Records
from plsc.errors import DataError

log = logging.getLogger("plsc")


class SelectedRecords:
    """Records of another source, chosen by index; nothing is copied.

    Args:
        records: the source.
        indices: [m], which records, in order; twice is allowed.
        classes: [K] classes of the source, ascending: they become 0 ... K - 1, and where the source does not name them
            their old numbers become their names. By default classes stay as they are.

    Raises:
        DataError: an index out of range, or a chosen record of a class that `classes` lacks.
    """

    def __init__(self, records: Records, indices: Sequence[int], classes: Sequence[int] | None = None) -> None:
        self._records, self._indices = records, np.asarray(indices, np.int64)
        if not len(self._indices):
            raise DataError(f"nothing is left of {records.format} with {len(records)} images")
        if self._indices.min() < 0 or self._indices.max() >= len(records):
            raise DataError(
                f"records {self._indices.min()} to {self._indices.max()} were chosen, expected 0 to {len(records) - 1}"
            )
        self.labels = labels_of(records)[self._indices]
        names = getattr(records, "class_names", None)
        self.num_classes, self.class_names = records.num_classes, names
        if classes is not None:
            check_labels(self, self.labels)
            classes = np.asarray(classes, np.int64)
            places = np.searchsorted(classes, self.labels)
            lost = np.flatnonzero(classes[np.minimum(places, len(classes) - 1)] != self.labels)
            if lost.size:
                raise DataError(
                    f"record {self._indices[lost[0]]} is of class {self.labels[lost[0]]}, which is not "
                    f"among the {len(classes)} chosen"
                )
            self.labels, self.num_classes = places, len(classes)
            self.class_names = [names[old] if names else str(old) for old in classes]

    @property
    def root(self) -> Path | None:
        """The folder that was walked for the source, if one was."""
        return getattr(self._records, "root", None)

    @property
    def format(self) -> str:
        return f"{len(self._indices)} of {len(self._records)} images of {self._records.format}"

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return Record(self._records[int(self._indices[index])].image, int(self.labels[index]))

    def describe(self, index: int) -> str:
        return self._records.describe(int(self._indices[index]))


def labels_of(records: Records) -> np.ndarray:
    """The class of every record, [n] int64; where the source does not know them, every record is read once."""
    labels = getattr(records, "labels", None)
    if labels is None:
        reading = tqdm(range(len(records)), "reading labels", disable=None, leave=False)
        labels = np.asarray([records[index].label for index in reading], np.int64)
    return labels


def check_labels(records: Records, labels: np.ndarray) -> None:
    """Hold the labels [n] against the number of classes that the source says it has.

    Raises:
        DataError: one is beyond it.
    """
    if records.num_classes and labels.max() >= records.num_classes:
        index = int(labels.argmax())
        raise DataError(
            f"{records.describe(index)}: label {labels[index]} is out of range, expected 0 to "
            f"{records.num_classes - 1}: the set says that it has {records.num_classes} classes"
        )


def with_min_images(records: Records, min_images: int) -> Records:
    """The source without classes of fewer than `min_images` images; the rest are renumbered in order.

    With 1, only classes without any image go. The source itself where nothing goes.
    """
    labels = labels_of(records)
    present, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    is_kept = counts >= max(1, min_images)
    if is_kept.all() and len(present) == records.num_classes:
        return records
    if not is_kept.any():
        raise DataError(f"no class has {min_images} images or more; the largest has {counts.max()}")
    selected = SelectedRecords(records, np.flatnonzero(is_kept[places.reshape(-1)]), present[is_kept])
    log.info(
        "left out %d of %d classes with fewer than %d images, and with them %d of %d images; classes are renumbered",
        records.num_classes - selected.num_classes,
        records.num_classes,
        max(1, min_images),
        len(records) - len(selected),
        len(records),
    )
    return selected


def split_identities(records: Records, held_out: float, seed: int = 0) -> tuple[SelectedRecords, SelectedRecords]:
    """Two parts without a common class, each renumbered from 0.

    Args:
        records: the source.
        held_out: under 1 the share of the classes, else their number, that the second part gets.
        seed: 0 or more; the same classes are held out for the same seed and class count.

    Raises:
        DataError: neither a share nor a whole number, or either part would have no class.
    """
    labels = labels_of(records)
    present = np.unique(labels)
    if not (0 < held_out < 1 or float(held_out).is_integer()):
        raise DataError(f"held_out={held_out}: expected a share between 0 and 1, or a whole number of classes")
    number = round(held_out * len(present)) if held_out < 1 else int(held_out)
    if not 0 < number < len(present):
        raise DataError(f"held_out={held_out} of {len(present)} classes is {number}, expected 1 to {len(present) - 1}")
    chosen = np.sort(np.random.default_rng(seed).permutation(present)[:number])
    is_held_out = np.isin(labels, chosen)
    return (
        SelectedRecords(records, np.flatnonzero(~is_held_out), np.setdiff1d(present, chosen)),
        SelectedRecords(records, np.flatnonzero(is_held_out), chosen),
    )


def without_classes_of(records: Records, other: Records) -> SelectedRecords:
    """The records whose class does not occur in `other`: by name where both name their classes, else by number.

    A part of a set without names has the whole's numbers as names, so it is told from the whole and from other parts.
    Names that are numbers are compared as numbers: 5 is 05.
    """
    labels, other_labels = labels_of(records), labels_of(other)
    check_labels(records, labels)
    check_labels(other, other_labels)
    present, taken = np.unique(labels).tolist(), np.unique(other_labels).tolist()
    names, others = getattr(records, "class_names", None), getattr(other, "class_names", None)
    if (names or others) and all(name.isdecimal() for name in (*(names or ()), *(others or ()))):
        there = {int(others[place]) if others else place for place in taken}
        taken = [place for place in present if (int(names[place]) if names else place) in there]
    elif names and others:
        there = {others[place] for place in taken}
        taken = [place for place in present if names[place] in there]
    else:
        log.info("the sets do not both name their classes, so the same class number is taken for the same class")
    is_left = ~np.isin(labels, taken)
    left_out = len(present) - len(np.unique(labels[is_left]))
    log.log(
        logging.INFO if left_out else logging.WARNING,
        "%d of %d classes occur in the other set and are left out%s",
        left_out,
        len(present),
        "" if left_out else ": none has a name that the other has as well",
    )
    if not is_left.any():
        raise DataError(f"every class of {records.format} occurs in {other.format}: no identity is left")
    return SelectedRecords(records, np.flatnonzero(is_left), np.unique(labels[is_left]))


def shuffled(records: Records, seed: int = 0) -> SelectedRecords:
    """All records in an order drawn from `seed`: sixteen bytes of memory an image."""
    return SelectedRecords(records, np.random.default_rng(seed).permutation(len(records)))
