"""Tar shards in the WebDataset layout, read in random order.

In a shard, the files of one sample follow one another and share a name up to the first dot of the base name:
`dir/000017.jpg`, `dir/000017.cls`. The class is the text of `.cls` (a number), or `label` or `cls` in a `.json`. The
image has the suffix of any kind of image; beside a JPEG, PNG, BMP, WebP or TIFF, a file of another kind is no image of
the sample. An uncompressed tar holds the bytes of each file in one piece, so random access needs offsets only.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import mmap
import os
import re
import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from plsc.data.images import BESIDE_SUFFIXES, IMAGE_SUFFIXES
from plsc.data.records import Record, Records
from plsc.data.sources.leftovers import is_leftover, matching_files, warn_of_leftovers
from plsc.data.sources.offset_index import Arrays, load_or_build, save_index
from plsc.data.sources.reading import check_index
from plsc.data.sources.string_table import StringTable
from plsc.errors import DataError
from plsc.utils.files import OpenFiles, map_file, reading_error
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

_BLOCK, _PIECE = 512, 1 << 20


class TarRecords(Records):
    """The images of tar shards. Opening reads the headers of the shards, unless `plsc data index` has been run.

    Args:
        path: a `.tar`; a folder of `.tar` files, taken in the order of their names; or several shards in WebDataset's
            range notation, as `shards/train-{000000..000119}.tar`.

    Raises:
        DataError: a shard is missing, compressed, cut off or damaged; a sample lacks its image or its class.
        StorageError: the system cannot read a shard.

    Example:
        >>> records = TarRecords("shards/train-{000000..000119}.tar")
        >>> image, label = records[41]
    """

    uses_global_random = False

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.shards = _shards(str(path))
        self._maps = OpenFiles(self.shards, map_file)
        left: list[str] = []
        build = functools.partial(_build_index, left=left)
        indexes = [load_or_build(shard, "tar", build=build) for shard in self.shards]
        warn_of_leftovers(self.path, left)
        self._offsets, self._sizes, self.labels = (
            np.concatenate([index[name] for index in indexes]) for name in ("offsets", "sizes", "labels")
        )
        self._ends = np.cumsum([len(index["offsets"]) for index in indexes])
        self._names = [StringTable.from_arrays(index["names"], index["name_ends"]) for index in indexes]
        if not len(self._offsets):
            raise DataError(f"{self.path}: the shards hold no samples")
        self.num_classes = int(self.labels.max()) + 1
        self.format = f"tar, WebDataset layout, {counted(len(self.shards), 'shard')}"

    def save_index(self) -> list[Path]:
        """Write the index of each shard beside it."""
        return [save_index(shard, "tar", build=functools.partial(_build_index, left=[])) for shard in self.shards]

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Record:
        check_index(index, len(self))
        shard = self._shard(index)
        start = int(self._offsets[index])
        return Record(self._maps[shard][start : start + int(self._sizes[index])], int(self.labels[index]))

    def describe(self, index: int) -> str:
        shard = self._shard(index)
        return f"{self._names[shard][index % len(self) - int(self._ends[shard])]} ({self.shards[shard]})"

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index % len(self), side="right"))


def expand_range(pattern: str) -> list[str]:
    """The names that a pattern such as `train-{000..002}.tar` means; a name without a range means itself."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    if not int(first) <= int(last) or int(last) - int(first) > 10**6:
        raise DataError(f"{pattern!r}: the range {match.group()} is empty or too long, expected up to 1,000,000 shards")
    return [
        name
        for number in range(int(first), int(last) + 1)
        for name in expand_range(pattern[: match.start()] + str(number).zfill(len(first)) + pattern[match.end() :])
    ]


def _shards(path: str) -> list[Path]:
    if Path(path).is_dir():
        shards = matching_files(Path(path), "*.tar")
        if not shards:
            raise DataError(f"{path}: found no .tar in the folder")
        return shards
    shards = [Path(name) for name in expand_range(path)]
    for shard in shards:
        if not os.path.isfile(shard):
            raise DataError(f"{shard}: there is no such shard")
    return shards


def _build_index(path: Path, left: list[str]) -> Arrays:
    """The arrays of a shard. The names of members that belong to no sample, being leftovers, go to `left`."""
    offsets, sizes, labels = array("q"), array("q"), array("q")
    names: list[str] = []
    for key, members in itertools.groupby(_members(path, left), lambda member: _split(member[0])[0]):
        samples: dict[str, _Sample] = {}
        for name, offset, size, data in members:
            _, stem, suffix = _split(name)
            samples.setdefault(stem, _Sample(stem)).add(path, name, suffix, offset, size, data)
        has_plain = key in samples and samples[key].is_whole
        for stem, sample in samples.items():
            # Beside x.jpg and x.cls, x.seg.png is one more file of sample x. Without these two, x.seg is a sample.
            if stem == key or sample.is_whole or not has_plain:
                sample.finish(path, offsets, sizes, labels, names)
    packed = StringTable(names)
    return {
        "offsets": np.asarray(offsets, np.int64),
        "sizes": np.asarray(sizes, np.int64),
        "labels": np.asarray(labels, np.int64),
        "names": packed.text,
        "name_ends": packed.ends,
    }


