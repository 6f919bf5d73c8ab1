"""Checkpoints: a folder per epoch, in which tensors are described by name, global shape and offset.

    output/7/manifest.json                        lists tensors and their parts; holds the run's progress
    output/7/model.safetensors                    the backbone and its optimizer state
    output/7/classes-000000000.safetensors        class centers from class 0 on, and their optimizer state
    output/7/classes-000050000.safetensors        class centers from class 50,000 on, and their optimizer state

A checkpoint does not depend on how many ranks wrote it, so any number of ranks can read it. It is written as
`output/.7.plsc-partial`, flushed to the disk and renamed: a folder named by its epoch is complete.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from plsc.distributed.agreement import agree, explain
from plsc.distributed.collectives import Collectives
from plsc.errors import CheckpointError, PLSCError
from plsc.utils.artifacts import recognize
from plsc.utils.atomic import partial_path, write_folder
from plsc.utils.files import sync_path
from plsc.utils.finite import find_nonfinite
from plsc.utils.hints import setter
from plsc.utils.plural import counted
from plsc.utils.ranges import Range

FORMAT, VERSION = "plsc-checkpoint", 1
MANIFEST = "manifest.json"
MODEL_FILE = "model.safetensors"
# '7' after epoch 7, '7.120' after step 120 of the epoch that follows.
_NAME = re.compile(r"[0-9]+(\.[0-9]+)?")
# The name of the checkpoint that `try_folder` writes and removes.
_TRIAL = ".plsc-trial"
# Rows that `Checkpoint.read_rows` reads at a time.
_BLOCK_ROWS = 1 << 16
# What NumPy and safetensors both know.
_DTYPES = frozenset(np.dtype(code).name for code in "?bBhHiIqQefdF")

_Model = TypeVar("_Model", bound=BaseModel)

log = logging.getLogger("plsc")


@dataclass(frozen=True)
class Part:
    """A tensor, or some of its rows, as one rank holds it and writes it into a checkpoint.

    Args:
        name: the tensor's name, the same on all ranks.
        data: the whole tensor; or with `offset` and `rows` this rank's rows of it, [this rank's rows, ...].
        offset: index in the global tensor of the first row of `data`. By default `data` is the whole tensor.
        rows: rows of the global tensor; given together with `offset`.
        is_finite: a number that is not finite is refused when a checkpoint is written. False for a constant that
            holds such numbers, as a mask does.

    Example:
        >>> Part("backbone.conv1.weight", weight)
        >>> Part("head.weight", centers, offset=50_000, rows=100_000)
    """

    name: str
    data: np.ndarray
    offset: int | None = field(default=None, kw_only=True)
    rows: int | None = field(default=None, kw_only=True)
    is_finite: bool = field(default=True, kw_only=True)

    @property
    def file(self) -> str:
        """The file in the checkpoint that holds this part."""
        return MODEL_FILE if self.offset is None else f"classes-{self.offset:09d}.safetensors"


class _Described(NamedTuple):
    """What rank 0 needs to know of a part that any rank has written."""

    name: str
    shape: list[int]  # of the global tensor
    dtype: str
    file: str
    offset: int
    rows: int  # in this part


_Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True)


class _PartEntry(_Entry):
    file: str
    offset: _Count
    rows: _Count


class _TensorEntry(_Entry):
    shape: list[_Count]
    dtype: str
    parts: list[_PartEntry]

    @field_validator("dtype")
    @classmethod
    def _is_known(cls, dtype: str) -> str:
        if dtype not in _DTYPES:
            raise ValueError(f"found {dtype!r}, expected one of {', '.join(sorted(_DTYPES))}")
        return dtype

    @model_validator(mode="after")
    def _rows_follow_each_other(self) -> _TensorEntry:
        reached, end = 0, self.shape[0] if self.shape else 1
        for part in self.parts:
            stop = part.offset + part.rows
            if part.offset < reached or stop > end:
                raise ValueError(
                    f"found rows {part.offset} to {stop} in {part.file!r}, expected rows from {reached} on, up to {end}"
                )
            reached = stop
        return self


class _Manifest(_Entry):
    format: str
    version: int
    about: dict[str, Any]
    files: dict[str, _Count]  # bytes by name
    tensors: dict[str, _TensorEntry]

    @model_validator(mode="after")
    def _files_lie_in_the_folder(self) -> _Manifest:
        for name in self.files:
            if name != os.path.basename(name) or name in ("", ".", ".."):
                raise ValueError(f"found file {name!r}, expected the name of a file in the checkpoint's folder")
        for name, entry in self.tensors.items():
            for part in entry.parts:
                if part.file not in self.files:
                    raise ValueError(f"tensor '{name}' lies in {part.file!r}, which is not among the listed files")
        return self


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
    folder, is_main = Path(root) / name, collectives.topology.is_main
    options: dict[str, Any] = {"error": CheckpointError, "prefix": f"the checkpoint {folder} was not written: "}
    held = agree(lambda: list(parts), collectives, **options)
    agree(lambda: _check_parts(held), collectives, **options)
    with contextlib.ExitStack() as stack:
        agree(lambda: _begin(folder, stack) if is_main else None, collectives, **options)
        own = agree(lambda: _write_parts(partial_path(folder), held), collectives, **options)
        described = [part for rank in collectives.gather_objects(own) for part in rank]

        def finish() -> None:
            _write_manifest(partial_path(folder), described, about=about)
            stack.close()  # renames the folder

        agree(lambda: finish() if is_main else None, collectives, **options)
    return folder


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


def prune_checkpoints(root: str | Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints in `root`, 1 or more. Folders without a manifest stay.

    A checkpoint that cannot be deleted costs space and nothing else: a warning names it.
    """
    try:
        for path in list_checkpoints(root)[:-keep]:
            # Renamed first, so that a deletion that is interrupted leaves no folder that looks like a checkpoint.
            doomed = partial_path(path)
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            shutil.rmtree(doomed)
    except OSError as error:
        log.warning("%s: an old checkpoint cannot be deleted: %s; delete it, or its disk fills up", root, error)


