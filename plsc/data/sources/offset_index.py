"""Where the samples of a file lie, kept beside it on request so that opening need not read the whole file.

`<file>.index.npz` holds arrays and the size and time of the file that they describe; an index whose file has
changed since is not used. It is written only by `save_index` (`plsc data index`), never on the side.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plsc.errors import DataError
from plsc.utils.atomic import write_file

log = logging.getLogger("plsc")

Arrays = dict[str, np.ndarray]


def index_path(path: Path) -> Path:
    """The index beside `path`."""
    return path.with_name(path.name + ".index.npz")


def load_or_build(path: Path, kind: str, build: Callable[[Path], Arrays]) -> Arrays:
    """The arrays of the index beside `path` where it fits the file as it is now, else those that `build` makes."""
    return _load(path, kind) or build(path)


def save_index(path: Path, kind: str, build: Callable[[Path], Arrays]) -> Path:
    """Build the index of `path` and write it beside the file, whole or not at all; an older one is replaced."""
    target = index_path(path)
    arrays = build(path)
    try:
        with write_file(target) as file:
            np.savez(file, about=np.array(json.dumps(_about(path, kind))), **arrays)
    except OSError as error:
        raise DataError(f"{target}: the index cannot be written: {error.strerror}") from None
    return target


def _about(path: Path, kind: str) -> dict[str, object]:
    status = path.stat()
    return {"kind": kind, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _load(path: Path, kind: str) -> Arrays | None:
    target = index_path(path)
    try:
        with np.load(target, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if json.loads(str(arrays.pop("about"))) == _about(path, kind):
            return arrays
        log.warning("%s: the file has changed since, reading it anew; 'plsc data index' renews the index", target)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s: the index cannot be used (%s), reading the file anew", target, error)
    return None
