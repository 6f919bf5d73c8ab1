"""What is done with checkpoints outside of training: described, re-sharded, averaged.

`reshard` and `average` read and write in blocks, so that memory for a few blocks is enough for any checkpoint.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from plsc.checkpoint.layout import list_checkpoints
from plsc.checkpoint.reader import Checkpoint
from plsc.checkpoint.writer import Part, Rows, abandon, begin, complete, write_parts
from plsc.errors import CheckpointError
from plsc.utils.plural import counted
from plsc.utils.ranges import Range, shard_ranges
from plsc.utils.row_types import narrow, widen

log = logging.getLogger("plsc")


@dataclass(frozen=True)
class TensorSummary:
    """A tensor of a checkpoint; `parts` is the number of files that hold rows of it."""

    name: str
    shape: list[int]
    dtype: str
    parts: int


@dataclass(frozen=True)
class Summary:
    """A checkpoint.

    Attributes:
        path: the folder.
        epoch: epochs done.
        step: steps done.
        bytes: size of its files, without the manifest.
        ranks: how many had class centers when it was written.
        has_digests: whether damage is found.
        about: what the run said of itself.
        files: bytes by name.
        tensors: in the order in which they were written.
    """

    path: str
    epoch: int | None
    step: int | None
    bytes: int
    ranks: int
    has_digests: bool
    about: dict[str, Any]
    files: dict[str, int]
    tensors: list[TensorSummary]


def summarize(path: str | Path) -> Summary:
    """Describe a checkpoint by its manifest; no tensor is read.

    Raises:
        CheckpointError: as for `Checkpoint`.
    """
    saved = Checkpoint(path)
    tensors = [
        TensorSummary(name, saved.shape(name), str(saved.dtype(name)), len(saved.parts(name))) for name in saved.names()
    ]
    return Summary(
        path=str(saved.path),
        epoch=saved.about.get("epoch"),
        step=saved.about.get("step"),
        bytes=sum(saved.files.values()),
        ranks=max((tensor.parts for tensor in tensors), default=1),
        has_digests=saved.has_digests,
        about=saved.about,
        files=saved.files,
        tensors=tensors,
    )


@dataclass(frozen=True)
class Condition:
    """What reading a checkpoint whole has shown.

    Attributes:
        damages: what is damaged; empty where nothing is.
        has_digests: whether it has digests, without which damaged numbers are not found. None where that is damaged.
    """

    damages: list[str]
    has_digests: bool | None


def find_damage(path: str | Path) -> dict[str, Condition]:
    """Read checkpoints whole and compare them with their digests.

    Args:
        path: a checkpoint, or a folder of checkpoints, of which all are read.

    Returns:
        The condition of each checkpoint, by its path.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    checkpoints = list_checkpoints(path) or [Checkpoint(path).path]
    return {str(checkpoint): _condition_of(checkpoint) for checkpoint in checkpoints}


def _condition_of(path: Path) -> Condition:
    try:
        saved = Checkpoint(path)
    except CheckpointError as error:
        return Condition([str(error)], None)
    return Condition([str(damage) for damage in saved.damages()], saved.has_digests)


def reshard(source: str | Path, target: str | Path, *, ranks: int) -> Path:
    """Write a checkpoint as so many ranks would have written it. Its numbers are the same, bit for bit.

    Args:
        source: a checkpoint, or a folder of checkpoints, of which the newest is taken.
        target: the folder to write; it must not exist.
        ranks: 1 or more. Where there are fewer classes, the last ranks have none. With 1 every tensor is whole in one
            file and has its own name there, as other readers of safetensors files need it.

    Returns:
        The folder written.

    Raises:
        CheckpointError: the source is damaged, or the target exists or cannot be written.
    """
    saved = Checkpoint(source)
    tensors = {name: SavedRows(saved, name) for name in saved.names()}
    return write_as_ranks(Path(target), tensors, sharded=saved.has_row_per_class, about=saved.about, ranks=ranks)


def average(sources: Sequence[str | Path], target: str | Path) -> Path:
    """Write the mean of the weights of several checkpoints of one network, as for testing and exporting.

    The mean is taken in float64 of all floating tensors of the network, its running statistics included, and of the
    class centers. Other tensors of the network, the state of the margin and the identity of the classes are those of
    the last source. The state of the optimizers is left out: a run that is resumed from the mean begins it anew.

    Args:
        sources: two checkpoints or more. The target has the shards of the last one.
        target: the folder to write; it must not exist.

    Returns:
        The folder written.

    Raises:
        CheckpointError: the sources are of different networks or classes, one is damaged, or the target exists or
            cannot be written.
    """
    opened = [Checkpoint(source) for source in sources]
    if len(opened) < 2:
        raise CheckpointError(f"got {len(opened)} checkpoint to average, expected two or more")
    runs = {saved.about.get("run") for saved in opened}
    if len(runs) > 1:
        log.warning(
            "the checkpoints to average are of %s: the mean is of use only where one of them began from another",
            counted(len(runs), "run"),
        )
    names = [name for name in opened[-1].names() if _is_averaged(name) or _is_kept(name)]
    for saved in opened[:-1]:
        _check_alike(saved, opened[-1], names)
    last = opened[-1]
    tensors: dict[str, SavedRows] = {
        name: _MeanRows(opened, name)
        if _is_averaged(name) and _is_floating(last.dtype(name))
        else SavedRows(last, name)
        for name in names
    }
    about = {**last.about, "averaged": [str(saved.path) for saved in opened]}
    ranks = max(len(last.parts(name)) for name in names)
    return write_as_ranks(Path(target), tensors, sharded=last.has_row_per_class, about=about, ranks=ranks)