def _members(path: Path, left: list[str]) -> Iterator[tuple[str, int, int, mmap.mmap]]:
    """Every file of a shard as (name, offset, size, map), except leftovers, whose names go to `left`. Then checks that
    the walk has reached the shard's end."""
    data = map_file(path)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # a list of all members so far, which would grow
                if any(map(is_leftover, member.name.split("/"))):
                    if member.isfile():
                        left.append(member.name)
                    continue
                if member.islnk() or member.issym():
                    raise tarfile.ReadError(
                        f"{member.name} is a link; pack the files themselves (tar --dereference --hard-dereference)"
                    )
                if member.isfile():
                    if member.offset_data + member.size > len(data) or member.issparse():
                        raise tarfile.ReadError(f"{member.name} runs past the end of the file or is sparse")
                    yield member.name, member.offset_data, member.size, data
            stopped = tar.offset
    except OSError as error:
        raise reading_error(f"{path}: the shard cannot be read", error) from None
    except (tarfile.TarError, ValueError, EOFError, OverflowError, MemoryError) as error:
        hint = "; unpack a .tar.gz first: only plain tar can be read in random order" if _is_gzip(data) else ""
        raise DataError(f"{path}: the shard is damaged, cut off or no tar: {error}{hint}") from None
    # tarfile ends without an error at a header that it cannot read; the samples after it would be lost.
    if stopped >= len(data):
        log.warning("%s: the shard ends without the mark of an archive's end, so it may have been cut off", path)
    if data[stopped : stopped + _BLOCK].strip(b"\0"):
        raise DataError(
            f"{path}, offset {stopped}: found no tar header, expected one or the end of the archive; the "
            f"shard is damaged"
        )
    for start in range(stopped, len(data), _PIECE):
        if data[start : start + _PIECE].strip(b"\0"):
            raise DataError(
                f"{path}: the archive ends at offset {stopped}, and more comes after its end; were several "
                f"joined by cat, keep them apart"
            )


class _Sample:
    """The files of one sample, collected in the order of the shard."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.image: tuple[str, int, int] | None = None
        self.has_beside = False  # the image is of a kind that beside another is none
        self.label: int | None = None
        self.has_cls = False

    @property
    def is_whole(self) -> bool:
        return self.image is not None and self.label is not None

    def add(self, path: Path, name: str, suffix: str, offset: int, size: int, data: mmap.mmap) -> None:
        if suffix in IMAGE_SUFFIXES:
            is_beside = suffix in BESIDE_SUFFIXES
            if self.image is not None and is_beside != self.has_beside:
                if is_beside:
                    return
            elif self.image is not None:
                raise DataError(
                    f"{path}: sample {self.key!r} has two images, {self.image[0]!r} and {name!r}; expected "
                    f"one per sample, or another name for each sample"
                )
            self.image, self.has_beside = (name, offset, size), is_beside
        elif suffix == ".cls" or (suffix == ".json" and self.label is None):
            label = _parse_label(data[offset : offset + size], suffix)
            if label is None and suffix == ".cls":
                raise DataError(
                    f"{path}: {name!r} holds {data[offset : offset + min(size, 40)]!r}, expected a class "
                    f"number of 0 or more"
                )
            if suffix == ".cls" and self.has_cls:
                raise DataError(f"{path}: sample {self.key!r} has two classes, expected one per sample")
            self.has_cls |= suffix == ".cls"
            self.label = self.label if label is None else label

    def finish(self, path: Path, offsets: array[int], sizes: array[int], labels: array[int], names: list[str]) -> None:
        """Append the sample to the arrays of the index."""
        if self.image is None and self.label is None:
            return  # a note or a license in the archive, not a sample
        if self.image is None or self.label is None:
            lacks = "image (.jpg, .png, ...)" if self.image is None else "class (.cls, or a number as 'label' in .json)"
            raise DataError(
                f"{path}: sample {self.key!r} has no {lacks}; expected both under one name, one after the other"
            )
        names.append(self.image[0])
        offsets.append(self.image[1])
        sizes.append(self.image[2])
        labels.append(self.label)


def _split(name: str) -> tuple[str, str, str]:
    """(name up to the first dot of the base name, which is WebDataset's key; name up to the last dot; suffix)."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.rpartition(".") if "." in base else (base, "", "")
    return folder + slash + base.partition(".")[0], folder + slash + stem, (dot + suffix).lower()


def _parse_label(text: bytes, suffix: str) -> int | None:
    if suffix == ".json":
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(fields, dict):
            return None
        value = fields.get("cls") if fields.get("label") is None else fields["label"]
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            return None
        text = str(value).removesuffix(".0").encode()
    digits = text.strip()
    return int(digits) if digits.isdigit() and len(digits) < 19 else None


def _is_gzip(data: mmap.mmap) -> bool:
    return data[:2] == b"\x1f\x8b"