def list_checkpoints(root: str | Path) -> list[Path]:
    """The checkpoints in `root`, in the order in which training reached them."""
    root = Path(root)
    if not root.is_dir():
        return []
    return sorted(
        (path for path in root.iterdir() if is_checkpoint_name(path.name) and (path / MANIFEST).is_file()), key=order
    )


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder of this name counts as a checkpoint: '7', '7.120'."""
    return _NAME.fullmatch(name) is not None


def order(path: Path) -> tuple[int, int]:
    """The progress that a checkpoint's name states: (epochs done, steps of the next epoch done)."""
    epoch, _, step = path.name.partition(".")
    return (int(epoch), int(step)) if step else (int(epoch) + 1, 0)


class Checkpoint:
    """A checkpoint on disk, for reading on any number of ranks.

    Args:
        path: the folder of a checkpoint, or a folder of checkpoints, of which the newest is taken.

    Attributes:
        path: the folder of the checkpoint.
        about: what `save_checkpoint` was called with.

    Raises:
        CheckpointError: there is no checkpoint, it has another version, or a file is missing or cut short.

    Example:
        >>> saved = Checkpoint("output")
        >>> saved.read("head.weight", Range(0, 1000))  # the first 1000 class centers
    """

    def __init__(self, path: str | Path) -> None:
        with reading(path):
            self.path = _find(Path(path))
            manifest = _read_manifest(self.path / MANIFEST)
            for file, expected in manifest.files.items():
                _check_size(self.path / file, expected)
        self.about = manifest.about
        self._tensors = manifest.tensors

    @property
    def digest(self) -> str:
        """Of what the manifest says of the run."""
        return hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()

    def names(self, prefix: str) -> list[str]:
        """The names of the tensors that begin with `prefix`."""
        return [name for name in self._tensors if name.startswith(prefix)]

    def shape(self, name: str) -> list[int]:
        """The global shape of a tensor."""
        return list(self._entry(name).shape)

    def read(self, name: str, rows: Range | None = None) -> np.ndarray:
        """A tensor, or a range of its global rows, however many shards it was written as.

        Args:
            name: the tensor's name.
            rows: by default all rows.

        Raises:
            CheckpointError: there is no such tensor, a row is in no file, or a file is damaged.
        """
        entry = self._entry(name)
        if rows is None:
            rows = Range(0, entry.shape[0] if entry.shape else 1)
        pieces, reached = [], rows.start
        for part in entry.parts:
            own = Range(part.offset, part.offset + part.rows)
            wanted = own.overlap(rows)
            if wanted.size and wanted.start == reached:
                inside = None if wanted == own else wanted.shift(-own.start)
                pieces.append(self._read_part(name, part, rows=inside))
                reached = wanted.stop
        if rows.size and reached != rows.stop:
            raise CheckpointError(f"{self.path}: row {reached} of tensor '{name}' is in no file; use another epoch's")
        with reading(self.path):
            if not pieces:
                return np.zeros([0, *entry.shape[1:]], entry.dtype)
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def read_rows(self, name: str, rows: NDArray[np.int64]) -> np.ndarray:
        """Chosen global rows of a tensor, in the order of `rows`; read block by block, so that little is held at once.

        Raises:
            CheckpointError: as for `read`.
        """
        total, order = self.shape(name)[0], np.argsort(rows, kind="stable")
        found = np.zeros([len(rows), *self.shape(name)[1:]], self.read(name, Range(0, min(total, 1))).dtype)
        starts = np.unique(rows // _BLOCK_ROWS) * _BLOCK_ROWS
        for start in starts.tolist():
            stop = min(start + _BLOCK_ROWS, total)
            first, last = np.searchsorted(rows, [start, stop], sorter=order)
            places = order[first:last]
            found[places] = self.read(name, Range(start, stop))[rows[places] - start]
        return found

    def _read_part(self, name: str, part: _PartEntry, *, rows: Range | None) -> np.ndarray:
        """Rows of a tensor in one file, counted from the file's first row; None for all."""
        file, entry = self.path / part.file, self._entry(name)
        with reading(file, f"tensor '{name}' "), safetensors.safe_open(str(file), framework="numpy") as opened:
            tensor = opened.get_tensor(name) if rows is None else opened.get_slice(name)[rows.start : rows.stop]
            tensor = np.asarray(tensor)
        # A scalar is written as one row.
        shape = [part.rows if rows is None else rows.size, *entry.shape[1:]]
        if list(tensor.shape) != shape or tensor.dtype != entry.dtype:
            raise CheckpointError(
                f"{file}: tensor '{name}' is {list(tensor.shape)} of {tensor.dtype}, but {MANIFEST} says {shape} of "
                f"{entry.dtype}; the checkpoint is damaged, use another epoch's"
            )
        return tensor

    def _entry(self, name: str) -> _TensorEntry:
        if name not in self._tensors:
            raise CheckpointError(f"{self.path}: holds no tensor '{name}'; it was written by another network or loss")
        return self._tensors[name]


def _explain_absence(path: Path) -> str:
    """What a path is that is neither a checkpoint nor a folder of checkpoints."""
    expected = f"expected a folder with {MANIFEST}, or one that holds such folders (output/0, output/1, ...)"
    other = f"name another folder with {setter('checkpoint_dir')}"
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
        raise CheckpointError(f"{path}: {what}cannot be read: {explain(error)}; use another epoch's") from error


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
            f"expected {counted(expected, 'byte')}; the checkpoint is damaged, use another epoch's"
        )


