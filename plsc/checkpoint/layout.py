"""Folders of checkpoints: their names, their order, how one is deleted, and what kills leave behind."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from plsc.checkpoint.manifest import read_manifest
from plsc.errors import CheckpointError
from plsc.utils.atomic import partial_path

MANIFEST = "manifest.json"
MODEL_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# '7' after epoch 7, '7.120' after step 120 of the epoch that follows.
_NAME = re.compile(r"[0-9]+(\.[0-9]+)?")
# What `partial_path` makes of such a name.
_LEFTOVER = re.compile(rf"\.{_NAME.pattern}\.plsc-partial")


def delete_checkpoint(path: Path) -> None:
    """Delete a checkpoint.

    It is renamed first, so that a deletion that is interrupted leaves no folder that looks like a checkpoint. What it
    leaves has the name of one that is being written, and `remove_leftovers` removes both.

    Raises:
        OSError: the file system refuses.
    """
    doomed = partial_path(path)
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(root: str | Path) -> list[Path]:
    """Remove what processes that were killed while they wrote or deleted a checkpoint left in `root`.

    Call it only where no other process writes to `root`: what that one is writing looks the same.

    Returns:
        The folders removed.

    Raises:
        OSError: the file system refuses.
    """
    root = Path(root)
    if not root.is_dir():
        return []
    found = sorted(
        path for path in root.iterdir() if _LEFTOVER.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    )
    for path in found:
        shutil.rmtree(path)
    return found


def list_checkpoints(root: str | Path) -> list[Path]:
    """The checkpoints in `root`, in the order in which training reached them.

    A checkpoint whose manifest says that it was saved under another name, as a copy named 20261126, is none of them,
    unless `root` holds nothing else.
    """
    root = Path(root)
    if not root.is_dir():
        return []
    found = sorted(
        (path for path in root.iterdir() if is_checkpoint_name(path.name) and (path / MANIFEST).is_file()), key=order
    )
    return [path for path in found if not is_copy(path)] or found


def is_copy(path: Path) -> bool:
    """Whether the manifest of a checkpoint says that it was saved under another name."""
    about = _read_about(path)
    epoch, images, step = (about.get(key) for key in ("epoch", "images_in_epoch", "steps_in_epoch"))
    if not isinstance(epoch, int):
        return False
    if images == 0:
        return path.name != str(epoch - 1)
    return isinstance(step, int) and path.name != f"{epoch}.{step}"


def run_of(path: Path) -> str:
    """The run that wrote a checkpoint, as its manifest says; '' where it does not say, or cannot be read."""
    return str(_read_about(path).get("run", ""))


def _read_about(path: Path) -> dict[str, Any]:
    try:
        return read_manifest(path / MANIFEST)[0].about
    except (OSError, CheckpointError):  # damaged: the reader says how
        return {}


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder of this name counts as a checkpoint: '7', '7.120'."""
    return _NAME.fullmatch(name) is not None


def order(path: Path) -> tuple[int, int]:
    """The progress that a checkpoint's name states: (epochs done, steps of the next epoch done)."""
    epoch, _, step = path.name.partition(".")
    return (int(epoch), int(step)) if step else (int(epoch) + 1, 0)
