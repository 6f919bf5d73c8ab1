"""Parts of a source: chosen records in a given order, with some classes left out and the rest renumbered."""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import numpy.typing as npt

from plsc.data.records import Record, Records
from plsc.errors import DataError
from plsc.utils.hints import setter
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

_HELD_OUT = 0x686F6C64  # makes the draw of `hold_out` another one than others of the same seed


class SelectedRecords(Records):
    """Records of another source, chosen by index. Nothing is copied.

    Args:
        records: the source.
        indices: [m], the records in order; an index may occur twice.
        classes: classes of the source in ascending order, which are renumbered from 0. If the source does not name its
            classes, their old numbers become their names. By default classes keep their numbers.

    Raises:
        DataError: no index, an index out of range, or a chosen record of a class that is not in `classes`.

    Example:
        >>> part = SelectedRecords(open_records("synthetic:10:200"), [3, 13, 5], classes=[3, 5])
        >>> part.labels.tolist(), part.class_names
        ([0, 0, 1], ['3', '5'])
    """

    def __init__(self, records: Records, indices: npt.ArrayLike, *, classes: npt.ArrayLike | None = None) -> None:
        self._records, self._indices = records, np.asarray(indices, np.int64)
        if not len(self._indices):
            raise DataError(f"nothing is left of {records.format} with {counted(len(records), 'image')}")
        if self._indices.min() < 0 or self._indices.max() >= len(records):
            raise DataError(
                f"records {self._indices.min()} to {self._indices.max()} were chosen, expected 0 to {len(records) - 1}"
            )
        self.format = f"{len(self._indices)} of {counted(len(records), 'image')} of {records.format}"
        self.root, self.uses_global_random = records.root, records.uses_global_random
        self.labels = records.labels[self._indices]
        self.num_classes, self.class_names = records.num_classes, records.class_names
        if classes is not None:
            names = records.class_names
            self.check_labels()
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

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return Record(self._records[int(self._indices[index])].image, int(self.labels[index]))

    def describe(self, index: int) -> str:
        return self._records.describe(int(self._indices[index]))

    def path_of(self, index: int) -> str | None:
        return self._records.path_of(int(self._indices[index]))


def with_min_images(records: Records, min_images: int) -> Records:
    """The source without classes of fewer than `min_images` images; the other classes are renumbered in order.

    Args:
        records: the source.
        min_images: 1 leaves out only the classes without any image.

    Returns:
        A part of the source, or the source itself where no class is left out.

    Raises:
        DataError: there are no images, or no class has as many.
    """
    if not len(records):
        raise DataError(f"{records.format}: there are no images, expected at least one")
    num_classes = records.count_classes()
    present, places, counts = np.unique(records.labels, return_inverse=True, return_counts=True)
    is_kept = counts >= max(1, min_images)
    if is_kept.all() and len(present) == num_classes:
        return records
    if not is_kept.any():
        raise DataError(f"no class has {min_images} images or more; the largest has {counts.max()}")
    selected = SelectedRecords(records, np.flatnonzero(is_kept[places.reshape(-1)]), classes=present[is_kept])
    log.info(
        "left out %d of %s with fewer than %s, and with them %d of %s; classes are renumbered",
        num_classes - selected.count_classes(),
        counted(num_classes, "class"),
        counted(max(1, min_images), "image"),
        len(records) - len(selected),
        counted(len(records), "image"),
    )
    return selected


def split_identities(records: Records, held_out: float, *, seed: int = 0) -> tuple[SelectedRecords, SelectedRecords]:
    """Two parts without a common class, each renumbered from 0: the rest, and the classes held out.

    Args:
        records: the source.
        held_out: the share of the classes to hold out where less than 1, else the number of classes.
        seed: 0 or more; equal seeds hold out the same classes of the same number of classes.

    Raises:
        DataError: `held_out` is neither a share nor a whole number, or one part would have no class.
    """
    labels = records.labels
    present = np.unique(labels)
    if not (0 < held_out < 1 or float(held_out).is_integer()):
        raise DataError(f"held_out={held_out}: expected a share between 0 and 1, or a whole number of classes")
    number = round(held_out * len(present)) if held_out < 1 else int(held_out)
    if not 0 < number < len(present):
        raise DataError(
            f"held_out={held_out} of {counted(len(present), 'class')} is {number}, expected 1 to {len(present) - 1}"
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(present)[:number])
    is_held_out = np.isin(labels, chosen)
    return (
        SelectedRecords(records, np.flatnonzero(~is_held_out), classes=np.setdiff1d(present, chosen)),
        SelectedRecords(records, np.flatnonzero(is_held_out), classes=chosen),
    )


