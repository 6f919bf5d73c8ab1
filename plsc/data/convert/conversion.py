"""From any source to any format: every sample once, in order, whole or not at all, and on from where it stopped."""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from plsc.data.alignment import TEMPLATE_SIZE, align
from plsc.data.convert.resumable import alone, finish, resume, write_note
from plsc.data.convert.writers import SINKS, Plan
from plsc.data.encoding import encode
from plsc.data.recordio import MAX_LABEL
from plsc.data.records import Record, Records, open_records
from plsc.data.subset import check_labels, labels_of, split_identities
from plsc.data.transforms import decode, resize
from plsc.errors import ConfigError, DataError
from plsc.utils.lazy import require
from plsc.utils.threads import thread_map

log = logging.getLogger("plsc")

_SECONDS_BETWEEN_NOTES = 60
_OR_SKIP = ", or with --skip-bad-images (skip_bad_images=True) to leave such images out"


class Converted(NamedTuple):
    """What a conversion did.

    Attributes:
        target: the folder written.
        images: samples in it.
        skipped: the unreadable ones left out.
    """

    target: Path
    images: int
    skipped: int


class Redraw:
    """What a conversion does to each image; nothing by default, so that bytes are copied as they are.

    Args:
        image_size: pixels of the new side: square.
        landmarks: [n, 5, 2], for each record: align it to the 112 x 112 template, or `image_size`.
        encoding: "jpg" or "png", also to re-encode images that are not drawn anew; by default jpg for those that are,
            and png, which loses nothing, for those that the source has as pixels.
        quality: of JPEG, 1 to 100.
    """

    def __init__(
        self,
        image_size: int | None = None,
        landmarks: np.ndarray | None = None,
        encoding: str | None = None,
        quality: int = 95,
    ) -> None:
        if encoding not in (None, "jpg", "png"):
            raise ConfigError(f"encoding: got {encoding!r}, expected 'jpg' or 'png'")
        if not 1 <= quality <= 100 or (image_size or 1) < 1:
            raise ConfigError(f"got quality {quality} and size {image_size}, expected 1 to 100, and 1 or more")
        self.image_size, self.landmarks, self.encoding, self.quality = image_size, landmarks, encoding, quality

    def draw(self, index: int, image: Any) -> Any:
        """The pixels of record `index` as they are to be; the image itself where nothing is to be done."""
        if self.landmarks is not None:
            return align(decode(image), self.landmarks[index], self.image_size or TEMPLATE_SIZE)
        if self.image_size is not None:
            return resize(decode(image), self.image_size, self.image_size)
        return image if self.encoding is None else decode(image)

    def encode(self, image: Any) -> bytes:
        """Pixels as JPEG or PNG; encoded bytes as they are."""
        is_redrawn = self.landmarks is not None or self.image_size is not None
        if isinstance(image, bytes) or (self.encoding or ("jpg" if is_redrawn else "png")) == "png":
            return encode(image)
        return encode(image, ".jpg", (cv2.IMWRITE_JPEG_QUALITY, self.quality))

    def describe(self) -> list[Any]:
        marks = None if self.landmarks is None else zlib.crc32(np.ascontiguousarray(self.landmarks).data)
        return [self.image_size, marks, self.encoding, self.quality]


