"""Writing a checkpoint.

`save_checkpoint` writes one on all ranks together. Its four steps, `begin`, `write_parts`, `complete` and `abandon`,
call no collective, so that a thread can take them while the ranks go on; the caller sees to it that each step begins
on any rank only when the one before has ended on all.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from plsc.checkpoint.digests import ALGORITHM, Hasher, as_bytes, digest_of
from plsc.checkpoint.finite import check_finite
from plsc.checkpoint.layout import INDEX, MANIFEST, MODEL_FILE
from plsc.checkpoint.manifest import FORMAT, VERSION, FileEntry, Manifest, PartEntry, TensorEntry, seal
from plsc.checkpoint.reader import Checkpoint, block_rows
from plsc.distributed import watch
from plsc.distributed.agreement import agree, explain
from plsc.distributed.collectives import Collectives
from plsc.errors import CheckpointError, PLSCError
from plsc.utils.atomic import partial_path, write_folder
from plsc.utils.files import sync
from plsc.utils.hints import setter
from plsc.utils.safetensors_file import DTYPES, make_header, tensor_order

# Most bytes of the tensors in a file that holds rows of classes: some file systems and tools take no file of 4 GiB.
LARGEST_FILE = (1 << 32) - (1 << 24)
# The name of the checkpoint that `try_folder` writes and removes.
_TRIAL = ".plsc-trial"


class Rows(Protocol):
    """A tensor whose rows are read when they are written, so that no copy of all of it is made."""

    @property
    def shape(self) -> Sequence[int]:
        """Of all rows."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the arrays that `read` returns."""
        ...

    @property
    def is_view(self) -> bool:
        """Whether what `read` returns takes no memory of its own."""
        ...

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop), [stop - start, ...]. A scalar is one row."""
        ...


@dataclass(frozen=True)
class Part:
    """A tensor, or some of its rows, as one rank holds it and writes it into a checkpoint.

    Args:
        name: the tensor's name, the same on all ranks.
        data: the whole tensor; or with `offset` and `rows` this rank's rows of it, [this rank's rows, ...]. An array,
            or what reads it in blocks.
        offset: index in the global tensor of the first row of `data`. By default `data` is the whole tensor.
        rows: rows of the global tensor; given together with `offset`.
        is_finite: a number that is not finite is refused when a checkpoint is written. False for a constant that
            holds such numbers, as a mask does.
        may_copy: all of it may be copied in memory while training goes on. False for what is larger than memory, as
            rows in a mapped file.

    Example:
        >>> Part("backbone.conv1.weight", weight)
        >>> Part("head.weight", centers, offset=50_000, rows=100_000)
    """

    name: str
    data: NDArray[Any] | Rows
    offset: int | None = field(default=None, kw_only=True)
    rows: int | None = field(default=None, kw_only=True)
    is_finite: bool = field(default=True, kw_only=True)
    may_copy: bool = field(default=True, kw_only=True)

    @property
    def file(self) -> str:
        """The file in the checkpoint that holds this part."""
        return MODEL_FILE if self.offset is None else f"classes-{self.offset:09d}.safetensors"

    @property
    def key(self) -> str:
        """Name of these rows in the file: that of the tensor, with the rows where others hold the rest."""
        if self.num_rows == (self.rows or self.num_rows):
            return self.name
        return f"{self.name}.rows-{self.offset}-{(self.offset or 0) + self.num_rows}"

    @property
    def num_rows(self) -> int:
        """Rows of `data`; a scalar is one row."""
        return self.data.shape[0] if self.data.shape else 1

    @property
    def global_shape(self) -> list[int]:
        """Shape of the whole tensor."""
        return list(self.data.shape) if self.rows is None else [self.rows, *self.data.shape[1:]]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) of `data`, contiguous and in the byte order of files."""
        if isinstance(self.data, (np.ndarray, np.generic)):
            rows = np.atleast_1d(self.data)[start:stop]
        else:
            rows = self.data.read(start, stop)
        return np.ascontiguousarray(rows, np.dtype(self.dtype))

    @property
    def is_view(self) -> bool:
        """Whether what `read` returns takes no memory of its own."""
        return isinstance(self.data, (np.ndarray, np.generic)) or self.data.is_view

    @property
    def row_bytes(self) -> int:
        """Bytes per row."""
        return math.prod(self.data.shape[1:]) * np.dtype(self.data.dtype).itemsize

    @property
    def dtype(self) -> str:
        """Name of the type."""
        return str(np.dtype(self.data.dtype).name)