def _is_averaged(name: str) -> bool:
    """Whether a tensor is one of the network's or a parameter of the head; state has a colon in its name."""
    return name.startswith("backbone.") or (name.startswith("head.") and ":" not in name)


def _is_kept(name: str) -> bool:
    return name.startswith(("head.margin:", "classes."))


def _is_floating(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype == np.uint16  # the bits of bfloat16


def _check_alike(saved: Checkpoint, last: Checkpoint, names: list[str]) -> None:
    """Refuse a checkpoint whose network or classes are not those of another one."""
    own = {name for name in saved.names() if _is_averaged(name) or _is_kept(name)}
    odd = sorted(own ^ set(names)) or [
        name for name in names if (saved.shape(name), saved.dtype(name)) != (last.shape(name), last.dtype(name))
    ]
    if odd:
        raise CheckpointError(
            f"{saved.path} and {last.path} are not of one network and loss: they differ in "
            f"{counted(len(odd), 'tensor')}, the first '{odd[0]}'; average checkpoints of one run"
        )
    for key in ("network", "classes"):
        found, expected = (one.about.get(key) for one in (saved, last))
        if found != expected:
            raise CheckpointError(
                f"{saved.path} and {last.path} cannot be averaged: the {key} of one is {found}, of the other "
                f"{expected}; average checkpoints of one run"
            )


class CutRows(Rows, Protocol):
    """Rows of a tensor, of which ranges can be written by other ranks."""

    def cut(self, rows: Range) -> Rows:
        """The rows in a range."""
        ...


class SavedRows:
    """The rows of a tensor of a checkpoint, or a range of them, to be written to another one."""

    is_view = False  # each block is read from the files

    def __init__(self, saved: Checkpoint, name: str, rows: Range | None = None) -> None:
        self._saved, self._name, self._rows = saved, name, rows
        shape = saved.shape(name)
        self.shape = shape if rows is None else [rows.size, *shape[1:]]
        self.dtype: np.dtype[Any] = saved.dtype(name)

    def cut(self, rows: Range) -> SavedRows:
        """The same tensor's rows in a range."""
        return type(self)(self._saved, self._name, rows)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop)."""
        return self._read(self._saved, start, stop)

    def _read(self, saved: Checkpoint, start: int, stop: int) -> NDArray[Any]:
        if not self.shape:
            return saved.read(self._name).reshape([1])
        first = 0 if self._rows is None else self._rows.start
        return saved.read(self._name, Range(first + start, first + stop))


class _MeanRows(SavedRows):
    """The mean of a tensor over several checkpoints."""

    def __init__(self, opened: Sequence[Checkpoint], name: str, rows: Range | None = None) -> None:
        super().__init__(opened[-1], name, rows)
        self._opened = opened

    def cut(self, rows: Range) -> _MeanRows:
        """The same tensor's rows in a range."""
        return _MeanRows(self._opened, self._name, rows)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop)."""
        total = np.zeros([], np.float64)
        for saved in self._opened:
            total = total + as_float64(self._read(saved, start, stop))
        return from_float64(total / len(self._opened), self.dtype)


def as_float64(values: NDArray[Any]) -> NDArray[np.float64]:
    return (widen(values) if values.dtype == np.uint16 else values).astype(np.float64)


def from_float64(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    return narrow(values) if dtype == np.uint16 else values.astype(dtype)


def write_as_ranks(
    target: Path,
    tensors: Mapping[str, CutRows],
    *,
    sharded: Callable[[str], bool],
    about: dict[str, Any],
    ranks: int,
    check_rows: bool = False,
) -> Path:
    """Write a checkpoint as `ranks` ranks would.

    Args:
        target: the folder to write; it must not exist.
        tensors: by name.
        sharded: whether a tensor has a row per class, so that each rank writes some of them.
        about: values that JSON can hold.
        ranks: 1 or more.
        check_rows: refuse numbers that are not finite in tensors that have a row per class.

    Raises:
        CheckpointError: the target exists or cannot be written, a tensor cannot be read, or a number is not finite.
    """
    if os.path.lexists(target):
        raise CheckpointError(f"{target} exists and is never overwritten; name another folder")
    begin(target)
    try:
        for rank in range(ranks):
            parts = _parts_of(tensors, rank, sharded=sharded, ranks=ranks, check_rows=check_rows)
            write_parts(target, parts, rank=rank)
        complete(target, about, ranks=ranks)
    finally:
        abandon(target)  # nothing where it is complete
    return target


def _parts_of(
    tensors: Mapping[str, CutRows], rank: int, *, sharded: Callable[[str], bool], ranks: int, check_rows: bool
) -> Iterable[Part]:
    """What one rank writes. A network may have constants that are not finite, which were checked when it was saved."""
    for name, rows in tensors.items():
        if sharded(name):
            own = shard_ranges(rows.shape[0], ranks)[rank]
            yield Part(name, rows.cut(own), offset=own.start, rows=rows.shape[0], is_finite=check_rows)
        elif rank == 0:
            yield Part(name, rows, is_finite=False)
