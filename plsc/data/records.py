"""What a record is, and the sources that yield records.

A source is anything with `len(source)` and `source[i] -> Record`: it hands out *encoded* bytes or
decoded pixels and never transforms them. Sources open files lazily and can be pickled or forked,
because worker processes index them.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import re
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from plsc.errors import DataError

log = logging.getLogger("plsc")

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


class Record(NamedTuple):
    """One labeled image.

    Attributes:
        image: encoded file bytes (JPEG, PNG, ...), or decoded pixels [H, W, 3] uint8 RGB.
        label: the class, 0 to C - 1.
    """

    image: bytes | np.ndarray
    label: int


class Records(Protocol):
    """A random-access source of records.

    Attributes:
        num_classes: C; at least one more than the largest label.
        format: what kind of source it is, in words.

    A source that knows all classes without reading the images has them as `labels`, [n] int64; one whose classes
    have names, as `class_names`.
    """

    num_classes: int
    format: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def describe(self, index: int) -> str:
        """Where record `index` comes from, for messages: a path, or file and offset."""
        ...


class DatasetRecords:
    """A user's own data set, for example a `paddle.io.Dataset`, seen as records.

    Args:
        dataset: has `len(dataset)`, and `dataset[i]` is (image, label); the image encoded bytes, pixels
            [H, W, 3] uint8 RGB, or finished [3, H, W] float32; an array, a tensor, or an image of Pillow.

    Raises:
        DataError: no such object; on reading, an item that is no (image, label).
    """

    def __init__(self, dataset: Any) -> None:
        try:
            len(dataset)
            dataset.__getitem__  # noqa: B018
        except Exception:  # what an iterable data set answers to len() is its framework's own
            raise DataError(
                f"train_dataset: got {type(dataset).__name__}, expected an object with len() and [i]; "
                f"an iterator belongs in train_reader"
            ) from None
        self._dataset = dataset
        self.format = f"data set {type(dataset).__name__}"
        # Counting classes would read every image.
        self.num_classes = getattr(dataset, "num_classes", 0)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Record:
        item = self._dataset[index]
        try:
            image, label = item
        except (TypeError, ValueError):
            raise DataError(f"got {type(item).__name__} {str(item)[:60]!r}, expected (image, label)") from None
        image = _to_image(image)
        try:
            return Record(image, to_class(label))
        except (TypeError, ValueError) as error:
            raise DataError(f"expected a class of 0 or more: {error}") from None

    def describe(self, index: int) -> str:
        return f"item {index} of {type(self._dataset).__name__}"


def _to_image(image: Any) -> bytes | np.ndarray:
    """What a data set gives as an image, to bytes or an array."""
    if isinstance(image, (bytes, np.ndarray)):
        return image
    if isinstance(image, (bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, (str, os.PathLike)):
        raise DataError(f"got the path {str(image)[:120]!r}, expected the image: the file's bytes, or pixels")
    if not hasattr(image, "convert"):
        return np.asarray(image)
    if getattr(image, "mode", "")[:1] in ("I", "F"):
        raise DataError(
            f"got an image of Pillow of mode {image.mode}, expected 8 bits a color: Pillow would cut its "
            f"values off, so scale them first"
        )
    try:
        return np.asarray(image.convert("RGB"))  # it may be gray, transparent or of a palette
    except Exception as error:  # Pillow reads the file only now, and its readers raise whatever they stumble on
        raise DataError(f"the image of Pillow cannot be read: {error}") from None


def to_class(label: Any) -> int:
    """A label, a number or an array or tensor of one, to an int.

    Raises:
        ValueError: it is no whole number.
    """
    value = np.asarray(label).reshape(-1)
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if value.size == 1 and (isinstance(value[0], (str, bytes)) or value[0] == int(value[0])):
            return int(value[0])
    raise ValueError(f"label {label!r:.60} is no whole number")


def open_records(path: str | Path, recover: bool = False) -> Records:
    """Open training data of any known kind, and log what it was taken for.

    A file is known by its name: `.rec` or `.idx` (RecordIO), `.tar`, `.csv`, `.tsv`, `.parquet`, `.npz`, a
    `file_list.txt` of base64 parts, a base64 part by its first line, any other text a list of images. A folder
    is known by what lies in it, the first of: `label.txt`, `train.rec` or the only `.rec`, `file_list.txt`,
    `.tar` shards, `images.npy` with `labels.npy`, `.parquet` files, the only `.csv` or `.tsv`, folders of classes.
    `shards-{000..119}.tar` are several shards; `synthetic:1000:50000` is 50,000 made-up images of 1,000 classes.
    A `classes.txt` beside the data, as `plsc data convert` writes it, names the classes, one per line.

    Args:
        path: the file or folder.
        recover: of a damaged RecordIO file, read what lies before the damage.

    Raises:
        DataError: there is no such file or folder, it is of no known kind, or damaged.
    """
    records = _recognize(str(path), recover)
    log.info("%s: %s, %d images", path, records.format, len(records))
    return records


def _recognize(name: str, recover: bool) -> Records:
    path = Path(name)
    if name.startswith("synthetic:"):
        from plsc.data.sources.synthetic import SyntheticRecords

        return SyntheticRecords.from_name(name)
    try:
        path.stat()
    except (OSError, ValueError) as error:  # a zero byte is a ValueError
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EIO, errno.ELOOP, errno.ESTALE):
            raise DataError(f"{name} cannot be read: {error.strerror}") from None
        if not re.search(r"\{\d+\.\.\d+\}", name):
            raise DataError(
                f"data folder {name!r} does not exist; expected a folder with label.txt and images/, "
                f"one with a folder per class, or another kind of docs/data.md"
            ) from None
    if not path.is_dir():
        return _named(_open_file(path, recover), path.parent)
    found = _known_files(path)
    if len(found) > 1:
        log.warning(
            "%s: reading %s; the folder also has %s, which is read when named itself",
            path,
            found[0].name,
            ", ".join(other.name for other in found[1:]),
        )
    if not found:
        from plsc.data.sources.folders import FolderRecords

        return _named(FolderRecords(path), path)
    records = _named(_open_file(found[0], recover), path)
    _warn_of_class_folders(path, found[0], records)
    return records


# What a folder is known by, in order of choice: a pattern, and where there may be several files but one is meant,
# its name. Of the others all files are taken together.
_KNOWN_IN_FOLDER = (
    ("label.txt", ""),
    ("*.rec", "train.rec"),
    ("file_list.txt", ""),
    ("*.tar", ""),
    ("images.npy", ""),
    ("*.parquet", ""),
    ("*.csv", "train.csv"),
    ("*.tsv", "train.tsv"),
)


def _known_files(folder: Path) -> list[Path]:
    """What in a folder can be opened, the first choice first; several files as their pattern."""
    found: list[Path] = []
    for pattern, meant in _KNOWN_IN_FOLDER:
        files = sorted(folder.glob(pattern))
        if not files:
            continue
        if not meant:
            found.append(folder / pattern)
        elif len(files) == 1 or folder / meant in files:
            found.append(files[0] if len(files) == 1 else folder / meant)
        elif not found:
            raise DataError(
                f"{folder}: holds {', '.join(file.name for file in files[:6])}; expected one of them to be "
                f"{meant}, or name the file to read"
            )
    return found


def _warn_of_class_folders(folder: Path, taken: Path, records: Records) -> None:
    """Tell of folders of images that are not read because a file beside them is; but of no list's own."""
    from plsc.data.sources.folders import has_images

    root = os.path.join(os.path.realpath(folder), "")
    paths = getattr(records, "_paths", None) or [""]
    first = os.path.realpath(os.path.join(folder, paths[0])) if isinstance(paths[0], str) else ""
    if first.startswith(root) and os.sep in first[len(root) :]:
        return
    try:
        found = (entry.name for entry in os.scandir(folder) if entry.is_dir() and has_images(entry.path))
        others = list(itertools.islice(found, 2))
    except OSError:
        return
    if len(others) > 1:
        log.warning(
            "%s: reading %s; there are also folders of images, %s among them, which are not read as classes",
            folder,
            taken.name,
            " and ".join(others),
        )


