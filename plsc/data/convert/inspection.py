"""What a data set holds: counts, sizes and damaged images, as numbers and as pictures."""

from __future__ import annotations

import collections
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plsc.data.images import decode, encode, resize, suffix_of
from plsc.data.records import Records
from plsc.errors import DataError
from plsc.utils.files import check_has_folder
from plsc.utils.lazy import require
from plsc.utils.logging import progress_bar
from plsc.utils.plural import counted
from plsc.utils.threads import thread_map

# The contact sheet: classes, images of each class, pixels of a tile and of the image in it.
_SHEET_ROWS, _SHEET_COLUMNS, _TILE, _THUMBNAIL = 10, 8, 100, 96
_MOST_DAMAGED = 100  # named one by one
_MOST_BARS = 50  # of the histogram


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect`.

    Attributes:
        format: the kind of source.
        images: n.
        classes: C, as the source states it.
        empty_classes: number of classes without an image.
        images_per_class: minimum, median, mean and maximum over the classes that have images.
        looked_at: number of images decoded for the fields below.
        encodings: number of images by kind: jpg, png, ..., or pixels.
        sizes: the most frequent (width, height, number of images), the most frequent first, 10 at most.
        damaged: for each image that cannot be decoded, or only in part, where it is and what is wrong; 100 at most.
        num_damaged: number of such images.
        num_unreadable: number of those that cannot be decoded.
        damage: what is wrong with the whole set, for example a file cut short or labels beyond C; or None.
    """

    format: str
    images: int
    classes: int
    empty_classes: int
    images_per_class: tuple[int, float, float, int]
    looked_at: int
    encodings: dict[str, int]
    sizes: list[tuple[int, int, int]]
    damaged: list[str]
    num_damaged: int
    damage: str | None
    num_unreadable: int = 0

    def __str__(self) -> str:
        least, median, mean, most = self.images_per_class
        empty = f", {self.empty_classes} of them without an image" if self.empty_classes else ""
        encodings = ", ".join(f"{count} {kind}" for kind, count in self.encodings.items())
        sizes = ", ".join(f"{width} x {height} ({count})" for width, height, count in self.sizes)
        unreadable = f", {self.num_unreadable} of them unreadable" if self.num_damaged else ""
        lines = [
            f"format            {self.format}",
            f"images            {self.images}",
            f"classes           {self.classes}{empty}",
            f"images per class  {least} to {most}, median {median:g}, mean {mean:.1f}",
            f"looked at         {counted(self.looked_at, 'image')}: {encodings}",
            f"width x height    {sizes}",
            f"damaged images    {self.num_damaged}{unreadable}",
            *(f"  {line}" for line in self.damaged),
        ]
        if self.num_damaged > len(self.damaged):
            lines.append(f"  and {self.num_damaged - len(self.damaged)} more")
        if self.damage:
            lines.append(f"DAMAGED           {self.damage}")
        return "\n".join(lines)


def inspect(records: Records, limit: int | None = None) -> Inspection:
    """Count a source and decode its images.

    Args:
        records: the source.
        limit: the largest number of images to decode, evenly spread; by default all.

    Example:
        >>> inspect(open_records("faces")).num_damaged
        0
    """
    labels = records.labels
    present, counts = np.unique(labels, return_counts=True)
    chosen = np.unique(np.linspace(0, len(records) - 1, min(limit or len(records), len(records))).astype(np.int64))
    encodings: collections.Counter[str] = collections.Counter()
    sizes: collections.Counter[tuple[int, int]] = collections.Counter()
    damaged: list[str] = []
    num_damaged = num_unreadable = 0
    looks = thread_map(lambda index: _look(records, int(index)), chosen)
    for index, (encoding, size, fault) in zip(chosen, progress_bar(looks, "decoding", total=len(chosen), leave=False)):
        if encoding:
            encodings[encoding] += 1
            sizes[size] += 1
        else:
            num_unreadable += 1
        if fault is not None:
            num_damaged += 1
            if len(damaged) < _MOST_DAMAGED:
                damaged.append(f"{records.describe(int(index))}: {fault}")
    return Inspection(
        format=records.format,
        images=len(records),
        classes=records.count_classes(),
        empty_classes=records.count_classes() - int((present < records.count_classes()).sum()),
        images_per_class=(int(counts.min()), float(np.median(counts)), float(counts.mean()), int(counts.max())),
        looked_at=len(chosen),
        encodings=dict(encodings),
        sizes=[(width, height, count) for (height, width), count in sizes.most_common(10)],
        damaged=damaged,
        num_damaged=num_damaged,
        num_unreadable=num_unreadable,
        damage=_damage(records, labels),
    )


def _damage(records: Records, labels: np.ndarray) -> str | None:
    """What is wrong with the whole set, or None."""
    faults = [records.damage]
    beyond = np.flatnonzero(labels >= records.count_classes())
    if beyond.size:
        faults.append(
            f"{counted(beyond.size, 'label')} beyond the {counted(records.count_classes(), 'class')} that the set "
            f"states, the first {labels[beyond[0]]} at {records.describe(int(beyond[0]))}"
        )
    return "; ".join(fault for fault in faults if fault) or None


def plot(records: Records, prefix: str | Path, *, seed: int = 0) -> list[Path]:
    """Save `<prefix>-classes.png`, a histogram of images per class, and `<prefix>-images.png`, a contact sheet.

    The contact sheet has eight images of each of ten classes; an image that cannot be decoded is a red tile.

    Args:
        records: the source.
        prefix: path and beginning of the files' names.
        seed: chooses the ten classes, 0 or more.

    Returns:
        The two files.

    Raises:
        DataError: as for `plot_files`; or the pictures cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    paths = plot_files(prefix)
    labels = records.labels
    figure = _histogram(labels)
    sheet = _contact_sheet(records, labels, seed=seed)
    try:
        figure.savefig(paths[0], dpi=150)
        paths[1].write_bytes(encode(sheet))
    except OSError as error:
        raise DataError(f"{prefix}: the pictures cannot be written: {error.strerror}") from None
    return paths


def plot_files(prefix: str | Path) -> list[Path]:
    """The files that `plot` writes; raises what can be found wrong before the images are read.

    Raises:
        DataError: a file exists, or its folder does not exist or cannot be written to.
        MissingDependencyError: matplotlib is not installed.
    """
    _require_matplotlib()
    paths = [Path(f"{prefix}-classes.png"), Path(f"{prefix}-images.png")]
    for path in paths:
        if path.exists():
            raise DataError(f"{path} exists already; nothing is overwritten: choose another name")
        check_has_folder(path, DataError)
        if not os.access(path.parent, os.W_OK):
            raise DataError(f"{path}: the folder {path.parent} cannot be written to; choose another")
    return paths


def _histogram(labels: np.ndarray) -> Any:
    """A matplotlib figure of the number of classes by their number of images."""
    present, counts = np.unique(labels, return_counts=True)
    figure = _require_matplotlib().Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    step = -(-int(counts.max() - counts.min() + 1) // _MOST_BARS)
    axes.hist(counts, bins=np.arange(counts.min(), counts.max() + step + 1, step) - 0.5, color="#3b6ea5")
    axes.set_xlim(counts.min() - 0.5 - step, counts.max() + 0.5 + step)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(
        xlabel="images per class",
        ylabel="classes",
        yscale="log" if len(present) > 1000 else "linear",
        title=f"{counted(len(labels), 'image')}, {counted(len(present), 'class')}",
    )
    return figure


def _contact_sheet(records: Records, labels: np.ndarray, *, seed: int) -> np.ndarray:
    """Pixels [H, W, 3] uint8 RGB: a row of images for each of some classes."""
    present, margin = np.unique(labels), (_TILE - _THUMBNAIL) // 2
    chosen = np.random.default_rng(seed).choice(present, min(_SHEET_ROWS, len(present)), replace=False)
    sheet = np.full((len(chosen) * _TILE, _SHEET_COLUMNS * _TILE, 3), 255, np.uint8)
    for row, label in enumerate(np.sort(chosen)):
        for column, index in enumerate(np.flatnonzero(labels == label)[:_SHEET_COLUMNS]):
            top, left = row * _TILE + margin, column * _TILE + margin
            sheet[top : top + _THUMBNAIL, left : left + _THUMBNAIL] = _thumbnail(records, int(index))
    return sheet


def _look(records: Records, index: int) -> tuple[str, tuple[int, int], str | None]:
    """(encoding, (height, width), what is wrong or None) of an image; ("", (0, 0), what is wrong) if unreadable."""
    faults: list[str] = []
    try:
        image: Any = records[index].image
        encoding = "pixels" if isinstance(image, np.ndarray) else suffix_of(image, ".other")[1:]
        height, width = decode(image, on_damage=faults.append).shape[:2]
        return encoding, (height, width), f"damaged, can be decoded in part: {faults[0]}" if faults else None
    except DataError as error:
        return "", (0, 0), str(error)


def _thumbnail(records: Records, index: int) -> np.ndarray:
    try:
        return resize(decode(records[index].image), (_THUMBNAIL, _THUMBNAIL))
    except DataError:
        return np.full((_THUMBNAIL, _THUMBNAIL, 3), (255, 0, 0), np.uint8)


def _require_matplotlib() -> Any:
    return require("matplotlib.figure", "matplotlib", purpose="plotting")
