"""Reading a checkpoint, on any number of ranks."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors
from numpy.typing import NDArray

from plsc.checkpoint.layout import MANIFEST, list_checkpoints
from plsc.checkpoint.manifest import PartEntry, TensorEntry, read_manifest
from plsc.distributed.agreement import explain
from plsc.errors import CheckpointError, PLSCError
from plsc.utils.artifacts import recognize
from plsc.utils.hints import setter
from plsc.utils.ranges import Range

# Rows that `Checkpoint.read_rows` reads at a time.
_BLOCK_ROWS = 1 << 16


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
            manifest = read_manifest(self.path / MANIFEST)
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

    def _read_part(self, name: str, part: PartEntry, *, rows: Range | None) -> np.ndarray:
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

    def _entry(self, name: str) -> TensorEntry:
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
            f"{file}: found {'no such file' if size is None else f'{size} bytes'}, "
            f"expected {expected} bytes; the checkpoint is damaged, use another epoch's"
        )
