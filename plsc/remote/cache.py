"""The local cache of remote files: copies of remote folders, of a limited size, least recently used first to go.

fsspec's own caches (simplecache, filecache, blockcache) know neither a limit nor processes that read at the same time.

    <cache>/                        locked while space is made
    <cache>/<digest>/               locked by the process that compares and copies; others wait for it
    <cache>/<digest>/about.json     the URL, the files copied with size and tag, the bytes that they take
    <cache>/<digest>/used           locked, shared, by each process that reads the copy, until it ends
    <cache>/<digest>/files/...      the copy
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plsc.errors import StorageError
from plsc.remote.folder import RemoteFile, RemoteFolder
from plsc.utils.atomic import lock_folder
from plsc.utils.hints import setter
from plsc.utils.logging import progress_bar
from plsc.utils.plural import counted
from plsc.utils.threads import thread_map

log = logging.getLogger("plsc")

GIGABYTE = 10**9
DEFAULT_GIGABYTES = 100.0
_THREADS = 8
# Locks that this process holds until it ends, by folder.
_USED: dict[Path, int] = {}


def default_folder() -> Path:
    """~/.cache/plsc, or where XDG_CACHE_HOME says."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plsc"


class Cache:
    """Copies of remote folders on the local disk.

    A copy that a process of this machine uses stays until that process ends. All processes of a machine may use one
    cache: one of them copies a folder, the others wait for it.

    Args:
        folder: by default `default_folder()`.
        gigabytes: limit of all copies together, in 10^9 bytes, over 0.

    Example:
        >>> Cache().fetch(RemoteFolder("s3://bucket/faces"))
        PosixPath('/home/me/.cache/plsc/5c1f.../files')
    """

    def __init__(self, folder: str | Path | None = None, gigabytes: float = DEFAULT_GIGABYTES) -> None:
        self.folder = Path(folder).expanduser() if folder else default_folder()
        self.limit = int(gigabytes * GIGABYTE)

    def fetch(self, remote: RemoteFolder, wanted: Callable[[str], bool] = lambda name: True) -> Path:
        """Copy what is missing here or has changed there, delete what is gone there, and return the local folder.

        Args:
            remote: the folder.
            wanted: says by its name, relative to the folder, whether a file is copied. Files copied before stay.

        Returns:
            The local folder. It stays until this process ends.

        Raises:
            StorageError: the files are larger than the limit or the free space, or they cannot be read.
        """
        place = self.folder / hashlib.sha256(remote.url.encode()).hexdigest()[:32]
        try:
            place.mkdir(parents=True, exist_ok=True)
            with lock_folder(place, StorageError):
                (place / "files").mkdir(exist_ok=True)
                _hold(place)
                self._update(place, remote, wanted)
        except OSError as error:
            raise StorageError(
                f"{remote.url}: cannot be copied to {self.folder}: {error.strerror or error}; name another folder with "
                f"{setter('cache_dir')}"
            ) from None
        return place / "files"

    def _update(self, place: Path, remote: RemoteFolder, wanted: Callable[[str], bool]) -> None:
        listed = remote.files()
        held = _read_about(place).get("files", {})
        for name in [name for name in held if name not in listed]:
            (place / "files" / name).unlink(missing_ok=True)
            del held[name]
        missing = [
            name
            for name, file in listed.items()
            if wanted(name) and not (held.get(name) == list(file) and _size(place / "files" / name) == file.size)
        ]
        total = sum(listed[name].size for name in {*held, *missing})
        about = {"url": remote.url, "bytes": total, "files": held}
        if missing:
            self._make_space(place, about, total, sum(listed[name].size for name in missing))
            log.info("%s: copying %s to %s", remote.url, counted(len(missing), "file"), place)
            self._copy(place, remote, {name: listed[name] for name in missing}, held)
        _write_about(place, about)

    def _copy(self, place: Path, remote: RemoteFolder, files: dict[str, RemoteFile], held: dict[str, Any]) -> None:
        def copy(name: str) -> str:
            target = place / "files" / name
            if not target.resolve().is_relative_to((place / "files").resolve()):
                raise StorageError(f"{remote.url}: a file is named {name!r}, which lies outside the folder; rename it")
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.partial")
            try:
                remote.fetch(name, partial, files[name].size)
                partial.replace(target)
            except FileNotFoundError:
                raise StorageError(f"{remote.url}/{name}: vanished while it was copied; try again") from None
            finally:
                partial.unlink(missing_ok=True)
            return name

        try:
            copied = thread_map(copy, files, threads=_THREADS)
            for name in progress_bar(copied, "copying", total=len(files)):
                held[name] = list(files[name])
        finally:
            # What is here need not be copied again after an interruption.
            _write_about(place, {**_read_about(place), "url": remote.url, "files": held})

    def _make_space(self, place: Path, about: dict[str, Any], total: int, more: int) -> None:
        """Delete the copies that were not used for longest until `total` bytes of one folder fit into the limit."""
        if total > self.limit:
            raise StorageError(
                f"{about['url']}: {_gigabytes(total)} are needed on this machine, more than the limit of the cache, "
                f"{_gigabytes(self.limit)}; raise it: {setter('cache_gb', _round_up(total))}; or read less at a time"
            )
        with lock_folder(self.folder, StorageError):
            others = {other: _read_about(other) for other in self.folder.iterdir() if (other / "about.json").is_file()}
            others.pop(place, None)
            used = sum(int(found.get("bytes", 0)) for found in others.values())
            for other in sorted(others, key=lambda other: (other / "about.json").stat().st_mtime):
                if used + total <= self.limit and more < shutil.disk_usage(self.folder).free:
                    break
                if _remove(other):
                    used -= int(others[other].get("bytes", 0))
            if used + total > self.limit:
                raise StorageError(
                    f"{about['url']}: {_gigabytes(total)} are needed on this machine, but copies that other processes "
                    f"use take {_gigabytes(used)} of the cache's {_gigabytes(self.limit)} ({self.folder}); wait for "
                    f"them, or raise the limit: {setter('cache_gb', _round_up(used + total))}"
                )
            free = shutil.disk_usage(self.folder).free
            if more >= free:
                raise StorageError(
                    f"{about['url']}: {_gigabytes(more)} are to be copied, but the disk of {self.folder} has "
                    f"{_gigabytes(free)} free; free space, or name another folder with {setter('cache_dir')}"
                )
            _write_about(place, about)  # reserves the bytes


