"""Writing a checkpoint, on all ranks together."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from plsc.checkpoint.layout import MANIFEST, MODEL_FILE
from plsc.checkpoint.manifest import FORMAT, VERSION, Manifest, PartEntry, TensorEntry
from plsc.checkpoint.reader import Checkpoint
from plsc.distributed.agreement import agree, explain
from plsc.distributed.collectives import Collectives
from plsc.errors import CheckpointError
from plsc.utils.atomic import partial_path, write_folder
from plsc.utils.files import sync_path
from plsc.utils.finite import find_nonfinite
from plsc.utils.hints import setter

# The name of the checkpoint that `try_folder` writes and removes.
_TRIAL = ".plsc-trial"


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


class Described(NamedTuple):
    """What rank 0 needs to know of a part that any rank has written."""

    name: str
    shape: list[int]  # of the global tensor
    dtype: str
    file: str
    offset: int
    rows: int  # in this part


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


def _write_parts(folder: Path, parts: list[Part]) -> list[Described]:
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


def _describe(part: Part) -> Described:
    shape = list(part.data.shape)
    rows = shape[0] if shape else 1
    if part.rows is not None:
        shape[0] = part.rows
    return Described(part.name, shape, str(part.data.dtype), part.file, part.offset or 0, rows)


def _write_manifest(folder: Path, described: list[Described], *, about: dict[str, Any]) -> None:
    tensors: dict[str, TensorEntry] = {}
    for part in described:
        entry = tensors.setdefault(part.name, TensorEntry(shape=part.shape, dtype=part.dtype, parts=[]))
        if part.rows:
            entry.parts.append(PartEntry(file=part.file, offset=part.offset, rows=part.rows))
    for entry in tensors.values():
        entry.parts.sort(key=lambda part: part.offset)
    files = sorted({part.file for entry in tensors.values() for part in entry.parts})
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder / missing[0]} was written by another rank but is not seen by rank 0; {_shared()}"
        )
    sizes = {file: (folder / file).stat().st_size for file in files}
    manifest = Manifest(format=FORMAT, version=VERSION, about=about, files=sizes, tensors=tensors)
    (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(), indent=1), encoding="utf-8")
