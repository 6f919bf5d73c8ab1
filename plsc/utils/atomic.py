"""Files and folders that appear under their name complete or not at all.

Content is written under a temporary name in the same folder, flushed to the disk, and renamed; the folder that holds
the new name is flushed as well. After a crash or a power cut the name has the old content or the new content, never a
part of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from plsc.errors import PLSCError
from plsc.utils.files import sync, sync_path

log = logging.getLogger("plsc")


@contextlib.contextmanager
def write_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file complete or not at all; a file of that name is replaced.

    Args:
        path: the file. Its folder must exist.

    Raises:
        OSError: what the file system refuses; an earlier file is then unchanged.

    Example:
        >>> with write_file(Path("report.json")) as file:
        ...     file.write(b"{}")
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            sync(file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_path(path.parent)


class FolderWrite:
    """A folder that `write_folder` is writing, and what becomes of the files of an earlier folder of that name.

    | a file of the earlier folder       | the new folder has that name | then                                         |
    |------------------------------------|------------------------------|----------------------------------------------|
    | is in `obsolete`                   | yes or no                    | the earlier file is deleted                  |
    | is not in `obsolete`               | no                           | the earlier file moves to the new folder     |
    | is not in `obsolete`, is in `keep` | yes                          | the earlier file replaces the new one        |
    | is in neither                      | yes                          | both stay, the earlier file as NAME.old      |

    Attributes:
        path: where to write; empty at first.
        obsolete: files of the earlier folder, relative to it, for example those that an earlier save wrote and nobody
            has edited since.
        keep: files of the earlier folder, relative to it, that win over a new file of the same name, for example
            settings that the user edits.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.obsolete: set[str] = set()
        self.keep: Collection[str] = ()


