"""The folder of an export: what it says of itself, and what of an earlier one gives way to it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from paddle import nn

from plsc.errors import ExportError
from plsc.inference.model_card import ABOUT_FILE

# Settings of the pipeline service, which stay as the user has edited them.
SETTINGS = "serving/config.yml"


def refuse_foreign(directory: Path) -> None:
    """Raise `ExportError` unless `directory` is missing, empty, or an export of ours."""
    if directory.exists() and not directory.is_dir():
        raise ExportError(f"{directory} is a file, expected a folder to export to")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / ABOUT_FILE).is_file():
        raise ExportError(
            f"{directory} is not empty and holds no exported model ({ABOUT_FILE}); nothing was written. "
            f"Choose another folder"
        )


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """Write the description of an export, with the files that are in it by now and their digests."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / ABOUT_FILE)
    written = {path.relative_to(folder).as_posix(): _digest(path) for path in files}
    (folder / ABOUT_FILE).write_text(json.dumps({**about, "files": written}, indent=1), encoding="utf-8")


def unchanged_files(directory: Path) -> set[str]:
    """The files of an earlier export that are as it wrote them; relative. None where there is no export."""
    try:
        written = json.loads((directory / ABOUT_FILE).read_text(encoding="utf-8"))["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {ABOUT_FILE}
    return {ABOUT_FILE} | {
        name for name, digest in written if _is_plain(directory / name) and digest == _digest(directory / name)
    }


def weights_digest(backbone: nn.Layer) -> str:
    """The same for every export of the same weights, whatever is baked in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
