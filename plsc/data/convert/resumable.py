"""The output folder of a conversion, with a note of how far the work is, so that an interrupted run can continue."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plsc.errors import DataError
from plsc.utils.atomic import rename_folder, write_file
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

_NOTE, _LOCK = ".progress.json", ".lock"


@dataclass
class Progress:
    """How far a conversion is.

    Attributes:
        index: records of the source that are done: written or left out.
        written: samples written.
        skipped: records left out because they cannot be read.
        damaged: samples written whose image is damaged but can be decoded in part.
        position: the writer's position after the last note, a JSON value; None before the first.
    """

    index: int = 0
    written: int = 0
    skipped: int = 0
    position: Any = None
    damaged: int = 0


class ResumableFolder:
    """A folder in work; see `resumable_folder`.

    Attributes:
        path: where to write, `<target>.partial`.
        progress: how far the work was at the last note of an interrupted run; the caller advances it.
    """

    def __init__(self, target: Path, job: dict[str, Any], *, keep: Collection[str] = ()) -> None:
        self.path = target.with_name(target.name + ".partial")
        self._target, self._job, self._keep = target, json.loads(json.dumps(job)), keep
        self.progress = Progress()

    def resume(self) -> None:
        """Take up the progress of an interrupted run of the same job, or begin."""
        note = self._read_note()
        if note is None:
            others = [path.name for path in self.path.iterdir() if not _is_own(path.name)]
            if others:
                raise DataError(f"{self.path} is not empty and holds no conversion that could go on; move it away")
            self._write_note(Progress())
        elif note.position is None:
            # Stopped before its first note: what it wrote since is incomplete.
            for path in self.path.iterdir():
                if not _is_own(path.name) and path.name not in self._keep:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            self.progress = note
            log.info("%s: continuing after %d of %s", self.path, note.index, counted(self._job["images"], "image"))

    def note(self, position: Any) -> None:
        """Write down the progress; `position` is the writer's."""
        self.progress.position = position
        self._write_note(self.progress)

    def finish(self) -> None:
        """Rename the folder, which is complete, to the target.

        Raises:
            DataError: the target exists by now.
        """
        if os.path.lexists(self._target):
            raise DataError(
                f"{self._target} was made by another program meanwhile; nothing is overwritten: move it away and run "
                f"the same command again to continue"
            )
        for path in self.path.iterdir():
            if _is_own(path.name):
                path.unlink()
        os.sync()  # one call, where there may be millions of files
        rename_folder(self.path, self._target)

    def _read_note(self) -> Progress | None:
        path = self.path / _NOTE
        try:
            note = json.loads(path.read_text(encoding="utf-8"))
            differing = [name for name in self._job if note["job"].get(name) != self._job[name]]
            # Notes of version 3.0 have no count of damaged images.
            damaged = int(note.get("damaged", 0))
            progress = Progress(note["index"], note["written"], note["skipped"], note["position"], damaged)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(f"{path} cannot be read ({error}); remove {self.path} to start again") from None
        if differing:
            raise DataError(
                f"{self.path}: another conversion was begun there (it differs in {', '.join(differing)}); give "
                f"the same source and options to continue, or remove it to start again"
            )
        return progress

    def _write_note(self, progress: Progress) -> None:
        with write_file(self.path / _NOTE) as file:
            file.write(json.dumps({"job": self._job, **asdict(progress)}).encode())


@contextlib.contextmanager
def resumable_folder(target: Path, job: dict[str, Any], *, keep: Collection[str] = ()) -> Iterator[ResumableFolder]:
    """Make or take up `<target>.partial`, and lock it against other processes while the `with` block runs.

    The block writes into the folder, calls `note` from time to time, and `finish` at the end. After an interruption the
    folder stays, and a call with an equal `job` continues from the last note.

    Args:
        target: the folder to make at last.
        job: values that JSON can hold; they identify the work, `job["images"]` is its number of images.
        keep: entries of the folder that continue by themselves and stay where the work starts again.

    Raises:
        DataError: the folder cannot be made or written, another process or another job works there, or the note
            cannot be read.

    Example:
        >>> with resumable_folder(Path("faces"), {"images": 10}) as output:
        ...     (output.path / "a.txt").write_text("a")
        ...     output.finish()
    """
    output = ResumableFolder(target, job, keep=keep)
    try:
        output.path.mkdir(parents=True, exist_ok=True)
        lock = open(output.path / _LOCK, "w")  # noqa: SIM115
    except OSError as error:
        raise DataError(f"{output.path} cannot be made: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"{output.path}: another process is converting there now") from None
        try:
            output.resume()
            yield output
        except OSError as error:
            raise DataError(
                f"{output.path} cannot be written: {error.strerror or error}; run the same command again to continue"
            ) from None
        except KeyboardInterrupt:
            log.warning("%s: interrupted; run the same command again to continue", output.path)
            raise


def _is_own(name: str) -> bool:
    """Whether a file holds the note, a note that was being written when the process was killed, or the lock."""
    return name in (_NOTE, _LOCK) or name.startswith(f".{_NOTE}.") or name == f"{_NOTE}.new"