def _open_file(path: Path, recover: bool) -> Records:
    # The readers need `Record`, so they are imported when one is opened.
    from plsc.data.sources.arrays import ArrayRecords
    from plsc.data.sources.base64_text import Base64Records, is_part_list, looks_like_base64
    from plsc.data.sources.lists import ListRecords
    from plsc.data.sources.recordio import RecordIORecords
    from plsc.data.sources.tables import CsvRecords, ParquetRecords
    from plsc.data.sources.tar_shards import TarRecords

    name = path.name.lower()
    folder_or_file = path.parent if path.name.startswith("*.") else path
    if name.endswith((".rec", ".idx")):
        return RecordIORecords(path, recover)
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return TarRecords(folder_or_file)
    if name.endswith((".csv", ".tsv")) and not looks_like_base64(path):
        return CsvRecords(path)
    if name.endswith(".parquet"):
        return ParquetRecords(folder_or_file)
    if name.endswith((".npy", ".npz")):
        return ArrayRecords.load(path)
    if name.endswith(".bin"):
        raise DataError(
            f"{path}: a .bin is a verification set (pairs of images, no classes), expected training data; "
            f"verification sets are named with set_val_targets"
        )
    if looks_like_base64(path) or is_part_list(path):
        return Base64Records(path)
    return ListRecords(path)


def _named(records: Records, folder: Path) -> Records:
    """The records, with the `class_names` of the folder's `classes.txt` where theirs are none, or mere numbers."""
    path = folder / "classes.txt"
    own = getattr(records, "class_names", None) or ()
    if all(name.isdecimal() and int(name) == number for number, name in enumerate(own)) and path.is_file():
        try:
            names = [line.rstrip("\r") for line in path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")]
        except (OSError, UnicodeDecodeError) as error:
            log.warning("%s: the names of the classes cannot be read (%s)", path, error)
        else:
            if len(names) >= records.num_classes:
                records.class_names = names
            else:
                log.warning("%s: %d names for %d classes, passed over", path, len(names), records.num_classes)
    return records


_PIECE = 1 << 16  # most images are one


def read_image(path: str | Path) -> bytes:
    """The bytes of an image file; `DataError` where it cannot be read."""
    try:
        # A file object takes half as long again. A short piece is no promise of the end, on a network disk for one.
        file, pieces = os.open(path, os.O_RDONLY), []
        try:
            while piece := os.read(file, _PIECE):
                pieces.append(piece)
        finally:
            os.close(file)
        return b"".join(pieces)
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{str(path)[:500]}: the image cannot be read: {reason}") from None
