"""Sources of training images, one module per kind of data, and the registry that opens a source by its name.

`_SOURCES` lists the kinds with what each is recognized by; `register_source` adds a kind to the list.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from plsc.data.records import Records
from plsc.data.remote_data import fetch_data
from plsc.data.sources.arrays import ArrayRecords
from plsc.data.sources.base64_text import Base64Records, is_part_list, looks_like_base64
from plsc.data.sources.folders import FolderRecords, has_images
from plsc.data.sources.leftovers import is_leftover, matching_files
from plsc.data.sources.lists import ListRecords
from plsc.data.sources.recordio import RecordIORecords
from plsc.data.sources.synthetic import SyntheticRecords
from plsc.data.sources.tables import CsvRecords, ParquetRecords
from plsc.data.sources.tar_shards import TarRecords
from plsc.errors import DataError
from plsc.remote.cache import Cache
from plsc.utils.artifacts import recognize
from plsc.utils.files import reading_error
from plsc.utils.hints import setter
from plsc.utils.locations import is_remote, keep_credentials
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

_Opener = TypeVar("_Opener", bound=Callable[..., Records])


class _Source(NamedTuple):
    """A kind of data and what it is recognized by; the fields are the arguments of `register_source`."""

    open: Callable[..., Records]
    prefix: str = ""
    suffixes: tuple[str, ...] = ()
    accepts: Callable[[Path], bool] | None = None
    in_folder: str = ""
    preferred: str = ""
    recovers: bool = False

    @property
    def takes_folder(self) -> bool:
        """Whether all files that match `in_folder` are one set, which is opened by its folder."""
        return "*" in self.in_folder and not self.preferred


def _is_base64(path: Path) -> bool:
    return looks_like_base64(path) or is_part_list(path)


def _is_list(path: Path) -> bool:
    return not _is_base64(path)  # every other file: if it is no list, the error of ListRecords says so


def _is_table(path: Path) -> bool:
    return not looks_like_base64(path)  # a base64 part may be named part.csv


# A folder that holds several kinds is read as the first of them, in this order.
_SOURCES = [
    _Source(SyntheticRecords.from_name, prefix="synthetic:"),
    _Source(ListRecords, accepts=_is_list, in_folder="label.txt"),
    _Source(RecordIORecords, suffixes=(".rec", ".idx"), in_folder="*.rec", preferred="train.rec", recovers=True),
    _Source(Base64Records, accepts=_is_base64, in_folder="file_list.txt"),
    _Source(TarRecords, suffixes=(".tar", ".tar.gz", ".tgz"), in_folder="*.tar"),
    _Source(ArrayRecords.load, suffixes=(".npy", ".npz"), in_folder="images.npy"),
    _Source(ParquetRecords, suffixes=(".parquet",), in_folder="*.parquet"),
    _Source(CsvRecords, suffixes=(".csv",), accepts=_is_table, in_folder="*.csv", preferred="train.csv"),
    _Source(CsvRecords, suffixes=(".tsv",), accepts=_is_table, in_folder="*.tsv", preferred="train.tsv"),
]


def register_source(
    *,
    prefix: str = "",
    suffixes: Sequence[str] = (),
    accepts: Callable[[Path], bool] | None = None,
    in_folder: str = "",
    preferred: str = "",
    recovers: bool = False,
) -> Callable[[_Opener], _Opener]:
    """Register a kind of data with `open_records`: a decorator of a `Records` class, or of a function that returns one.

    The class or function is called with the path or name that `open_records` got. A kind registered later is asked
    before the kinds registered earlier and the built-in ones. Register it where every process of a run does, as at
    the top of train.py.

    Args:
        prefix: take names that begin with it, as in `synthetic:10:200`. Such a name need not be a path.
        suffixes: take files whose names end with one of them, in lower case.
        accepts: looks into a file and says whether it is of this kind. With `suffixes` only such files are looked at,
            else all files that no suffix is registered for.
        in_folder: take folders that hold a file of this name or pattern, as `*.h5`. A pattern means that all matching
            files are one set, and the call gets the folder; a name, that the call gets the file.
        preferred: with a pattern, the name of the one file to open where several match; the call then gets the file.
        recovers: the call takes `recover=True`, which is to read what lies before damage.

    Example:
        >>> @register_source(suffixes=[".mypack"], in_folder="*.mypack", preferred="train.mypack")
        ... class MyPack(Records):
        ...     ...
    """

    def register(opener: _Opener) -> _Opener:
        _SOURCES.insert(0, _Source(opener, prefix, tuple(suffixes), accepts, in_folder, preferred, recovers))
        return opener

    return register


def open_records(path: str | Path, recover: bool = False) -> Records:
    """Open training data of any kind, and log the kind.

    A file is recognized by its name: `.rec` or `.idx` (RecordIO), `.tar`, `.csv`, `.tsv`, `.parquet`, `.npy` or
    `.npz`; or by its first line: a base64 part, or a list of such parts. Any other text is a list of images. A folder
    is recognized by what it holds, the first of: `label.txt`, `train.rec` or the only `.rec`, `file_list.txt`, `.tar`
    shards, `images.npy` with `labels.npy`, `.parquet` files, the only `.csv` or `.tsv`, folders of classes.
    `shards-{000..119}.tar` means several shards; `synthetic:1000:50000` 50,000 synthetic images of 1,000 classes.
    `register_source` adds kinds. A `classes.txt` beside the data names the classes, one per line.

    Args:
        path: the file, folder, URL or name. What a URL names is copied to the cache first, see docs/remote.md.
        recover: of a damaged RecordIO file, read what lies before the damage.

    Raises:
        DataError: there is no such file or folder, or it is of no known kind or damaged.
        StorageError: the system cannot read it.

    Example:
        >>> records = open_records("synthetic:10:200")
        >>> len(records), records.num_classes
        (200, 10)
    """
    name = keep_credentials(str(path))
    path = fetch_data(name, Cache()) if is_remote(name) else Path(path)
    source = next((source for source in _SOURCES if source.prefix and name.startswith(source.prefix)), None)
    try:
        records = _open_path(path, recover) if source is None else _open(source, name, recover)
    except DataError as error:
        found = recognize(path)
        if found is None:
            raise
        raise DataError(f"{error}; {name} is {found}") from None
    log.info("%s: %s, %s", name, records.format, counted(len(records), "image"))
    return records


def _open_path(path: Path, recover: bool) -> Records:
    if _is_folder(str(path)):
        return _open_folder(path, recover)
    records = _open(_source_of_file(path), path, recover)
    _name_classes(records, path.parent)
    return records


def _is_folder(name: str) -> bool:
    """Whether a path is a folder; `DataError` if it does not exist, unless it is a range of shards."""
    try:
        Path(name).stat()
    except (OSError, ValueError) as error:  # a zero byte is a ValueError
        if isinstance(error, OSError) and not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise reading_error(f"{name} cannot be read", error) from None
        if not re.search(r"\{\d+\.\.\d+\}", name):
            raise DataError(
                f"data folder {name!r} does not exist; expected a folder with label.txt and images/, "
                f"one with a folder per class, or another kind of docs/data.md"
            ) from None
    return os.path.isdir(name)


def _open(source: _Source, path: Path | str, recover: bool) -> Records:
    return source.open(path, recover=True) if recover and source.recovers else source.open(path)


def _source_of_file(path: Path) -> _Source:
    name = path.name.lower()
    for source in _SOURCES:
        if name.endswith(source.suffixes) and (source.accepts is None or source.accepts(path)):
            return source
    if name.endswith(".bin"):
        raise DataError(
            f"{path}: a .bin is a verification set (pairs of images, no classes), expected training data; "
            f"verification sets are named with {setter('val_targets')}"
        )
    return next(source for source in _SOURCES if source.accepts and not source.suffixes and source.accepts(path))


def _open_folder(folder: Path, recover: bool) -> Records:
    found = _sources_of_folder(folder)
    if not found:
        records: Records = FolderRecords(folder)
        _name_classes(records, folder)
        return records
    source, file = found[0]
    if len(found) > 1:
        others = ", ".join(other.name for _, other in found[1:])
        log.warning(
            "%s: reading %s; the folder also has %s, which is read when named itself", folder, file.name, others
        )
    if source.takes_folder:
        records = _open(source, folder, recover)
    elif source.accepts is None or source.accepts(file):
        records = _open(source, file, recover)
    else:
        records = _open(_source_of_file(file), file, recover)
    _name_classes(records, folder)
    _warn_of_class_folders(folder, file, records)
    return records


def _sources_of_folder(folder: Path) -> list[tuple[_Source, Path]]:
    """The kinds of data in a folder, in order of choice, each with its file, or with the pattern of its files."""
    found: list[tuple[_Source, Path]] = []
    for source in _SOURCES:
        files = matching_files(folder, source.in_folder) if source.in_folder else []
        if not files:
            continue
        if not source.preferred:
            found.append((source, folder / source.in_folder))
        elif len(files) == 1:
            found.append((source, files[0]))
        elif folder / source.preferred in files:
            found.append((source, folder / source.preferred))
        elif not found:
            raise DataError(
                f"{folder}: holds {', '.join(file.name for file in files[:6])}; expected one of them to be "
                f"{source.preferred}, or name the file to read"
            )
    return found


def _warn_of_class_folders(folder: Path, taken: Path, records: Records) -> None:
    """Warn of class folders that are ignored because a file beside them was read, unless the file points into them."""
    root = os.path.join(os.path.realpath(folder), "")
    try:
        first = os.path.realpath(records.path_of(0) or root)
    except (OSError, ValueError):  # the path cannot be that of a file, as reading the image will tell
        return
    if first.startswith(root) and os.sep in first[len(root) :]:
        return
    try:
        inside = (
            entry.name
            for entry in os.scandir(folder)
            if not is_leftover(entry.name) and entry.is_dir() and has_images(entry.path)
        )
        others = list(itertools.islice(inside, 2))
    except OSError:
        return
    if len(others) > 1:
        log.warning(
            "%s: reading %s; there are also folders of images, %s among them, which are not read as classes",
            folder,
            taken.name,
            " and ".join(others),
        )


def _name_classes(records: Records, folder: Path) -> None:
    """Give the classes the names in the folder's `classes.txt`, where the source has none, or only the numbers."""
    path = folder / "classes.txt"
    own = records.class_names or ()
    if not all(name.isdecimal() and int(name) == number for number, name in enumerate(own)) or not path.is_file():
        return
    try:
        names = [line.rstrip("\r") for line in path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")]
    except OSError as error:
        raise reading_error(f"{path}: the names of the classes cannot be read", error) from None
    except UnicodeDecodeError as error:
        log.warning("%s: the names of the classes cannot be read (%s)", path, error)
        return
    num_classes = records.num_classes or 0
    if len(names) >= num_classes:
        records.class_names = names
    else:
        log.warning("%s: %s for %s, ignored", path, counted(len(names), "name"), counted(num_classes, "class"))
