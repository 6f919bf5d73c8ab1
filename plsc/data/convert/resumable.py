"""The folder in which a conversion works until its result is whole, and the note in it of how far that is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plsc.errors import DataError

log = logging.getLogger("plsc")

_PROGRESS, _LOCK = ".progress.json", ".lock"


@contextlib.contextmanager
def alone(workspace: Path) -> Iterator[None]:
    """Make the workspace and hold it against other processes; what the system says of it is a `DataError`."""
    try:
        workspace.mkdir(parents=True, exist_ok=True)
        lock = open(workspace / _LOCK, "w")  # noqa: SIM115
    except OSError as error:
        raise DataError(f"{workspace} cannot be made: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"{workspace}: another process is converting there now") from None
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{workspace} cannot be written: {error.strerror or error}; run the same again to go on"
            ) from None
        except KeyboardInterrupt:
            log.warning("%s: interrupted; run the same again to go on", workspace)
            raise


def resume(workspace: Path, job: dict[str, Any], keeps: Sequence[str] = ()) -> dict[str, Any]:
    """How far the same job got, from its last note; of a new job, its first note. `keeps` go on by themselves."""
    job = json.loads(json.dumps(job))
    start = {"job": job, "index": 0, "written": 0, "skipped": 0, "position": None}
    try:
        done = json.loads((workspace / _PROGRESS).read_text(encoding="utf-8"))
        differs = [name for name in job if done["job"].get(name) != job[name]]
    except FileNotFoundError:
        if {path.name for path in workspace.iterdir()} - {_LOCK, f"{_PROGRESS}.new"}:
            raise DataError(f"{workspace} is not empty and no conversion that could go on; move it away") from None
        write_note(workspace, start)
        return start
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{workspace / _PROGRESS} cannot be read ({error}); remove {workspace} to start again"
        ) from None
    if differs:
        raise DataError(
            f"{workspace}: another conversion was begun there (it differs in {', '.join(differs)}); give "
            f"the same source and options to go on, or remove it to start again"
        )
    if done["position"] is None:
        # Stopped before its first position: what the same job wrote since is of no use to it.
        for path in workspace.iterdir():
            if path.name not in (_PROGRESS, _LOCK, *keeps):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        log.info("%s: going on after %d of %d images", workspace, done["index"], job["images"])
    return done


def finish(workspace: Path, target: Path) -> None:
    """Give the workspace, which is whole, the target's name."""
    if os.path.lexists(target):
        raise DataError(
            f"{target} has come into being meanwhile; nothing is overwritten: move it away and run the "
            f"same again to go on"
        )
    for name in (_PROGRESS, _LOCK):
        (workspace / name).unlink(missing_ok=True)
    os.sync()
    workspace.rename(target)


def write_note(workspace: Path, note: dict[str, Any]) -> None:
    """Write down how far the work is, whole or not at all."""
    aside = workspace / f"{_PROGRESS}.new"
    with open(aside, "w", encoding="utf-8") as file:
        json.dump(note, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, workspace / _PROGRESS)
