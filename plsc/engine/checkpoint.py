"""Checkpoints: a folder per epoch, which describes tensors by name, global shape and offset.

    output/7/manifest.json                        what there is: tensors, their parts, progress
    output/7/model.safetensors                    the backbone and its optimizer state
    output/7/classes-000000000.safetensors        class centers, from class 0 on, and their optimizer state
    output/7/classes-000050000.safetensors        ... from class 50,000 on

Nothing in it depends on how many ranks wrote it, so any number of ranks can read it. It is written
aside as `.7.partial`, made durable, and renamed: a folder without the dot is whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from plsc.distributed.collectives import Collectives
from plsc.errors import CheckpointError
from plsc.utils.ranges import Range

FORMAT, VERSION = "plsc-checkpoint", 1
MANIFEST = "manifest.json"
MODEL_FILE = "model.safetensors"
# '7' after epoch 7, '7.120' after 120 steps of it.
_NAME = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True)
class Part:
    """Rows of a named tensor that this rank holds.

    Attributes:
        name: the same on all ranks.
        data: [rows, ...]; the whole tensor where `offset` is None.
        offset: the first row's place in the global tensor; None for a whole tensor.
        rows: of the global tensor; None for a whole tensor.
    """

    name: str
    data: np.ndarray
    offset: int | None = None
    rows: int | None = None

    @property
    def file(self) -> str:
        return MODEL_FILE if self.offset is None else f"classes-{self.offset:09d}.safetensors"

    def describe(self) -> dict[str, Any]:
        shape = list(self.data.shape) if self.rows is None else [self.rows, *self.data.shape[1:]]
        return {
            "name": self.name,
            "shape": shape,
            "dtype": str(self.data.dtype),
            "file": self.file,
            "offset": self.offset or 0,
            "rows": self.data.shape[0] if self.data.ndim else 1,
        }


def save_checkpoint(
    root: str | Path, name: str, parts: Iterable[Part], about: dict[str, Any], collectives: Collectives
) -> Path:
    """Write `root/name` whole or not at all. Every rank calls it, with the parts it holds.

    Whole tensors are given by rank 0 alone. `root` must be a folder that all ranks share.

    Args:
        about: JSON-able; returned by `Checkpoint.about`.

    Raises:
        CheckpointError: `root/name` exists, or a rank could not write; the same error on every rank.
    """
    final, partial = Path(root) / name, Path(root) / f".{name}.partial"
    main = collectives.topology.is_main
    _agree(collectives, lambda: _prepare(final, partial) if main else None)
    described = _agree(collectives, lambda: _write_parts(partial, list(parts)))
    _agree(collectives, lambda: _finish(final, partial, described, about) if main else None)
    return final


def prune_checkpoints(root: str | Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints under `root`; only folders that hold our manifest."""
    for path in list_checkpoints(root)[:-keep]:
        # Renamed first, so that what remains of an interrupted deletion is not taken for a checkpoint.
        doomed = path.with_name(f".{path.name}.partial")
        path.rename(doomed)
        shutil.rmtree(doomed)


def list_checkpoints(root: str | Path) -> list[Path]:
    """The checkpoints directly under `root`, in the order of their training."""
    root = Path(root)
    if not root.is_dir():
        return []
    return sorted(
        (path for path in root.iterdir() if _NAME.fullmatch(path.name) and (path / MANIFEST).is_file()), key=order
    )


def order(path: Path) -> tuple[int, int]:
    """How far a checkpoint has come, by its name: (epochs done, steps of the next epoch done)."""
    epoch, _, step = path.name.partition(".")
    return (int(epoch), int(step)) if step else (int(epoch) + 1, 0)