def _shared() -> str:
    return f"{setter('model_save_dir')} must name a folder that all machines share"


def _check_parts(parts: Iterable[Part]) -> None:
    for part in parts:
        if part.is_finite:
            check_finite(part.name, part.data, first_row=part.offset or 0)


def check_finite(name: str, array: np.ndarray, *, first_row: int = 0) -> None:
    """Refuse a tensor that holds a number that is not finite.

    Args:
        name: for the message.
        array: [rows, ...].
        first_row: index in the global tensor of the first row.

    Raises:
        CheckpointError: names the tensor, the row and the number.
    """
    found = find_nonfinite(array)
    if found is not None:
        index, value = found
        where = f" in row {first_row + index[0]}" if index else ""
        raise CheckpointError(f"{name} holds {value:g}{where}, expected finite numbers; use an earlier checkpoint")


def _begin(folder: Path, stack: contextlib.ExitStack) -> None:
    if os.path.lexists(folder):
        raise CheckpointError(f"{folder} exists and is never overwritten; choose another {setter('model_save_dir')}")
    stack.enter_context(write_folder(folder, CheckpointError, replace=False))


def _is_full(error: Exception) -> bool:
    """Whether a disk or a quota is full. The error of safetensors has the number only in its text."""
    return any(
        getattr(error, "errno", None) == number or f"(os error {number})" in str(error)
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    )


