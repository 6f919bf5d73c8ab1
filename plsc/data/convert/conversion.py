"""Conversion of any source to any format: every sample once, in order; complete or not at all; resumable."""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plsc.data.convert.preprocessing import Preprocessing
from plsc.data.convert.resumable import ResumableFolder, resumable_folder
from plsc.data.convert.writers import WRITERS, Plan, Writer
from plsc.data.damage import DamageLog, refuse
from plsc.data.images import decode
from plsc.data.records import Record, Records
from plsc.data.sources import open_records
from plsc.data.subset import split_identities
from plsc.errors import ConfigError, DataError, StorageError
from plsc.utils.hints import argument
from plsc.utils.logging import progress_bar
from plsc.utils.plural import counted
from plsc.utils.threads import thread_map

log = logging.getLogger("plsc")

_SECONDS_BETWEEN_NOTES = 60


class Converted(NamedTuple):
    """The result of a conversion.

    Attributes:
        target: the folder written.
        images: number of samples in it.
        skipped: number of unreadable images left out.
        damaged: number of samples whose image is damaged but can be decoded in part.
    """

    target: Path
    images: int
    skipped: int
    damaged: int = 0


def convert(
    records: Records,
    target: str | Path,
    *,
    to: str,
    preprocessing: Preprocessing | None = None,
    parts: int = 1,
    skip_bad_images: bool = False,
    strict_images: bool = False,
    every: int = 10_000,
) -> Converted:
    """Write `records` as another format into the folder `target`.

    The work is done in `<target>.partial`, which is renamed to `target` when it is complete. Progress is noted every
    minute, every `every` samples, and where an image stops the conversion. After an interruption, a call with the same
    source and options continues from the last note.

    Args:
        records: the source.
        target: a folder that does not exist.
        to: the format: rec, list, folders, base64, tar, csv, parquet, npy, or another that `register_writer` added.
        preprocessing: align, resize or re-encode the images. By default encoded images keep their bytes.
        parts: number of files to spread the samples over in equal shares (base64, tar).
        skip_bad_images: leave out images that cannot be decoded, with a warning each, instead of stopping. A
            conversion that stopped may be continued with this.
        strict_images: an image that is damaged but can be decoded in part counts as one that cannot be decoded. By
            default it is written, with a warning.
        every: largest number of samples between two notes.

    Raises:
        DataError: the target exists or lies in the class folders that are read, `<target>.partial` holds another
            conversion, or a sample cannot be read or written.
        StorageError: the system cannot read a sample; also with `skip_bad_images`.
        ConfigError: the format is unknown, or `parts` is out of range.
        MissingDependencyError: the format needs a package that is not installed.

    Example:
        >>> convert(open_records("faces/label.txt"), "faces-rec", to="rec")
        Converted(target=PosixPath('faces-rec'), images=60, skipped=0, damaged=0)
    """
    target, preprocessing = Path(target), preprocessing or Preprocessing()
    labels = _check(records, target, to=to, parts=parts)
    class_names = records.class_names
    # The keys are those that notes of earlier versions hold.
    job = {
        "to": to,
        "images": len(records),
        "classes": records.count_classes(),
        "parts": parts,
        "redraw": preprocessing.describe(),
        "first": records.describe(0),
        "last": records.describe(len(records) - 1),
        "labels": zlib.crc32(labels.data),
    }
    with resumable_folder(target, job) as output:
        progress = output.progress
        plan = Plan(len(records), records.count_classes(), class_names, parts)
        writer = WRITERS[to](output.path, plan, position=progress.position)
        copy = _Copy(
            records,
            writer,
            output=output,
            preprocessing=preprocessing,
            skip_bad_images=skip_bad_images,
            strict_images=strict_images,
        )
        copy.run(every, f"{target.name}: {to}")
        if not progress.written:
            raise DataError(f"of {counted(len(records), 'image')} none could be read: nothing is written to {target}")
        writer.close()
        if class_names:
            names = "".join(f"{name}\n" for name in class_names)
            (output.path / "classes.txt").write_text(names, encoding="utf-8")
        output.finish()
    return Converted(target, progress.written, progress.skipped, progress.damaged)


class _Sample(NamedTuple):
    """A record as it is written, and what is wrong with its image if that is damaged."""

    record: Record
    damage: str | None