@contextlib.contextmanager
def write_folder(folder: Path, error: type[PLSCError], *, replace: bool = True) -> Iterator[FolderWrite]:
    """Write a folder complete or not at all; see `FolderWrite` for what stays of an earlier folder of that name.

    An exception in the `with` block removes what was written and leaves the earlier folder as it was. Where the process
    is killed while the folders change names, the next call for the same folder or `restore_folder` puts the earlier one
    back. Where it is killed after that, the next call moves what it had not yet carried over to NAME.old.

    Args:
        folder: may exist. The caller decides whether it may be replaced.
        error: the class of the exceptions raised here.
        replace: False raises `error` where `folder` is not empty at the end.

    Raises:
        error: the file system refuses something, another process is writing the folder, or it cannot be renamed
            because it is the current folder or a mount point.

    Example:
        >>> with write_folder(Path("output/model"), ExportError) as write:
        ...     (write.path / "about.json").write_text("{}")
    """
    try:
        folder = folder.resolve()  # a link, '.' or '..' cannot be renamed
    except (OSError, RuntimeError) as reason:
        raise error(f"{folder}: {reason}") from None
    if folder == Path.cwd() or folder.is_mount():
        raise error(f"{folder} is the current folder or a mount point and cannot be replaced; name one in it")
    partial = partial_path(folder)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _locked(partial, wait=False) as is_mine:
            if not is_mine:
                raise error(f"{folder}: another process is writing it; wait for that, or name another folder")
            try:
                _empty(partial)  # a killed process may have left files in it
                with _locked(folder.parent):
                    _restore(folder)
                write = FolderWrite(partial)
                yield write
                _sync_tree(partial)
                with _locked(folder.parent):
                    if replace and folder.exists():
                        _swap(folder, write)
                    else:
                        rename_folder(partial, folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as reason:
        raise error(f"{folder}: cannot be written: {reason.strerror or reason}") from None


def check_new_folder(folder: Path, error: type[PLSCError]) -> None:
    """Check that `write_folder` can make a folder, before what is to be written costs hours. Its parents are made.

    Raises:
        error: the file system refuses.
    """
    try:
        partial = partial_path(folder.resolve())
        if not partial.exists():
            partial.mkdir(parents=True)
            partial.rmdir()
    except (OSError, RuntimeError, ValueError) as reason:
        raise error(f"{folder}: cannot be written: {getattr(reason, 'strerror', None) or reason}") from None


def restore_folder(folder: Path) -> bool:
    """Put back a folder that a killed `write_folder` had renamed and not yet replaced.

    A reader calls this where the folder does not exist, so that it finds the earlier one. Where a process is replacing
    the folder now, this waits for the new one.

    Returns:
        Whether there was one to put back.
    """
    try:
        folder = folder.resolve()
        old = _old_path(folder)
        if os.path.exists(folder) or not os.path.exists(old):
            return False
        with _locked(folder.parent):  # a process that is replacing the folder now holds the lock
            if folder.exists() or not old.exists():
                return False
            _restore(folder)
            return True
    except ValueError:  # a zero byte in the name
        return False
    except (OSError, RuntimeError) as reason:
        log.warning("%s: the earlier folder cannot be put back: %s", folder, reason)
        return False


def _old_path(folder: Path) -> Path:
    """Where the earlier folder is until the new one has its name."""
    return folder.with_name(f".{folder.name}.plsc-old")


def _rest_path(folder: Path) -> Path:
    """Where the earlier folder is while its files are carried over and the others are deleted. It is never put back."""
    return folder.with_name(f".{folder.name}.plsc-rest")


def partial_path(folder: Path) -> Path:
    """Where `write_folder` writes until the folder is complete."""
    return folder.with_name(f".{folder.name}.plsc-partial")


def rename_folder(partial: Path, folder: Path) -> None:
    """Give a folder whose content is on the disk its final name, durably.

    Raises:
        OSError: `folder` exists and is not empty, or the file system refuses.
    """
    partial.rename(folder)
    sync_path(folder.parent)


@contextlib.contextmanager
def lock_folder(folder: Path, error: type[PLSCError]) -> Iterator[None]:
    """Hold the lock of a folder while its content is read, changed and written. Waits while another thread or process
    holds it, and logs that it waits.

    Some network file systems support no locks; there two writers are not kept apart.

    Args:
        folder: exists. Where another folder gets its name during the wait, that one is locked.
        error: the class of the exception raised here.

    Raises:
        error: this thread holds the lock already, and would wait for itself.
        OSError: the folder does not exist or cannot be opened.
    """
    me = (os.getpid(), threading.get_ident())
    while True:
        handle = os.open(folder, os.O_RDONLY)
        try:
            status = os.fstat(handle)
            folder_id = (status.st_dev, status.st_ino)
            if _HOLDERS.get(folder_id) == me:
                raise error(f"{folder}: this thread is changing it already; finish that first")
            if not _lock(handle, wait=False):
                log.info("%s: another process or thread is changing it; waiting until it is done", folder)
                _lock(handle, wait=True)
            if not os.path.samestat(status, os.stat(folder)):
                continue
            _HOLDERS[folder_id] = me
            try:
                yield
            finally:
                del _HOLDERS[folder_id]
            return
        finally:
            _unlock(handle, me[0])


# Which process and thread holds the lock of a folder, by device and inode; only those of `lock_folder`.
_HOLDERS: dict[tuple[int, int], tuple[int, int]] = {}


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock on a folder. Yields False where another process holds it."""
    handle, process = os.open(folder, os.O_RDONLY), os.getpid()
    try:
        yield _lock(handle, wait=wait)
    finally:
        _unlock(handle, process)


def _lock(handle: int, *, wait: bool) -> bool:
    """Whether the lock is held now. Some network file systems support none; there the answer is True."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _unlock(handle: int, process: int) -> None:
    # A process that was forked meanwhile has the handle too: closing it here would not free the lock, and freeing it
    # there would free it here.
    if os.getpid() == process:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync_tree(folder: Path) -> None:
    """Flush all files and folders in a folder, and the folder itself, to the disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            path = Path(root, name)
            if path.is_file() and not path.is_symlink():
                sync_path(path)
        sync_path(Path(root))


def _restore(folder: Path) -> None:
    """Undo or end a replacement that was interrupted, whichever its state asks for."""
    for aside in (_old_path(folder), _rest_path(folder)):
        if not aside.exists():
            continue
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        kept = aside.rename(_free_name(folder, aside=aside == _rest_path(folder)))
        sync_path(folder.parent)
        log.warning("%s: replacing it was interrupted once; what had been set aside is in %s", folder, kept)


def _swap(folder: Path, write: FolderWrite) -> None:
    old, rest = _old_path(folder), _rest_path(folder)
    folder.rename(old)
    try:
        write.path.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    try:
        sync_path(folder.parent)
        old.rename(rest)
        _move_earlier_files(rest, folder, "", write=write)
    except OSError as reason:
        kept = (rest if rest.exists() else old).rename(_free_name(folder))
        log.error("%s: not all of the earlier one could be carried over (%s); the rest is in %s", folder, reason, kept)
    else:
        shutil.rmtree(rest)


def _move_earlier_files(old: Path, new: Path, inside: str, *, write: FolderWrite) -> None:
    """Apply the table of `FolderWrite` to the folder `inside` ('' for the top, else ending in '/')."""
    for path in list(old.iterdir()):
        name = inside + path.name
        if name in write.obsolete:
            continue
        holds_obsolete = any(other.startswith(f"{name}/") for other in write.obsolete)
        if (holds_obsolete or (new / path.name).is_dir()) and path.is_dir() and not path.is_symlink():
            _move_earlier_files(path, new / path.name, f"{name}/", write=write)
            continue
        new.mkdir(exist_ok=True)
        if name in write.keep:
            path.replace(new / path.name)
            continue
        kept = path.rename(_free_name(new / path.name))
        if kept.name != path.name:
            log.warning("%s: it had been changed, and stays so as %s", name, kept.name)
    if new.is_dir():
        sync_path(new)


def _free_name(path: Path, *, aside: bool = False) -> Path:
    """The path, unless it exists or `aside` is set; else the first of path.old, path.old.1, ... that does not exist."""
    found, number = path, 0
    while os.path.lexists(found) or (aside and found == path):
        found = path.with_name(f"{path.name}.old" + (f".{number}" if number else ""))
        number += 1
    return found