def _write_parts(folder: Path, parts: list[Part]) -> list[_Described]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} was made by rank 0 but is not seen by this rank; {_shared()}")
    files: dict[str, dict[str, np.ndarray]] = {}
    for part in parts:
        if part.data.shape[:1] != (0,):
            files.setdefault(part.file, {})[part.name] = np.ascontiguousarray(part.data)
    for file, tensors in files.items():
        try:
            safetensors.numpy.save_file(tensors, str(folder / file))
            # safetensors lets only the owner read the file; here whoever may read the folder may read it.
            (folder / file).chmod(folder.stat().st_mode & 0o666)
            # Each rank flushes its own files: rank 0 cannot flush what another machine has not sent yet.
            sync_path(folder / file)
        except Exception as error:  # safetensors names no file
            remedy = f"; free space there, or choose another {setter('model_save_dir')}" if _is_full(error) else ""
            raise CheckpointError(f"{folder / file}: cannot be written: {explain(error)}{remedy}") from error
    return [_describe(part) for part in parts]


def _describe(part: Part) -> _Described:
    shape = list(part.data.shape)
    rows = shape[0] if shape else 1
    if part.rows is not None:
        shape[0] = part.rows
    return _Described(part.name, shape, str(part.data.dtype), part.file, part.offset or 0, rows)


def _write_manifest(folder: Path, described: list[_Described], *, about: dict[str, Any]) -> None:
    tensors: dict[str, _TensorEntry] = {}
    for part in described:
        entry = tensors.setdefault(part.name, _TensorEntry(shape=part.shape, dtype=part.dtype, parts=[]))
        if part.rows:
            entry.parts.append(_PartEntry(file=part.file, offset=part.offset, rows=part.rows))
    for entry in tensors.values():
        entry.parts.sort(key=lambda part: part.offset)
    files = sorted({part.file for entry in tensors.values() for part in entry.parts})
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder / missing[0]} was written by another rank but is not seen by rank 0; {_shared()}"
        )
    sizes = {file: (folder / file).stat().st_size for file in files}
    manifest = _Manifest(format=FORMAT, version=VERSION, about=about, files=sizes, tensors=tensors)
    (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(), indent=1), encoding="utf-8")


def _read_manifest(path: Path) -> _Manifest:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"], content["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a checkpoint's manifest: {error}; use another epoch's") from None
    if found != (FORMAT, VERSION):
        raise CheckpointError(
            f"{path}: found format {found[0]!r} version {found[1]!r}, expected {FORMAT!r} version {VERSION}"
        )
    return check_content(_Manifest, content, path)


def check_content(kind: type[_Model], content: Any, path: Path, *, inside: str = "") -> _Model:
    """What a manifest holds as an object of a pydantic model.

    Args:
        kind: the model.
        content: what was read.
        path: the manifest.
        inside: the key of the manifest that `content` is the value of.

    Raises:
        CheckpointError: a value is missing or of another kind; names the first.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(filter(None, [inside, *map(str, first["loc"])]))
        message = first["msg"].removeprefix("Value error, ")
        raise CheckpointError(
            f"{path}: the manifest is damaged: {f'{where}: ' if where else ''}{message}; use another epoch's"
        ) from None
