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
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import BaseModel, ValidationError, model_validator

from plsc.distributed.collectives import Collectives
from plsc.errors import CheckpointError
from plsc.utils.atomic import partial_path, write_folder
from plsc.utils.files import sync_path
from plsc.utils.finite import find_nonfinite
from plsc.utils.ranges import Range

FORMAT, VERSION = "plsc-checkpoint", 1
MANIFEST = "manifest.json"
MODEL_FILE = "model.safetensors"
# '7' after epoch 7, '7.120' after step 120 of the epoch that follows.
_NAME = re.compile(r"\d+(\.\d+)?")
_Result = TypeVar("_Result")


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


class _PartEntry(BaseModel):
    file: str
    offset: int
    rows: int


class _TensorEntry(BaseModel):
    shape: list[int]
    dtype: str
    parts: list[_PartEntry]


class _Manifest(BaseModel):
    format: str
    version: int
    about: dict[str, Any]
    files: dict[str, int]  # bytes by name
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
        parts: what this rank holds. Only rank 0 passes whole tensors.
        about: values that JSON can hold, the same on all ranks; read back as `Checkpoint.about`.
        collectives: over the ranks that write.

    Returns:
        The folder written.

    Raises:
        CheckpointError: a number is not finite, `root/name` exists, or a rank could not write; the same error on every
            rank.
    """
    parts = list(parts)
    _agree(lambda: _check_parts(parts), collectives)
    folder, is_main = Path(root) / name, collectives.topology.is_main
    with contextlib.ExitStack() as stack:
        _agree(lambda: _begin(folder, stack) if is_main else None, collectives)
        described = _agree(lambda: _write_parts(partial_path(folder), parts), collectives)

        def finish() -> None:
            _write_manifest(partial_path(folder), [part for rank in described for part in rank], about=about)
            stack.close()  # renames the folder

        _agree(lambda: finish() if is_main else None, collectives)
    return folder


def prune_checkpoints(root: str | Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints in `root`, 1 or more. Folders without a manifest stay."""
    for path in list_checkpoints(root)[:-keep]:
        # Renamed first, so that a deletion that is interrupted leaves no folder that looks like a checkpoint.
        doomed = partial_path(path)
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)


def list_checkpoints(root: str | Path) -> list[Path]:
    """The checkpoints in `root`, in the order in which training reached them."""
    root = Path(root)
    if not root.is_dir():
        return []
    return sorted(
        (path for path in root.iterdir() if _NAME.fullmatch(path.name) and (path / MANIFEST).is_file()), key=order
    )


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
        path = Path(path)
        if not (path / MANIFEST).is_file():
            found = list_checkpoints(path)
            if not found:
                what = "holds no checkpoint" if path.is_dir() else "does not exist"
                raise CheckpointError(
                    f"checkpoint_dir {str(path)!r} {what}; expected a folder with {MANIFEST}, "
                    f"or one that holds such folders (output/0, output/1, ...)"
                )
            path = found[-1]
        self.path = path
        manifest = _read_manifest(path / MANIFEST)
        self.about = manifest.about
        self._tensors = manifest.tensors
        for file, expected in manifest.files.items():
            size = (path / file).stat().st_size if (path / file).is_file() else None
            if size != expected:
                raise CheckpointError(
                    f"{path / file}: found {'no such file' if size is None else f'{size} bytes'}, "
                    f"expected {expected} bytes; the checkpoint is damaged, use another epoch's"
                )

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
                pieces.append(self._read_part(name, part.file, None if wanted == own else wanted.shift(-own.start)))
                reached = wanted.stop
        if rows.size and reached != rows.stop:
            raise CheckpointError(f"{self.path}: row {reached} of tensor '{name}' is in no file; use another epoch's")
        if not pieces:
            return np.zeros([0, *entry.shape[1:]], entry.dtype)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _read_part(self, name: str, file: str, rows: Range | None) -> np.ndarray:
        """Rows of a tensor in one file, counted from the file's first row; None for all."""
        try:
            with safetensors.safe_open(str(self.path / file), framework="numpy") as opened:
                tensor = opened.get_tensor(name) if rows is None else opened.get_slice(name)[rows.start : rows.stop]
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path / file}: tensor '{name}' cannot be read: {error}; use another epoch's"
            ) from None
        return np.asarray(tensor)

    def _entry(self, name: str) -> _TensorEntry:
        if name not in self._tensors:
            raise CheckpointError(f"{self.path}: holds no tensor '{name}'; it was written by another network or loss")
        return self._tensors[name]


def _agree(action: Callable[[], _Result], collectives: Collectives) -> list[_Result]:
    """Run `action` on every rank and return all ranks' results in rank order.

    Where it fails on any rank, the first failure is raised on all, so that no rank waits for one that has stopped.
    """
    result: list[_Result] = []
    failure = None
    try:
        result.append(action())
    except (CheckpointError, OSError, safetensors.SafetensorError) as error:
        failure = f"rank {collectives.topology.rank}: {error}"
    outcomes: list[tuple[str | None, list[_Result]]] = collectives.gather_objects((failure, result))
    for failure, _ in outcomes:
        if failure is not None:
            raise CheckpointError(f"the checkpoint was not written: {failure}")
    return [value for _, values in outcomes for value in values]


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
        raise CheckpointError(f"{folder} exists and is never overwritten; choose another set_model_save_dir")
    stack.enter_context(write_folder(folder, CheckpointError, replace=False))


def _write_parts(folder: Path, parts: list[Part]) -> list[_Described]:
    files: dict[str, dict[str, np.ndarray]] = {}
    for part in parts:
        if part.data.shape[:1] != (0,):
            files.setdefault(part.file, {})[part.name] = np.ascontiguousarray(part.data)
    for file, tensors in files.items():
        safetensors.numpy.save_file(tensors, str(folder / file))
        # safetensors lets only the owner read the file; here whoever may read the folder may read it.
        (folder / file).chmod(folder.stat().st_mode & 0o666)
        # Each rank flushes its own files: rank 0 cannot flush what another machine has not sent yet.
        sync_path(folder / file)
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
            f"{folder / missing[0]} was written by another rank but is not seen by rank 0; "
            f"set_model_save_dir must name a folder that all machines share"
        )
    sizes = {file: (folder / file).stat().st_size for file in files}
    manifest = _Manifest(format=FORMAT, version=VERSION, about=about, files=sizes, tensors=tensors)
    (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(), indent=1), encoding="utf-8")


def _read_manifest(path: Path) -> _Manifest:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"], content["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint's manifest: {error}") from None
    if found != (FORMAT, VERSION):
        raise CheckpointError(
            f"{path}: found format {found[0]!r} version {found[1]!r}, expected {FORMAT!r} version {VERSION}"
        )
    try:
        return _Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{path}: the manifest is damaged: {where}: {first['msg']}; use another epoch's"
        ) from None
