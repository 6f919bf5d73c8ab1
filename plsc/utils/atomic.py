"""A folder that is written aside and takes its place whole; of an earlier one, what is not ours stays."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from plsc.errors import PLSCError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

log = logging.getLogger("plsc")


class Replacement:
    """A folder being written.

    Attributes:
        path: where to write; empty at first.
        ours: files of the earlier folder that give way, relative to it. All others are carried over, as NAME.old
            where the new one has another of that name.
        stays: of these, what takes the place of the new one's instead.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ours: set[str] = set()
        self.stays: Collection[str] = ()


@contextlib.contextmanager
def replacing(folder: Path, error: type[PLSCError]) -> Iterator[Replacement]:
    """A folder to write to, which takes the place of `folder` at the end, or vanishes where an exception leaves.

    An interruption loses nothing: what was set aside is put back at once, or by the next call.

    Args:
        folder: may exist; whether it may be replaced is the caller's to ask.
        error: raised for what the file system refuses, or where another process is at it.
    """
    try:
        folder = folder.resolve()  # links and dots cannot be renamed
    except (OSError, RuntimeError) as reason:
        raise error(f"{folder}: {reason}") from None
    if folder == Path.cwd() or folder.is_mount():
        raise error(f"{folder} is the current folder or a mount point and cannot be replaced; name one in it")
    partial, old = (folder.with_name(f".{folder.name}.plsc-{kind}") for kind in ("partial", "old"))
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _locked(partial, wait=False) as is_mine:
            if not is_mine:
                raise error(f"{folder}: another process is writing it; wait for that, or name another folder")
            try:
                _empty(partial)  # of one that was killed
                with _locked(folder.parent):
                    _put_back(folder, old)
                replacement = Replacement(partial)
                yield replacement
                with _locked(folder.parent):
                    _swap(folder, partial, old, replacement)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as reason:
        raise error(f"{folder}: cannot be written: {reason.strerror or reason}") from None


@contextlib.contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a folder against other processes; where the file system knows no such lock, hope."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            is_mine = True
        except BlockingIOError:
            is_mine = False
        except OSError:
            is_mine = True
        yield is_mine
    finally:
        os.close(handle)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _put_back(folder: Path, old: Path) -> None:
    """What an interrupted replacement has set aside: the earlier folder, or what of it was still to carry over."""
    if not old.exists():
        return
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    kept = old.rename(_free(folder))
    log.warning("%s: replacing it was interrupted once; what had been set aside is in %s", folder, kept)


def _swap(folder: Path, partial: Path, old: Path, replacement: Replacement) -> None:
    if not folder.exists():
        partial.rename(folder)
        return
    folder.rename(old)
    try:
        partial.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    try:
        _carry_over(old, folder, "", replacement)
    except OSError as reason:
        kept = old.rename(_free(folder))
        log.error("%s: not all of the earlier one could be carried over (%s); the rest is in %s", folder, reason, kept)
    else:
        shutil.rmtree(old)


def _carry_over(old: Path, new: Path, inside: str, replacement: Replacement) -> None:
    for path in list(old.iterdir()):
        name = inside + path.name
        if name in replacement.ours:
            continue
        has_ours = any(other.startswith(f"{name}/") for other in replacement.ours)
        if (has_ours or (new / path.name).is_dir()) and path.is_dir() and not path.is_symlink():
            _carry_over(path, new / path.name, f"{name}/", replacement)
            continue
        new.mkdir(exist_ok=True)
        if name in replacement.stays:
            path.replace(new / path.name)
            continue
        kept = path.rename(_free(new / path.name))
        if kept.name != path.name:
            log.warning("%s: it had been changed, and stays so as %s", name, kept.name)


def _free(path: Path) -> Path:
    """The path, or where there is something, the first of path.old, path.old.1, ... that is free."""
    found, number = path, 0
    while os.path.lexists(found):
        found = path.with_name(f"{path.name}.old" + (f".{number}" if number else ""))
        number += 1
    return found
