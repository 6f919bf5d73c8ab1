"""The offsets of the samples in a file, saved beside it so that opening need not read the whole file.

`<file>.index.npz` holds arrays, and the size and modification time of the file that they describe. An index whose file
has changed since is not used. Only `save_index` (`plsc data index`) writes it.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plsc.errors import DataError
from plsc.utils.atomic import write_file

log = logging.getLogger("plsc")

Arrays = dict[str, npt.NDArray[Any]]


def index_path(path: Path) -> Path:
    """The path of the index of `path`."""
    return path.with_name(path.name + ".index.npz")


def load_or_build(path: Path, kind: str, *, build: Callable[[Path], Arrays]) -> Arrays:
    """The arrays of the saved index where it fits the file as it is now, else those of `build(path)`."""
    return _load(path, kind) or build(path)


def save_index(path: Path, kind: str, *, build: Callable[[Path], Arrays]) -> Path:
    """Build the index of `path` and write it beside the file, atomically; an older index is replaced.

    Raises:
        DataError: the index cannot be written.
    """
    target = index_path(path)
    arrays = build(path)
    try:
        with write_file(target) as file:
            np.savez(file, about=np.array(json.dumps(_about(path, kind))), **arrays)  # type: ignore[arg-type]  # no flag
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
