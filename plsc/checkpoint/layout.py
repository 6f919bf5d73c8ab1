"""Folders of checkpoints: their names, their order, and which of them are deleted."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from plsc.utils.atomic import partial_path

MANIFEST = "manifest.json"
MODEL_FILE = "model.safetensors"
# '7' after epoch 7, '7.120' after step 120 of the epoch that follows.
_NAME = re.compile(r"[0-9]+(\.[0-9]+)?")

log = logging.getLogger("plsc")


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
