"""Folders of checkpoints: their names, their order, which of them are deleted, and what kills leave behind."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from plsc.utils.atomic import partial_path

MANIFEST = "manifest.json"
MODEL_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# '7' after epoch 7, '7.120' after step 120 of the epoch that follows.
_NAME = re.compile(r"[0-9]+(\.[0-9]+)?")
# What `partial_path` makes of such a name.
_LEFTOVER = re.compile(rf"\.{_NAME.pattern}\.plsc-partial")

log = logging.getLogger("plsc")


def to_prune(checkpoints: Sequence[Path], keep: int) -> list[Path]:
    """Which checkpoints are deleted: all but the `keep` newest.

    Args:
        checkpoints: as `list_checkpoints` returns them.
        keep: 1 or more.
    """
    return list(checkpoints[:-keep])


def prune_checkpoints(root: str | Path, keep: int) -> list[Path]:
    """Delete all but the `keep` newest checkpoints in `root`, 1 or more, and return them.

    A checkpoint that cannot be deleted costs space and nothing else: a warning names it.
    """
    pruned: list[Path] = []
    try:
        for path in to_prune(list_checkpoints(root), keep):
            delete_checkpoint(path)
            pruned.append(path)
    except OSError as error:
        log.warning("%s: an old checkpoint cannot be deleted: %s; delete it, or its disk fills up", root, error)
    return pruned


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