class Checkpoint:
    """A checkpoint on disk, open for reading on any number of ranks.

    Args:
        path: the folder of one epoch, or the folder above, of which the newest epoch is taken.

    Raises:
        CheckpointError: there is none, it is of another version, or a file is missing or cut short.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not (path / MANIFEST).is_file():
            epochs = list_checkpoints(path)
            if not epochs:
                what = "holds no checkpoint" if path.is_dir() else "does not exist"
                raise CheckpointError(
                    f"checkpoint_dir {str(path)!r} {what}; expected a folder with {MANIFEST}, "
                    f"or one that holds such folders (output/0, output/1, ...)"
                )
            path = epochs[-1]
        self.path = path
        manifest = _read_manifest(path / MANIFEST)
        self.about: dict[str, Any] = manifest["about"]
        self._tensors: dict[str, Any] = manifest["tensors"]
        for file, size in manifest["files"].items():
            found = (path / file).stat().st_size if (path / file).is_file() else None
            if found != size:
                raise CheckpointError(
                    f"{path / file}: found {'no such file' if found is None else f'{found} bytes'}, "
                    f"expected {size} bytes; the checkpoint is damaged, use another epoch's"
                )

    def names(self, prefix: str) -> list[str]:
        """The tensors whose name begins with `prefix`."""
        return [name for name in self._tensors if name.startswith(prefix)]

    def shape(self, name: str) -> list[int]:
        """The global shape of a tensor."""
        return self._entry(name)["shape"]

    def read(self, name: str, rows: Range | None = None) -> np.ndarray:
        """A tensor, or the given range of its global rows, whatever shards it was written as."""
        entry = self._entry(name)
        if rows is None:
            rows = Range(0, entry["shape"][0] if entry["shape"] else 1)
        pieces = []
        for part in entry["parts"]:
            own = Range(part["offset"], part["offset"] + part["rows"])
            wanted = own.overlap(rows)
            if wanted.size == 0:
                continue
            with safetensors.safe_open(str(self.path / part["file"]), framework="numpy") as file:
                if wanted == own:
                    pieces.append(file.get_tensor(name))
                else:
                    pieces.append(file.get_slice(name)[wanted.start - own.start : wanted.stop - own.start])
        if not pieces:
            return np.zeros([0, *entry["shape"][1:]], entry["dtype"])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self._tensors:
            raise CheckpointError(f"{self.path}: holds no tensor '{name}'; it was written by another network or loss")
        return self._tensors[name]


def _agree(collectives: Collectives, action: Any) -> list:
    """Run `action` here; if it failed on any rank, raise the first failure on all, so that none waits for ever."""
    try:
        outcome = (None, action())
    except (CheckpointError, OSError) as error:
        outcome = (f"rank {collectives.topology.rank}: {error}", None)
    outcomes = collectives.gather_objects(outcome)
    for failure, _ in outcomes:
        if failure is not None:
            raise CheckpointError(f"the checkpoint was not written: {failure}")
    return [value for _, value in outcomes]


def _prepare(final: Path, partial: Path) -> None:
    if final.exists():
        raise CheckpointError(f"{final} exists and is never overwritten; choose another set_model_save_dir")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _write_parts(folder: Path, parts: list[Part]) -> list:
    files: dict[str, dict[str, np.ndarray]] = {}
    for part in parts:
        if part.data.shape[:1] != (0,):
            files.setdefault(part.file, {})[part.name] = np.ascontiguousarray(part.data)
    for file, tensors in files.items():
        safetensors.numpy.save_file(tensors, str(folder / file))
        # safetensors makes it readable by its owner alone; others may read what the folder lets them.
        (folder / file).chmod(folder.stat().st_mode & 0o666)
        _sync(folder / file)
    return [part.describe() for part in parts]


def _finish(final: Path, partial: Path, described: list, about: dict[str, Any]) -> None:
    tensors: dict[str, Any] = {}
    for part in (part for parts in described for part in parts):
        entry = tensors.setdefault(part["name"], {"shape": part["shape"], "dtype": part["dtype"], "parts": []})
        if part["rows"]:
            entry["parts"].append({key: part[key] for key in ("file", "offset", "rows")})
    for entry in tensors.values():
        entry["parts"].sort(key=lambda part: part["offset"])
    files = {part["file"] for entry in tensors.values() for part in entry["parts"]}
    missing = sorted(file for file in files if not (partial / file).is_file())
    if missing:
        raise CheckpointError(
            f"{partial / missing[0]} was written by another rank but is not seen by rank 0; "
            f"set_model_save_dir must name a folder that all machines share"
        )
    sizes = {file: (partial / file).stat().st_size for file in sorted(files)}
    manifest = {"format": FORMAT, "version": VERSION, "about": about, "files": sizes, "tensors": tensors}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _sync(partial / MANIFEST)
    _sync(partial)
    partial.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        known = manifest["format"] == FORMAT and {"about", "files", "tensors"} <= manifest.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint's manifest: {error}") from None
    if not known or manifest["version"] != VERSION:
        raise CheckpointError(
            f"{path}: found format {manifest.get('format')!r} version {manifest.get('version')!r}, "
            f"expected {FORMAT!r} version {VERSION}"
        )
    return manifest