class _CutRows:
    """Rows of a part, from `first` on."""

    def __init__(self, part: Part, first: int, count: int) -> None:
        self._part, self._first = part, first
        self.shape, self.dtype = [count, *part.data.shape[1:]], np.dtype(part.dtype)
        self.is_view = part.is_view

    def read(self, start: int, stop: int) -> NDArray[Any]:
        return self._part.read(self._first + start, self._first + stop)


def _split(parts: list[Part]) -> list[Part]:
    """The same rows in parts of which no file is too large: all rows of a class lie in one file."""
    row_bytes: dict[str, int] = {}
    for part in parts:
        row_bytes[part.file] = row_bytes.get(part.file, 0) + part.row_bytes
    found = []
    for part in parts:
        most = max(1, LARGEST_FILE // max(1, row_bytes[part.file]))
        if part.offset is None or part.num_rows <= most:
            found.append(part)
            continue
        for first in range(0, part.num_rows, most):
            rows = _CutRows(part, first, min(most, part.num_rows - first))
            found.append(replace(part, data=rows, offset=part.offset + first))
    return found


class _WrittenPart(BaseModel):
    """A part as the rank that wrote it describes it; in no file where it has no rows."""

    name: str
    shape: list[int]
    dtype: str
    entry: PartEntry


class _Written(BaseModel):
    """What a rank has written: its description for rank 0."""

    files: dict[str, FileEntry]
    parts: list[_WrittenPart]


def save_checkpoint(
    root: str | Path, name: str, *, parts: Iterable[Part], about: dict[str, Any], collectives: Collectives
) -> Path:
    """Write the checkpoint `root/name` complete or not at all. Every rank must call this.

    Args:
        root: a folder that all ranks share; made where it does not exist.
        name: '7' after epoch 7, '7.120' after step 120 of the epoch that follows.
        parts: what this rank holds, made here where it is an iterator: a failure to make them reaches all ranks. Only
            rank 0 passes whole tensors.
        about: values that JSON can hold, the same on all ranks; read back as `Checkpoint.about`.
        collectives: over the ranks that write.

    Returns:
        The folder written.

    Raises:
        CheckpointError: a number is not finite, `root/name` exists, or a rank could not write; the same error on every
            rank.
    """
    folder, topology = Path(root) / name, collectives.topology
    options: dict[str, Any] = {"error": CheckpointError, "prefix": f"the checkpoint {folder} was not written: "}
    held = agree(lambda: list(parts), collectives, **options)
    try:
        agree(lambda: begin(folder) if topology.is_main else None, collectives, **options)
        agree(lambda: write_parts(folder, held, rank=topology.rank), collectives, **options)
        agree(
            lambda: complete(folder, about, ranks=topology.world_size) if topology.is_main else None,
            collectives,
            **options,
        )
    finally:
        abandon(folder)  # nothing where it is complete
    return folder


# What `begin` has begun and neither `complete` nor `abandon` has ended, by the absolute path of the checkpoint.
_BEGUN: dict[str, contextlib.ExitStack] = {}


def begin(folder: Path) -> None:
    """Make the folder that a checkpoint is written to until it is complete. Rank 0 calls this.

    Raises:
        CheckpointError: `folder` exists, another process is writing it, or the file system refuses.
    """
    if os.path.lexists(folder):
        raise CheckpointError(f"{folder} exists and is never overwritten; choose another {setter('model_save_dir')}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(write_folder(folder, CheckpointError, replace=False))
        _BEGUN[os.path.abspath(folder)] = stack.pop_all()


def write_parts(folder: Path, parts: Iterable[Part], *, rank: int) -> None:
    """Write what a rank holds of a checkpoint that rank 0 has begun, flush it to the disk, and read it back.

    Args:
        folder: of the checkpoint.
        parts: of this rank.
        rank: of this process.

    Raises:
        CheckpointError: a number is not finite, the file system refuses, or what is read back differs.
    """
    partial, held = partial_path(folder), _split(list(parts))
    if not partial.is_dir():
        raise CheckpointError(f"{partial} was made by rank 0 but is not seen by this rank; {_shared()}")
    files: dict[str, list[Part]] = {}
    for part in held:
        if part.dtype not in DTYPES:
            raise CheckpointError(f"{part.name} is of {part.dtype}, expected one of {', '.join(sorted(DTYPES))}")
        if part.num_rows:
            files.setdefault(part.file, []).append(part)
    written = _Written(
        files={}, parts=[_describe(part, block_size=1, digests=[]) for part in held if not part.num_rows]
    )
    for name, inside in files.items():
        with _writing(partial / name):
            written.files[name], described = _write_file(partial / name, inside)
        written.parts += described
    with _writing(partial / _description_name(rank)):
        (partial / _description_name(rank)).write_text(written.model_dump_json(), encoding="utf-8")


def is_written(folder: Path, *, ranks: int) -> bool:
    """Whether so many ranks have ended `write_parts`."""
    return all((partial_path(folder) / _description_name(rank)).is_file() for rank in range(ranks))


def complete(folder: Path, about: dict[str, Any], *, ranks: int) -> None:
    """Give a checkpoint that all ranks have written its index, its manifest and its name. Rank 0 calls this.

    Args:
        folder: of the checkpoint.
        about: values that JSON can hold; read back as `Checkpoint.about`.
        ranks: how many have called `write_parts`, as ranks 0 to `ranks` - 1.

    Raises:
        CheckpointError: the parts do not hold every row of every tensor once, this rank does not see what another one
            wrote, or the file system refuses. The checkpoint is then neither complete nor abandoned.
    """
    partial = partial_path(folder)
    descriptions = [partial / _description_name(rank) for rank in range(ranks)]
    files, tensors = _merge([_read_description(path) for path in descriptions])
    with _writing(partial / INDEX):
        files[INDEX] = _write_index(partial / INDEX, tensors)
    manifest = Manifest(format=FORMAT, version=VERSION, digests=ALGORITHM, about=about, files=files, tensors=tensors)
    with _writing(partial / MANIFEST):
        (partial / MANIFEST).write_bytes(seal(manifest.model_dump()))
    for path in descriptions:
        path.unlink()
    Checkpoint(partial)
    _BEGUN.pop(os.path.abspath(folder)).close()  # flushes all to the disk and renames the folder


def abandon(folder: Path) -> None:
    """Remove what was written of an incomplete checkpoint; nothing where this process has not begun it."""
    stack = _BEGUN.pop(os.path.abspath(folder), None)
    if stack is not None:
        reason = CheckpointError(f"{folder} was abandoned")
        with contextlib.suppress(CheckpointError):
            stack.__exit__(CheckpointError, reason, None)


def try_folder(root: str | Path, collectives: Collectives) -> None:
    """Write a small checkpoint to `root`, read it and remove it, each on all ranks. Every rank must call this.

    Raises:
        CheckpointError: a rank cannot write to `root`, or cannot read what another rank wrote; the same on every rank.
    """
    folder, topology = Path(root) / _TRIAL, collectives.topology

    def remove() -> None:
        if topology.is_main and folder.exists():
            shutil.rmtree(folder)

    agree(remove, collectives, error=CheckpointError)  # a killed process may have left one
    part = Part("rank", np.array([topology.rank]), offset=topology.rank, rows=topology.world_size)
    save_checkpoint(root, _TRIAL, parts=[part], about={}, collectives=collectives)
    try:
        agree(lambda: Checkpoint(folder).read("rank"), collectives, error=CheckpointError)
    finally:
        agree(remove, collectives, error=CheckpointError)


def _shared() -> str:
    return f"{setter('model_save_dir')} must name a folder that all machines share"


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Make whatever stops the writing of a file a `CheckpointError` that names it."""
    try:
        yield
    except PLSCError:
        raise
    except Exception as error:  # `Rows.read` may raise anything
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = f"; free space there, or choose another {setter('model_save_dir')}" if is_full else ""
        raise CheckpointError(f"{file}: cannot be written: {explain(error)}{remedy}") from error


def _write_file(path: Path, parts: list[Part]) -> tuple[FileEntry, list[_WrittenPart]]:
    """Write a safetensors file in blocks and read it back."""
    parts = sorted(parts, key=lambda part: tensor_order(part.key, part.dtype))
    header = make_header((part.key, part.dtype, list(part.data.shape)) for part in parts)
    hasher, written = Hasher(), []
    with open(path, "xb") as file:
        hasher.update(header)
        file.write(header)
        for part in parts:
            size = block_rows(part.row_bytes)
            digests = [_write_block(file, rows, hasher=hasher) for rows in _checked_blocks(part, size)]
            written.append(_describe(part, block_size=size, digests=digests))
        sync(file)
        size = file.tell()
        with contextlib.suppress(OSError):  # a file system may not take the advice
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # read back from the disk, not from memory
    digest = hasher.hexdigest()
    _read_back(path, digest)
    return FileEntry(bytes=size, digest=digest, header=digest_of(header)), written


def _checked_blocks(part: Part, size: int) -> Iterator[NDArray[Any]]:
    """The rows of a part in blocks.

    Raises:
        CheckpointError: a number is not finite.
    """
    for start in range(0, part.num_rows, size):
        watch.phase("writing a checkpoint")
        rows = part.read(start, min(start + size, part.num_rows))
        if part.is_finite:
            shown = rows if part.data.shape else rows.reshape(())
            check_finite(part.name, shown, first_row=(part.offset or 0) + start)
        yield rows


def _write_block(file: BinaryIO, rows: NDArray[Any], *, hasher: Hasher) -> str:
    data = as_bytes(rows)
    hasher.update(data)
    file.write(data)
    return digest_of(data)


def _read_back(path: Path, digest: str) -> None:
    """Compare a file with the digest of what was written to it."""
    hasher, buffer = Hasher(), memoryview(bytearray(min(block_rows(1), path.stat().st_size)))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            watch.phase("reading back a checkpoint")
            hasher.update(buffer[:size])
    if hasher.hexdigest() != digest:
        raise CheckpointError(
            f"{path}: what is read back differs from what was written: its digest is {hasher.hexdigest()}, expected "
            f"{digest}; check the disk and the memory of this machine"
        )


def _describe(part: Part, *, block_size: int, digests: list[str]) -> _WrittenPart:
    entry = PartEntry(
        file=part.file,
        key=part.key,
        offset=part.offset or 0,
        rows=part.num_rows,
        block_rows=block_size,
        digests=digests,
    )
    return _WrittenPart(name=part.name, shape=part.global_shape, dtype=part.dtype, entry=entry)


def _description_name(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def _read_description(path: Path) -> _Written:
    try:
        return _Written.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} was written by another rank but is not seen by rank 0; {_shared()}") from None
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"{path}: cannot be read back: {error}") from None


def _merge(descriptions: list[_Written]) -> tuple[dict[str, FileEntry], dict[str, TensorEntry]]:
    """The files and tensors of all ranks.

    Raises:
        CheckpointError: ranks disagree about a tensor, or its parts do not hold every row once.
    """
    files: dict[str, FileEntry] = {}
    tensors: dict[str, list[_WrittenPart]] = {}
    for written in descriptions:
        files.update(written.files)
        for part in written.parts:
            tensors.setdefault(part.name, []).append(part)
    return files, {name: _join(parts) for name, parts in tensors.items()}


def _join(parts: list[_WrittenPart]) -> TensorEntry:
    """One tensor, of the parts that ranks have written."""
    first = parts[0]
    for part in parts:
        if (part.shape, part.dtype) != (first.shape, first.dtype):
            raise CheckpointError(
                f"{first.name} is {first.shape} of {first.dtype} on one rank, {part.shape} of {part.dtype} on another"
            )
    entries = sorted((part.entry for part in parts if part.entry.rows), key=lambda entry: entry.offset)
    try:
        return TensorEntry(shape=first.shape, dtype=first.dtype, parts=entries)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"{first.name}: the ranks do not hold every row once: {reason}") from None


def _write_index(path: Path, tensors: dict[str, TensorEntry]) -> FileEntry:
    """Write which file holds which tensor, as other readers of safetensors files expect it."""
    files = {part.key: part.file for entry in tensors.values() for part in entry.parts}
    size = sum(entry.rows * entry.row_bytes for entry in tensors.values())
    content = json.dumps({"metadata": {"total_size": size}, "weight_map": files}, indent=1, sort_keys=True).encode()
    path.write_bytes(content)
    return FileEntry(bytes=len(content), digest=digest_of(content))
