"""Reading a checkpoint on any number of ranks. What is read is compared with its digests, block by block."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plsc.checkpoint.digests import Hasher, as_bytes, digest_of
from plsc.checkpoint.finite import check_finite
from plsc.checkpoint.layout import MANIFEST, MODEL_FILE, list_checkpoints
from plsc.checkpoint.manifest import FileEntry, PartEntry, TensorEntry, read_manifest
from plsc.distributed import watch
from plsc.distributed.agreement import explain
from plsc.errors import CheckpointError, PLSCError
from plsc.utils.artifacts import recognize
from plsc.utils.hints import can_set, setter
from plsc.utils.plural import counted
from plsc.utils.ranges import Range
from plsc.utils.safetensors_file import DTYPES, Place, parse_header, read_header

BLOCK_BYTES = 1 << 24
"""Bytes that are written, read and digested at a time; a row that is longer is a block of its own."""

_DAMAGED = "the checkpoint is damaged, use another checkpoint"

log = logging.getLogger("plsc")


class Block(NamedTuple):
    """Rows of a tensor that were read together.

    Attributes:
        start: the first row, counted in the whole tensor.
        rows: [rows of the block, ...], valid until the next block is read.
    """

    start: int
    rows: NDArray[Any]


class Checkpoint:
    """A checkpoint on disk, for reading on any number of ranks.

    Args:
        path: the folder of a checkpoint, or a folder of checkpoints, of which the newest is taken.

    Attributes:
        path: the folder of the checkpoint.
        about: what `save_checkpoint` was called with.

    Raises:
        CheckpointError: there is no checkpoint, it is of an unknown version, its manifest is damaged, or a file is
            missing or cut short.

    Example:
        >>> saved = Checkpoint("output")
        >>> saved.read("head.weight", Range(0, 1000))  # the first 1000 class centers
    """

    def __init__(self, path: str | Path) -> None:
        with reading(path):
            self.path = _find(Path(path))
            try:
                self._manifest, self._digest = read_manifest(self.path / MANIFEST)
                for file, entry in self._manifest.files.items():
                    _check_size(self.path / file, entry.bytes)
            except CheckpointError:
                self._check_presence("")
                raise
        self.about = self._manifest.about
        self._tensors = self._manifest.tensors
        self._headers: dict[str, bytes] = {}
        self._places: dict[str, dict[str, Place]] = {}
        if self._digest is None:
            _say_that_there_are_no_digests(self.path)

    @property
    def digest(self) -> str:
        """Of the manifest, and so of all content; in version 1 of what the manifest says of the run."""
        return self._digest or hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()

    @property
    def has_digests(self) -> bool:
        """Whether damaged tensors are found; False in version 1."""
        return self._digest is not None

    @property
    def files(self) -> dict[str, int]:
        """Bytes of each file, except for the manifest."""
        return {name: entry.bytes for name, entry in self._manifest.files.items()}

    def names(self, prefix: str = "") -> list[str]:
        """The names of the tensors that begin with `prefix`."""
        return [name for name in self._tensors if name.startswith(prefix)]

    def shape(self, name: str) -> list[int]:
        """The global shape of a tensor."""
        return list(self._entry(name).shape)

    def dtype(self, name: str) -> np.dtype[Any]:
        """The type of a tensor; bfloat16 is stored as uint16."""
        return np.dtype(self._entry(name).dtype)

    def has_row_per_class(self, name: str) -> bool:
        """Whether a tensor was written by the ranks' rows of it, with the class centers."""
        parts = self._entry(name).parts
        return bool(parts) and parts[0].file != MODEL_FILE

    def parts(self, name: str) -> list[Range]:
        """The rows of a tensor that lie together in a file, in order."""
        return [Range(part.offset, part.offset + part.rows) for part in self._entry(name).parts]

    def read(self, name: str, rows: Range | None = None, *, is_finite: bool = False) -> np.ndarray:
        """A tensor, or a range of its global rows, however many shards it was written as.

        Args:
            name: the tensor's name.
            rows: by default all rows.
            is_finite: refuse numbers that are not finite.

        Raises:
            CheckpointError: there is no such tensor, there are no such rows, a number is not finite, or a file is
                damaged or was deleted meanwhile.
        """
        entry = self._entry(name)
        shape = entry.shape if rows is None else [rows.size, *entry.shape[1:]]
        with reading(self.path, f"tensor '{name}' "):
            target = np.empty(shape, entry.dtype)
        first = 0 if rows is None else rows.start
        for start, values in self.blocks(name, rows, is_finite=is_finite):
            if entry.shape:
                target[start - first : start - first + len(values)] = values
            else:
                target[...] = values[0]
        return target

    def read_rows(self, name: str, rows: NDArray[np.int64], *, is_finite: bool = False) -> np.ndarray:
        """Chosen global rows of a tensor, in the order of `rows`; the arguments are those of `chosen_blocks`.

        Raises:
            CheckpointError: as for `read`.
        """
        target = np.zeros([len(rows), *self.shape(name)[1:]], self.dtype(name))
        for places, values in self.chosen_blocks(name, rows, is_finite=is_finite):
            target[places] = values
        return target

    def blocks(self, name: str, rows: Range | None = None, *, is_finite: bool = False) -> Iterator[Block]:
        """The rows of a tensor in blocks of about 16 MiB, each verified before it is returned.

        Args:
            name: the tensor's name.
            rows: by default all rows. Blocks that hold others too are read whole and cut.
            is_finite: refuse numbers that are not finite.

        Raises:
            CheckpointError: as for `read`.
        """
        entry = self._entry(name)
        wanted = Range(0, entry.rows) if rows is None else rows
        if wanted.start < 0 or wanted.stop > entry.rows:
            raise CheckpointError(
                f"{self.path}: rows {wanted.start} to {wanted.stop} of tensor '{name}' were asked for, it has "
                f"{entry.rows}"
            )
        for part in entry.parts:
            if Range(part.offset, part.offset + part.rows).overlap(wanted).size:
                for block in self._part_blocks(name, part, wanted):
                    if is_finite:
                        shown = block.rows if entry.shape else block.rows.reshape(())
                        check_finite(f"{self.path}: {name}", shown, first_row=block.start)
                    yield block

    def chosen_blocks(
        self, name: str, rows: NDArray[np.int64], *, is_finite: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Chosen global rows of a tensor, in blocks. Blocks without a chosen row are not read.

        Args:
            name: the tensor's name.
            rows: global rows, in any order; none is read for -1.
            is_finite: refuse numbers that are not finite in these rows and those between them.

        Returns:
            For each block the places in `rows` of what it holds, and the values, in the order of the places.

        Raises:
            CheckpointError: as for `read`.
        """
        order = np.argsort(rows, kind="stable")
        ascending, entry = rows[order], self._entry(name)
        for part in entry.parts:
            for block in _block_ranges(entry, part):
                first, last = np.searchsorted(ascending, [block.start, block.stop])
                if first < last:
                    chosen = ascending[first:last]
                    wanted = Range(int(chosen[0]), int(chosen[-1]) + 1)
                    for start, values in self.blocks(name, wanted, is_finite=is_finite):
                        yield order[first:last], values[chosen - start]

    def verify(self) -> None:
        """Read all files block by block and compare them with their digests.

        Raises:
            CheckpointError: something is damaged; names the first file, tensor and rows.
        """
        for damage in self.damages():
            raise damage

    def damages(self) -> Iterator[CheckpointError]:
        """All that is damaged, as the errors that reading it would raise. Every file is read, in blocks."""
        parts: dict[str, list[tuple[str, PartEntry]]] = {file: [] for file in self._manifest.files}
        for name, tensor in self._tensors.items():
            for part in tensor.parts:
                parts[part.file].append((name, part))
        for file, entry in self._manifest.files.items():
            yield from self._damages_of(file, entry, parts[file])

    def _damages_of(self, file: str, entry: FileEntry, parts: list[tuple[str, PartEntry]]) -> list[CheckpointError]:
        """What is wrong with a file, in one pass over it."""
        hasher, damages = Hasher(), []
        try:
            with self._opened(file) as handle:
                if parts:
                    hasher.update(self._header(file, handle))
                    damages = self._damages_of_tensors(handle, parts, hasher=hasher)
                while piece := handle.read(BLOCK_BYTES):  # what follows the tensors, or all where there are none
                    hasher.update(piece)
        except CheckpointError as error:
            return [error]
        if not damages and entry.digest not in (None, hasher.hexdigest()):
            damages.append(_differs(self.path / file, "", found=hasher.hexdigest(), expected=entry.digest))
        return damages

    def _damages_of_tensors(
        self, handle: BinaryIO, parts: list[tuple[str, PartEntry]], *, hasher: Hasher
    ) -> list[CheckpointError]:
        """What is wrong with the tensors of an open file, whose bytes are added to `hasher`."""
        damages = []
        places = self._places[parts[0][1].file]
        for name, part in sorted(parts, key=lambda item: places[item[1].key].start if item[1].key in places else 0):
            try:
                opened = self._open_part(handle, name, part)
            except CheckpointError as error:
                damages.append(error)
                continue
            for block in opened.blocks:
                try:
                    hasher.update(as_bytes(opened.read(block)))
                except CheckpointError as error:
                    damages.append(error)
        return damages

    def _part_blocks(self, name: str, part: PartEntry, wanted: Range) -> Iterator[Block]:
        """The blocks of a part that hold rows which are wanted, without the others."""
        with self._opened(part.file, f"tensor '{name}' ") as handle:
            self._header(part.file, handle, f"tensor '{name}' ")
            opened = self._open_part(handle, name, part)
            for block in opened.blocks:
                inside = block.overlap(wanted)
                if inside.size:
                    rows = opened.read(block)
                    yield Block(inside.start, rows[inside.start - block.start : inside.stop - block.start])

    @contextlib.contextmanager
    def _opened(self, file: str, what: str = "") -> Iterator[BinaryIO]:
        """A file of the checkpoint, open for reading; `what` is for messages, as for `reading`."""
        path = self.path / file
        with reading(path, what):
            try:
                handle = open(path, "rb")  # noqa: SIM115
            except FileNotFoundError:
                self._check_presence(what)
                raise
            with handle:
                yield handle

    def _check_presence(self, what: str) -> None:
        if not (self.path / MANIFEST).is_file():
            raise CheckpointError(
                f"{self.path}: {what}cannot be read: the checkpoint was deleted while it was read, as old checkpoints "
                f"are; use a newer one, or keep more with {setter('max_last_checkpoint_num')}"
            )

    def _header(self, file: str, handle: BinaryIO, what: str = "") -> bytes:
        """The bytes before the tensors of an open file, compared with their digest when they are first read."""
        if file not in self._headers:
            path, expected = self.path / file, self._manifest.files[file].header
            header = read_header(handle)
            if expected not in (None, digest_of(header)):
                where = f"{what}cannot be read: " if what else ""
                raise _differs(path, f"{where}the header ", found=digest_of(header), expected=expected)
            self._headers[file], self._places[file] = header, parse_header(header)
        return self._headers[file]

    def _open_part(self, handle: BinaryIO, name: str, part: PartEntry) -> _OpenPart:
        """A part in an open file, whose header was read."""
        places = self._places[part.file]
        return _OpenPart(handle, self.path / part.file, name=name, entry=self._entry(name), part=part, places=places)

    def _entry(self, name: str) -> TensorEntry:
        if name not in self._tensors:
            raise CheckpointError(f"{self.path}: holds no tensor '{name}'; it was written by another network or loss")
        return self._tensors[name]


class _OpenPart:
    """Rows of a tensor in an open file.

    Args:
        handle: of the file.
        path: of the file.
        name: of the tensor.
        entry: of the tensor.
        part: of the rows.
        places: of the tensors in the file.

    Raises:
        CheckpointError: the header of the file says something else than the manifest.
    """

    def __init__(
        self, handle: BinaryIO, path: Path, *, name: str, entry: TensorEntry, part: PartEntry, places: dict[str, Place]
    ) -> None:
        self._handle, self._path, self._name, self._entry, self._part = handle, path, name, entry, part
        self.place = self._find_place(places)
        self.blocks = _block_ranges(entry, part)
        self._buffer = np.empty(min(_block_size(entry, part), part.rows) * entry.row_bytes, np.uint8)

    def read(self, block: Range) -> NDArray[Any]:
        """The global rows `block`, [rows, ...], compared with their digest; valid until the next call.

        Raises:
            CheckpointError: they are damaged.
        """
        entry, part = self._entry, self._part
        watch.phase(f"reading the checkpoint {self._path.parent}")
        what = f"tensor '{self._name}', rows {block.start} to {block.stop}, "
        data = self._buffer[: block.size * entry.row_bytes]
        with reading(self._path, what):
            self._handle.seek(self.place.start + (block.start - part.offset) * entry.row_bytes)
            size = self._handle.readinto(data)  # type: ignore[attr-defined]  # unbuffered files have it
            if size != len(data):
                raise ValueError(f"found {size} bytes, expected {len(data)}")
        if part.digests is not None:
            found, expected = digest_of(as_bytes(data)), part.digests[(block.start - part.offset) // part.block_rows]
            if found != expected:
                raise _differs(self._path, what, found=found, expected=expected)
        return data.view(entry.dtype).reshape([block.size, *entry.shape[1:]])

    def _find_place(self, places: dict[str, Place]) -> Place:
        entry, part = self._entry, self._part
        if part.key not in places:
            raise CheckpointError(
                f"{self._path}: tensor '{self._name}' cannot be read: {part.key!r} is not in the file; {_DAMAGED}"
            )
        place = places[part.key]
        shape = [part.rows, *entry.shape[1:]] if entry.shape else []
        if (place.dtype, place.shape, place.stop - place.start) != (
            DTYPES[entry.dtype],
            shape,
            part.rows * entry.row_bytes,
        ):
            raise CheckpointError(
                f"{self._path}: tensor '{self._name}' is {place.shape} of {place.dtype} at bytes {place.start} to "
                f"{place.stop}, but {MANIFEST} says {shape} of {DTYPES[entry.dtype]}; {_DAMAGED}"
            )
        return place


def block_rows(row_bytes: int) -> int:
    """Rows that make a block of `BLOCK_BYTES`; 1 where a row is longer."""
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def _block_ranges(entry: TensorEntry, part: PartEntry) -> Iterator[Range]:
    """The global rows of the blocks of a part."""
    size, end = _block_size(entry, part), part.offset + part.rows
    return (Range(start, min(start + size, end)) for start in range(part.offset, end, size))


def _block_size(entry: TensorEntry, part: PartEntry) -> int:
    """Rows per block of a part, except for the last one."""
    return block_rows(entry.row_bytes) if part.digests is None else part.block_rows


def _differs(file: Path, what: str, *, found: str, expected: str | None) -> CheckpointError:
    return CheckpointError(
        f"{file}: {what}differs from what was written: its digest is {found}, expected {expected}; {_DAMAGED}"
    )


@functools.cache
def _say_that_there_are_no_digests(path: Path) -> None:
    log.info("%s: was written by an earlier version, without digests: damaged numbers in it are not found", path)


def _explain_absence(path: Path) -> str:
    """What a path is that is neither a checkpoint nor a folder of checkpoints."""
    expected = f"expected a folder with {MANIFEST}, or one that holds such folders (output/0, output/1, ...)"
    other = "name another folder" + (f" with {setter('checkpoint_dir')}" if can_set("checkpoint_dir") else "")
    found = recognize(path)
    if found is not None:
        is_in_one = path.is_file() and (path.parent / MANIFEST).is_file()
        use = f"{setter('checkpoint_dir', path.parent)} takes it" if is_in_one else found.use
        return f"checkpoint {str(path)!r} is {found.what}; {expected}; {use}"
    if path.is_file():
        return f"checkpoint {str(path)!r} is a file; {expected}; {other}"
    beside = [checkpoint.name for checkpoint in list_checkpoints(path.parent)]
    what = "holds no checkpoint" if path.is_dir() else "does not exist"
    held = f"; {path.parent} holds the checkpoints {', '.join(beside)}" if beside else ""
    return f"checkpoint {str(path)!r} {what}; {expected}{held}; {other}"


@contextlib.contextmanager
def reading(path: str | Path, what: str = "") -> Iterator[None]:
    """Make whatever stops the reading of a checkpoint a `CheckpointError` that names the file and the reason.

    Args:
        path: the file or the folder.
        what: what is read, for the message; ends in a blank.

    Raises:
        PLSCError: one raised in the `with` block, unchanged.
        CheckpointError: for any other exception.
    """
    try:
        yield
    except PLSCError:
        raise
    except Exception as error:  # a damaged file may raise anything in the libraries that read it
        raise CheckpointError(f"{path}: {what}cannot be read: {explain(error)}; use another checkpoint") from error


def _find(path: Path) -> Path:
    """The checkpoint at `path`, or the newest one in it."""
    if (path / MANIFEST).is_file():
        return path
    found = list_checkpoints(path)
    if not found:
        raise CheckpointError(_explain_absence(path))
    return found[-1]


def _check_size(file: Path, expected: int) -> None:
    size = file.stat().st_size if file.is_file() else None
    if size != expected:
        raise CheckpointError(
            f"{file}: found {'no such file' if size is None else counted(size, 'byte')}, "
            f"expected {counted(expected, 'byte')}; the checkpoint is damaged, use another checkpoint"
        )