def convert(
    records: Records,
    target: str | Path,
    to: str,
    redraw: Redraw | None = None,
    parts: int = 1,
    skip_bad_images: bool = False,
    every: int = 10_000,
) -> Converted:
    """Write `records` as another format into the folder `target`.

    The work is done in `<target>.partial`, which takes the name `target` when it is whole. Called again after an
    interruption, with the same source and options, it goes on where it last noted how far it was: at every minute,
    every `every` samples, and where an image stopped it.

    Args:
        records: the source.
        target: a folder that does not exist.
        to: rec, list, folders, base64, tar, csv, parquet or npy.
        redraw: align, resize or re-encode; by default encoded images keep their bytes.
        parts: files to spread the samples over in equal shares (base64, tar).
        skip_bad_images: leave out images that cannot be decoded, with a warning each, instead of stopping. A
            conversion that has stopped can go on so.
        every: samples between two notes of how far the work is, at most.

    Raises:
        DataError: the target exists or lies within the class folders that are read, another conversion was begun
            there, or a sample cannot be read or written.
        ConfigError: an unknown format, or parts out of range.
    """
    target, redraw = Path(target), redraw or Redraw()
    labels = _check(records, target, to, parts)
    plan = Plan(len(records), records.num_classes, getattr(records, "class_names", None), parts)
    job = {
        "to": to,
        "images": len(records),
        "classes": records.num_classes,
        "parts": parts,
        "redraw": redraw.describe(),
        "first": records.describe(0),
        "last": records.describe(len(records) - 1),
        "labels": zlib.crc32(labels.data),
    }
    workspace = target.with_name(target.name + ".partial")
    with alone(workspace):
        done = resume(workspace, job)
        sink = SINKS[to](workspace, plan, done["position"])

        def read(number: int) -> Record:
            record = records[number]
            image = redraw.draw(number, record.image)
            # Also of bytes that go over as they are: no set is handed on with an image that is none.
            pixels = decode(image)
            return Record(pixels if to == "npy" else redraw.encode(image), record.label)

        noted = time.monotonic()
        for result in tqdm(
            thread_map(_caught(read), range(done["index"], len(records))),
            f"{target.name}: {to}",
            len(records),
            initial=done["index"],
            unit="images",
            disable=None,
        ):
            if isinstance(result, DataError) and skip_bad_images:
                log.warning("left out: %s: %s", records.describe(done["index"]), result)
                done["skipped"] += 1
            else:
                try:
                    if isinstance(result, DataError):
                        raise result
                    sink.write(done["written"], result)
                except DataError as error:
                    _note(done, workspace, sink)
                    otherwise = _OR_SKIP if error is result else ""
                    raise DataError(
                        f"{records.describe(done['index'])}: {error}; {done['written']} images are done, "
                        f"in {workspace}: mend it and run the same again to go on{otherwise}"
                    ) from None
                done["written"] += 1
            done["index"] += 1
            if done["index"] % every == 0 or time.monotonic() - noted > _SECONDS_BETWEEN_NOTES:
                _note(done, workspace, sink)
                noted = time.monotonic()
        if not done["written"]:
            raise DataError(f"none of the {len(records)} images could be read: nothing is written to {target}")
        sink.close()
        if plan.class_names:
            (workspace / "classes.txt").write_text("".join(f"{name}\n" for name in plan.class_names), encoding="utf-8")
        finish(workspace, target)
    return Converted(target, done["written"], done["skipped"])


def _note(done: dict[str, Any], workspace: Path, sink: Any) -> None:
    if done["written"]:
        write_note(workspace, {**done, "position": sink.position()})


def convert_split(
    records: Records, target: str | Path, to: str, held_out: float, seed: int = 0, **options: Any
) -> list[Converted]:
    """Write `target/train` and `target/held_out`, which share no class; see `split_identities` and `convert`.

    Both lie in `<target>.partial` until the second is whole; run again, it goes on.
    """
    target = Path(target)
    _check_target(records, target)
    workspace, done = target.with_name(target.name + ".partial"), []
    parts = split_identities(records, held_out, seed)
    job = {
        "held_out": held_out,
        "seed": seed,
        "to": to,
        "images": len(records),
        "last": records.describe(len(records) - 1),
        "labels": zlib.crc32(np.ascontiguousarray(labels_of(records))),
    }
    with alone(workspace):
        resume(workspace, job, keeps=("train", "train.partial", "held_out", "held_out.partial"))
        for name, part in zip(("train", "held_out"), parts):
            if (workspace / name).exists():
                found = len(open_records(workspace / name))
                done.append(Converted(target / name, found, len(part) - found))
            else:
                done.append(convert(part, workspace / name, to, **options)._replace(target=target / name))
        finish(workspace, target)
    return done


def _caught(function: Callable[[int], Any]) -> Callable[[int], Any]:
    def call(item: int) -> Any:
        try:
            return function(item)
        except DataError as error:
            return error

    return call


def _check(records: Records, target: Path, to: str, parts: int) -> np.ndarray:
    if to not in SINKS:
        raise ConfigError(f"format {to!r} is unknown, expected one of {', '.join(SINKS)}")
    if not 1 <= parts <= len(records):
        raise ConfigError(f"got {parts} parts, expected 1 to {len(records)}, the number of images")
    if parts > 1 and to not in ("base64", "tar"):
        raise ConfigError(f"format {to!r} has no parts; only base64 and tar do")
    _check_target(records, target)
    if to == "parquet":
        require("pyarrow", "pyarrow", "writing Parquet files")
    labels = labels_of(records)
    check_labels(records, labels)
    present = np.unique(labels)
    if to == "rec" and present[-1] > MAX_LABEL:
        index = int(labels.argmax())
        raise DataError(
            f"{records.describe(index)}: label {labels[index]} is beyond {MAX_LABEL}, to which RecordIO's "
            f"float32 labels are exact; choose another format"
        )
    _check_names(getattr(records, "class_names", None) or ())
    if to == "folders" and len(present) < records.num_classes:
        raise DataError(
            f"{records.num_classes - len(present)} of {records.num_classes} classes have no image, and "
            f"class folders cannot hold them: read back, classes would have other numbers. Choose another "
            f"format, or renumber them first with --min-images 1 (with_min_images)"
        )
    return np.ascontiguousarray(labels)


def _check_target(records: Records, target: Path) -> None:
    if os.path.lexists(target):
        raise DataError(f"{target} exists already; nothing is overwritten: choose a folder that does not exist")
    root = getattr(records, "root", None)
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