class _Copy:
    """The samples that a conversion still has to write, and how each is read and written."""

    def __init__(
        self,
        records: Records,
        writer: Writer,
        *,
        output: ResumableFolder,
        preprocessing: Preprocessing,
        skip_bad_images: bool,
        strict_images: bool,
    ) -> None:
        self._records, self._writer, self._output = records, writer, output
        self._preprocessing, self._skips, self._is_strict = preprocessing, skip_bad_images, strict_images
        self._damaged = DamageLog(records.describe)

    def run(self, every: int, title: str) -> None:
        """Read on threads, write in order, and note the progress."""
        progress, count = self._output.progress, len(self._records)
        samples = thread_map(self._read, range(progress.index, count))
        noted = time.monotonic()
        for sample in progress_bar(samples, title, total=count, initial=progress.index, unit="images"):
            self._write(sample)
            progress.index += 1
            if progress.index % every == 0 or time.monotonic() - noted > _SECONDS_BETWEEN_NOTES:
                self._note()
                noted = time.monotonic()

    def _read(self, index: int) -> _Sample | DataError | StorageError:
        faults: list[str] = []
        on_damage = refuse if self._is_strict else faults.append
        try:
            record = self._records[index]
            image = self._preprocessing.apply(index, record.image, on_damage=on_damage)
            # Images that are copied as bytes are decoded as well, so that no unreadable image gets into the new set.
            pixels = decode(image, on_damage=on_damage)
            written = pixels if self._writer.takes_pixels else self._preprocessing.encode(image)
            return _Sample(Record(written, record.label), faults[0] if faults else None)
        except (DataError, StorageError) as error:
            return error

    def _write(self, sample: _Sample | DataError | StorageError) -> None:
        progress = self._output.progress
        if isinstance(sample, DataError) and self._skips:
            log.warning("left out: %s: %s", self._records.describe(progress.index), sample)
            progress.skipped += 1
            return
        if isinstance(sample, StorageError):
            self._note()
            raise StorageError(
                f"{sample}; done so far: {counted(progress.written, 'image')}, in {self._output.path}: run the same "
                f"command again to continue"
            )
        try:
            if isinstance(sample, DataError):
                raise sample
            self._writer.write(progress.written, sample.record)
        except DataError as error:
            self._note()
            leave_out = (
                f", or with {argument('skip_bad_images', True)} to leave such images out" if error is sample else ""
            )
            raise DataError(
                f"{self._records.describe(progress.index)}: {error}; done so far: "
                f"{counted(progress.written, 'image')}, in "
                f"{self._output.path}: fix the image and run the same command again to continue{leave_out}"
            ) from None
        progress.written += 1
        if sample.damage is not None:
            progress.damaged += 1
            self._damaged.warn(progress.index, sample.damage)

    def _note(self) -> None:
        if self._output.progress.written:
            self._output.note(self._writer.position())


def convert_split(
    records: Records,
    target: str | Path,
    *,
    to: str,
    held_out: float,
    seed: int = 0,
    parts: int = 1,
    skip_bad_images: bool = False,
    strict_images: bool = False,
) -> list[Converted]:
    """Write `target/train` and `target/held_out`, which have no class in common.

    Both are written in `<target>.partial`, which is renamed to `target` when the second is complete. After an
    interruption, a call with the same source and options continues.

    Args:
        records: the source.
        target: a folder that does not exist.
        to: the format, as for `convert`.
        held_out: classes to hold out: below 1 a share of the classes, else a number of classes.
        seed: 0 or more. The same seed holds out the same classes.
        parts: as for `convert`.
        skip_bad_images, strict_images: as for `convert`.

    Raises:
        DataError: as for `convert`; or one of the two sets would have no class.
        ConfigError: as for `convert`.

    Example:
        >>> train, held_out = convert_split(records, "parts", to="rec", held_out=0.1)
    """
    target, done = Path(target), []
    _check_target(records, target)
    subsets = dict(zip(("train", "held_out"), split_identities(records, held_out, seed=seed)))
    job = {
        "held_out": held_out,
        "seed": seed,
        "to": to,
        "images": len(records),
        "last": records.describe(len(records) - 1),
        "labels": zlib.crc32(np.ascontiguousarray(records.labels).data),
    }
    with resumable_folder(target, job, keep=[*subsets, *(f"{name}.partial" for name in subsets)]) as output:
        for name, subset in subsets.items():
            folder = output.path / name
            if folder.exists():
                found = len(open_records(folder))
                done.append(Converted(target / name, found, len(subset) - found))
            else:
                made = convert(
                    subset,
                    folder,
                    to=to,
                    parts=parts,
                    skip_bad_images=skip_bad_images,
                    strict_images=strict_images,
                )
                done.append(made._replace(target=target / name))
        output.finish()
    return done


def _check(records: Records, target: Path, *, to: str, parts: int) -> np.ndarray:
    """Raise what can be found wrong before the work; returns the labels [n]."""
    if to not in WRITERS:
        raise ConfigError(f"format {to!r} is unknown, expected one of {', '.join(WRITERS)}; see {argument('to')}")
    if not 1 <= parts <= len(records):
        raise ConfigError(
            f"got {parts} parts, expected 1 to {len(records)}, the number of images; see {argument('parts')}"
        )
    if parts > 1 and not WRITERS[to].has_parts:
        able = " and ".join(name for name, writer in WRITERS.items() if writer.has_parts)
        raise ConfigError(f"format {to!r} has no parts, only {able} have; leave {argument('parts')} out")
    _check_target(records, target)
    labels = np.ascontiguousarray(records.labels)
    records.check_labels()
    _check_names(records.class_names or ())
    WRITERS[to].check(records, labels)
    return labels


def _check_target(records: Records, target: Path) -> None:
    if os.path.lexists(target):
        raise DataError(f"{target} exists already; nothing is overwritten: choose a folder that does not exist")
    root = records.root
    if root is not None and Path(root).resolve() in target.resolve().parents:
        raise DataError(
            f"{target} lies within the class folders of {root}, where it would be taken for a class; "
            f"choose a folder elsewhere"
        )


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if "\n" in name or "\r" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise DataError(
                f"the class name {name!r} holds a line break or is not UTF-8, so classes.txt cannot hold "
                f"it; rename that class first"
            )
