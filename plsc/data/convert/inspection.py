"""What is in a data set: counts, sizes, damaged images; as numbers, and as pictures."""

from __future__ import annotations

import collections
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from plsc.data.encoding import encode, suffix_of
from plsc.data.records import Records
from plsc.data.subset import labels_of
from plsc.data.transforms import decode, resize
from plsc.errors import DataError
from plsc.utils.lazy import require
from plsc.utils.threads import thread_map


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        format: what kind of source it is.
        images: n.
        classes: C, as the source says.
        empty_classes: classes without an image.
        images_per_class: least, median, mean and most over the classes that have images.
        looked_at: images decoded for what follows.
        encodings: how many images of each kind: jpg, png, ..., or pixels.
        sizes: the commonest (width, height, images), most first, ten at most.
        damaged: images that cannot be decoded: where they are and what is wrong, a hundred at most.
        num_damaged: how many there are.
        damage: what is wrong with the set as a whole, such as a file cut off or labels beyond C; or None.
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

    def __str__(self) -> str:
        least, median, mean, most = self.images_per_class
        lines = [
            f"format            {self.format}",
            f"images            {self.images}",
            f"classes           {self.classes}"
            + (f", {self.empty_classes} of them without an image" if self.empty_classes else ""),
            f"images per class  {least} to {most}, median {median:g}, mean {mean:.1f}",
            f"looked at         {self.looked_at} images: "
            + ", ".join(f"{count} {kind}" for kind, count in self.encodings.items()),
            "width x height    " + ", ".join(f"{width} x {height} ({count})" for width, height, count in self.sizes),
            f"damaged images    {self.num_damaged}",
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
        limit: decode no more than so many images, evenly spread; by default all.
    """
    labels = labels_of(records)
    present, counts = np.unique(labels, return_counts=True)
    chosen = np.unique(np.linspace(0, len(records) - 1, min(limit or len(records), len(records))).astype(np.int64))
    encodings: dict[str, int] = collections.Counter()
    sizes: dict[tuple[int, int], int] = collections.Counter()
    damaged: list[str] = []
    num_damaged = 0
    looks = thread_map(lambda index: _look(records, int(index)), chosen)
    for index, (encoding, size, fault) in zip(chosen, tqdm(looks, "decoding", len(chosen), disable=None, leave=False)):
        if fault is not None:
            num_damaged += 1
            if len(damaged) < 100:
                damaged.append(f"{records.describe(int(index))}: {fault}")
            continue
        encodings[encoding] += 1
        sizes[size] += 1
    common = [(width, height, count) for (height, width), count in sizes.most_common(10)]
    damage = getattr(records, "damage", None)
    beyond = np.flatnonzero(labels >= records.num_classes)
    if beyond.size:
        damage = "; ".join(
            [damage] * bool(damage)
            + [
                f"{beyond.size} labels are beyond the {records.num_classes} classes that the set states, the first "
                f"{labels[beyond[0]]} at {records.describe(int(beyond[0]))}"
            ]
        )
    return Inspection(
        records.format,
        len(records),
        records.num_classes,
        records.num_classes - int((present < records.num_classes).sum()),
        (int(counts.min()), float(np.median(counts)), float(counts.mean()), int(counts.max())),
        len(chosen),
        dict(encodings),
        common,
        damaged,
        num_damaged,
        damage,
    )


def plot(records: Records, prefix: str | Path, seed: int = 0) -> list[Path]:
    """Save `<prefix>-classes.png`, a histogram of images per class, and `<prefix>-images.png`, a contact sheet of
    eight images of each of ten classes.

    Raises:
        DataError, MissingDependencyError: see `plot_files`.
    """
    paths = plot_files(prefix)
    labels = labels_of(records)
    present, counts = np.unique(labels, return_counts=True)
    figure_of = require("matplotlib.figure", "matplotlib", "plotting")
    figure = figure_of.Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    step = -(-int(counts.max() - counts.min() + 1) // 50)
    axes.hist(counts, bins=np.arange(counts.min(), counts.max() + step + 1, step) - 0.5, color="#3b6ea5")
    axes.set_xlim(counts.min() - 0.5 - step, counts.max() + 0.5 + step)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(
        xlabel="images per class",
        ylabel="classes",
        yscale="log" if len(present) > 1000 else "linear",
        title=f"{len(records)} images, {len(present)} classes",
    )
    rng = np.random.default_rng(seed)
    chosen = rng.choice(present, min(10, len(present)), replace=False)
    sheet = np.full((len(chosen) * 100, 800, 3), 255, np.uint8)
    for row, label in enumerate(np.sort(chosen)):
        for column, index in enumerate(np.flatnonzero(labels == label)[:8]):
            top, left = row * 100 + 2, column * 100 + 2
            sheet[top : top + 96, left : left + 96] = _thumbnail(records, int(index))
    try:
        figure.savefig(paths[0], dpi=150)
        paths[1].write_bytes(encode(sheet))
    except OSError as error:
        raise DataError(f"{prefix}: the pictures cannot be written: {error.strerror}") from None
    return paths


def plot_files(prefix: str | Path) -> list[Path]:
    """The files that `plot` writes.

    Raises:
        DataError: one exists, or its folder does not or cannot be written to.
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib.figure", "matplotlib", "plotting")
    paths = [Path(f"{prefix}-classes.png"), Path(f"{prefix}-images.png")]
    for path in paths:
        if path.exists():
            raise DataError(f"{path} exists already; nothing is overwritten: choose another name")
        if not path.parent.is_dir():
            raise DataError(f"{path}: there is no folder {path.parent}; make it first")
        if not os.access(path.parent, os.W_OK):
            raise DataError(f"{path}: the folder {path.parent} cannot be written to; choose another")
    return paths


def _look(records: Records, index: int) -> tuple[str, tuple[int, int], str | None]:
    try:
        image: Any = records[index].image
        encoding = "pixels" if isinstance(image, np.ndarray) else suffix_of(image, ".other")[1:]
        return encoding, decode(image).shape[:2], None
    except DataError as error:
        return "", (0, 0), str(error)


def _thumbnail(records: Records, index: int) -> np.ndarray:
    try:
        return resize(decode(records[index].image), 96, 96)
    except DataError:
        return np.full((96, 96, 3), (255, 0, 0), np.uint8)
