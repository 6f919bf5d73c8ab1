"""Stand-in until the streaming writer is here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from plsc.checkpoint.writer import Described, _check_parts, _write_manifest, _write_parts
from plsc.errors import CheckpointError
from plsc.utils.atomic import partial_path, rename_folder


class NotFiniteError(CheckpointError):
    pass


def begin(folder: Path) -> None:
    if folder.exists():
        raise CheckpointError(f"{folder} exists and is never overwritten")
    partial_path(folder).mkdir(parents=True)


def write_parts(folder: Path, parts, *, rank: int) -> None:
    try:
        _check_parts(parts)
    except CheckpointError as error:
        raise NotFiniteError(str(error)) from None
    own = _write_parts(partial_path(folder), parts)
    (partial_path(folder) / f"rank-{rank}.json").write_text(json.dumps(own))


def complete(folder: Path, about, *, ranks: int) -> None:
    partial = partial_path(folder)
    described = []
    for rank in range(ranks):
        file = partial / f"rank-{rank}.json"
        described += [Described(*one) for one in json.loads(file.read_text())]
        file.unlink()
    _write_manifest(partial, described, about=about)
    rename_folder(partial, folder)


def abandon(folder: Path) -> None:
    shutil.rmtree(partial_path(folder), ignore_errors=True)


def delete_checkpoint(path: Path) -> None:
    doomed = partial_path(path)
    path.rename(doomed)
    shutil.rmtree(doomed)
