"""Folders of checkpoints: their names, their order, and which of them are deleted."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from plsc.utils.atomic import partial_path

MANIFEST = "manifest.json"
MODEL_FILE = "model.safetensors"
# '7' after epoch 7, '7.120' after step 120 of the epoch that follows.
_NAME = re.compile(r"[0-9]+(\.[0-9]+)?")

log = logging.getLogger("plsc")


def prune_checkpoints(root: str | Path, keep: int, *, run: str | None = None) -> None:
    """Delete all but the `keep` newest checkpoints in `root`, 1 or more. Folders without a manifest stay.

    A checkpoint that cannot be deleted costs space and nothing else: a warning names it.

    Args:
        root: the folder.
        keep: how many stay.
        run: pass over the checkpoints of other runs than this one, and do not count them.
    """
    try:
        found = [path for path in list_checkpoints(root) if run is None or run_of(path) == run]
        for path in found[:-keep]:
            # Renamed first, so that a deletion that is interrupted leaves no folder that looks like a checkpoint.
            doomed = partial_path(path)
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            shutil.rmtree(doomed)
    except OSError as error:
        log.warning("%s: an old checkpoint cannot be deleted: %s; delete it, or its disk fills up", root, error)


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
        about = json.loads((path / MANIFEST).read_bytes())["about"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # damaged: the reader says how
        return {}
    return about if isinstance(about, dict) else {}


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder of this name counts as a checkpoint: '7', '7.120'."""
    return _NAME.fullmatch(name) is not None


def order(path: Path) -> tuple[int, int]:
    """The progress that a checkpoint's name states: (epochs done, steps of the next epoch done)."""
    epoch, _, step = path.name.partition(".")
    return (int(epoch), int(step)) if step else (int(epoch) + 1, 0)