def without_classes_of(records: Records, other: Records) -> SelectedRecords:
    """The records whose class does not occur in `other`. The classes are renumbered from 0.

    Classes are compared by name where both sources name them, else by number. A part of a source without names has the
    numbers of the whole as names, so that its classes are found in the whole and in other parts. Names that are numbers
    are compared as numbers: 5 equals 05.

    Raises:
        DataError: no record is left, or a source has a label beyond its number of classes.
    """
    labels = records.labels
    records.check_labels()
    other.check_labels()
    present, taken = np.unique(labels).tolist(), np.unique(other.labels).tolist()
    names, others = records.class_names, other.class_names
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
        "left out %d of %s%s",
        left_out,
        counted(len(present), "class"),
        ", in the other set too" if left_out else ": the two sets have no class name in common",
    )
    if not is_left.any():
        raise DataError(f"every class of {records.format} occurs in {other.format}: no identity is left")
    return SelectedRecords(records, np.flatnonzero(is_left), classes=np.unique(labels[is_left]))


def shuffled(records: Records, seed: int = 0) -> SelectedRecords:
    """All records in an order drawn from `seed`. Takes sixteen bytes of memory per image."""
    return SelectedRecords(records, np.random.default_rng(seed).permutation(len(records)))


class TrainingPart(SelectedRecords):
    """The records that are left to train on, with those that are held out for validation.

    Attributes:
        held_out: the others, with the same class numbers.
        digest: of which records are held out: the same for the same choice out of as many records.
    """

    def __init__(self, records: Records, is_held_out: npt.NDArray[np.bool_]) -> None:
        super().__init__(records, np.flatnonzero(~is_held_out))
        self.held_out = SelectedRecords(records, np.flatnonzero(is_held_out))
        self.digest = hashlib.sha256(np.packbits(is_held_out).tobytes()).hexdigest()


def hold_out(records: Records, share: float, *, seed: int = 0) -> TrainingPart:
    """Hold a share of each class's records out; at least one of each class stays in training.

    Of a class with n records, share * n are held out, rounded to the nearest whole number, and n - 1 at most. Which
    ones depends on the seed and the labels alone: not on ranks, and not on how long training has gone on.

    Args:
        records: the source. Its labels are read.
        share: over 0, below 1.
        seed: 0 or more.

    Raises:
        DataError: no class is large enough for a record to be held out.
    """
    labels = records.labels
    counts = np.bincount(labels)
    number = np.minimum(np.floor(share * counts + 0.5).astype(np.int64), np.maximum(counts - 1, 0))
    if not number.any():
        raise DataError(
            f"val_split {share:g}: no image can be held out: the largest class of {records.format} has "
            f"{counted(int(counts.max()), 'image')}; {setter('val_split')} takes a larger share, or give validation "
            f"data of its own: {setter('val_dataset_dir')}"
        )
    order = np.lexsort((np.random.default_rng([seed, _HELD_OUT]).random(len(labels)), labels))
    place = np.empty(len(labels), np.int64)  # of each record in its class, in an order that is drawn
    place[order] = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]
    is_held_out = place < number[labels]
    part = TrainingPart(records, is_held_out)
    present = counts > 0
    without = int((number[present] == 0).sum())
    log.info(
        "held out %s of %s for validation, at least one of each class%s",
        len(part.held_out),
        counted(len(records), "image"),
        f" but {without} of {counted(int(present.sum()), 'class')}, too small for it" if without else "",
    )
    return part