def _hold(place: Path) -> None:
    """Keep a copy until this process ends."""
    if place not in _USED:
        handle = os.open(place / "used", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(handle, fcntl.LOCK_SH)
        _USED[place] = handle


def _remove(place: Path) -> bool:
    """Delete a copy unless a process uses it; returns whether it is gone."""
    with contextlib.ExitStack() as stack:
        for path, flags in ((place, os.O_RDONLY), (place / "used", os.O_RDWR | os.O_CREAT)):
            handle = os.open(path, flags, 0o600)
            stack.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        log.info("the cache is full: deleting the copy of %s", _read_about(place).get("url", place))
        # The folder and its locks stay: another process may wait for them.
        (place / "about.json").unlink()
        shutil.rmtree(place / "files")
    return True


def _read_about(place: Path) -> dict[str, Any]:
    try:
        about = json.loads((place / "about.json").read_text(encoding="utf-8"))
        return about if isinstance(about, dict) and isinstance(about.get("files", {}), dict) else {}
    except (OSError, ValueError):
        return {}


def _write_about(place: Path, about: dict[str, Any]) -> None:
    partial = place / f"about.{os.getpid()}.partial"
    partial.write_text(json.dumps(about), encoding="utf-8")
    partial.replace(place / "about.json")


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _gigabytes(count: int) -> str:
    return f"{count / GIGABYTE:.3g} GB"


def _round_up(count: int) -> int:
    return -(-count // GIGABYTE)
