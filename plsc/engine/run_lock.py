"""The lock of a save folder: one run at a time saves into it.

Rank 0 holds a POSIX record lock on the file `.plsc-lock` in the folder, whose content says who holds it. The system
drops the lock when the process ends, however it ends. Processes that are forked do not inherit it, so readers that
outlive their rank hold nothing. It keeps machines apart that share the folder over NFS.

A record lock is also lost where any part of the process closes the file, as a copy of the folder does. Therefore the
content counts too: a process of this machine that it names, and that still runs, holds the folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import threading
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from plsc.distributed.agreement import agree
from plsc.distributed.collectives import Collectives
from plsc.errors import CheckpointError
from plsc.utils.hints import setter

LOCK_FILE = ".plsc-lock"
# Seconds that a run which goes on by itself waits: a requeued run may meet the ranks of the one before.
WAIT_SECONDS = 60.0
# Seconds between two agreements of the ranks meanwhile: a rank that is late in a collective counts as hanging.
_ROUND_SECONDS = 5.0
_PAUSE_SECONDS = 0.2

log = logging.getLogger("plsc")


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        host: name of the machine.
        pid: number of the process.
        started: when the run began, in the local time of the machine.
        machine: the boot of the machine and the process namespace, in which `pid` and `ticks` mean something.
        ticks: when the process began, since the boot; another process of this number has another one.
    """

    host: str
    pid: int
    started: str
    machine: str
    ticks: int | None

    @classmethod
    def now(cls) -> Owner:
        """This process."""
        started = datetime.now().astimezone().isoformat(" ", "seconds")
        return cls(platform.node(), os.getpid(), started, _machine(), _start_ticks(os.getpid()))

    @classmethod
    def parse(cls, content: bytes) -> Owner | None:
        """The owner that a lock file names; None where a killed process left the file empty or half-written."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def is_alive_here(self) -> bool:
        """Whether it is another process of this machine that runs."""
        if self.pid == os.getpid() or self.machine != _machine():
            return False
        return self.ticks is not None and self.ticks == _start_ticks(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started}"


class RunLock:
    """The lock of a save folder. Rank 0 holds it, for all ranks.

    A second object for the folder in the same process takes it over, unless the first is training: a trainer that was
    made and not used holds up nobody.

    Args:
        root: the save folder; made where it does not exist.

    Attributes:
        is_running: whether a run trains under this lock.
    """

    def __init__(self, root: str | Path) -> None:
        self._root, self._path = Path(root), Path(root) / LOCK_FILE
        self.is_running = False
        self._handle: int | None = None
        self._process = os.getpid()
        self._owner: Owner | None = None
        self._key: tuple[int, int] | None = None
        self._told = False
        self._problem: OSError | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process holds it; False on all ranks but the first."""
        return self._handle is not None

    def hold(self, collectives: Collectives, *, wait: float = 0.0) -> bool:
        """Take the lock, unless it is held. Every rank must call this.

        Where the folder cannot be made or the file cannot be opened, nothing is held: see `require`.

        Args:
            collectives: over the ranks.
            wait: seconds to wait while another run holds it.

        Returns:
            Whether it was taken now; the same on all ranks.

        Raises:
            CheckpointError: another run holds it; names that run. The same on all ranks.
        """
        is_main, end = collectives.topology.is_main, time.monotonic() + wait
        was_held = self.is_held
        while True:
            limit = min(end, time.monotonic() + _ROUND_SECONDS)
            holder = agree(lambda: self._try(limit) if is_main else None, collectives, error=CheckpointError)  # noqa: B023
            holder, taken, is_over = collectives.gather_objects(
                (holder, self.is_held and not was_held, time.monotonic() >= end)
            )[0]
            if holder is None:
                return taken
            if is_over:
                raise CheckpointError(
                    f"{self._root}: another run saves into this folder: {holder}. Wait until it has ended, or end it; "
                    f"or choose another folder with {setter('model_save_dir')}"
                )

    def require(self) -> None:
        """Refuse to train where the lock could not be taken.

        Raises:
            CheckpointError: says what the system refused.
        """
        if self._problem is not None:
            raise CheckpointError(
                f"{self._path}: the folder cannot be locked for this run: {self._problem.strerror}. Delete that file "
                f"where no run saves into the folder; or choose another folder with {setter('model_save_dir')}"
            )

    def renew(self) -> None:
        """Lock the folder again where it was removed since, or its disk was mounted anew. On other ranks than the first
        it does nothing.

        Raises:
            CheckpointError: its disk is not mounted, or another run saves into it now.
            OSError: the system refuses.
        """
        with _GUARD:
            if self._owner is None or self._key is None:
                return
            if self._handle is not None and _is_at(self._path, self._handle):
                return
            if _device_of(self._root) != self._key[0] and _owner_at(self._path) != self._owner:
                raise CheckpointError(
                    f"{self._root} is not the folder that this run has begun to save into: its disk is not mounted; "
                    f"mount it again"
                )
            was_running = self.is_running
            self.release()
            holder = self._take()
            if holder is not None:
                raise CheckpointError(f"{self._root}: another run saves into this folder now: {holder}")
            self.is_running = was_running
            log.warning("%s: the folder was removed or replaced meanwhile", self._root)

    def release(self) -> None:
        """Give the lock back, where it is held. A forked process gives back nothing."""
        with _GUARD:
            self.is_running = False
            if self._handle is None or os.getpid() != self._process:
                return
            handle, self._handle = self._handle, None
            if self._key is not None and _HELD.get(self._key) is self:
                del _HELD[self._key]
            with contextlib.suppress(OSError):
                # Before the lock is lost: who waits for it finds that the file is another one.
                if _is_at(self._path, handle):
                    self._path.unlink()
            os.close(handle)

    def _try(self, limit: float) -> str | None:
        """Take the lock, and wait for it up to `limit`, a monotonic time. Returns who holds it, None if this does."""
        while True:
            try:
                holder = self._take()
            except OSError as error:
                self._problem = error
                return None
            self._problem = None
            if holder is None:
                return None
            if time.monotonic() >= limit:
                return holder
            if not self._told:
                self._told = True
                log.info("%s: another run saves into this folder: %s; waiting for its end", self._root, holder)
            time.sleep(min(_PAUSE_SECONDS, max(limit - time.monotonic(), 0.0)))

    def _take(self) -> str | None:
        with _GUARD:
            if self._handle is not None:
                return None
            self._root.mkdir(parents=True, exist_ok=True)
            status = os.stat(self._root)
            key = (status.st_dev, status.st_ino)
            other = _HELD.get(key)
            if other is not None and other.is_running:
                return f"another trainer of this process, {other._owner}"
            if other is not None:
                other.release()
            return self._lock(key, mode=status.st_mode & 0o666)

    def _lock(self, key: tuple[int, int], *, mode: int) -> str | None:
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
        try:
            is_free, has_locks = _lock_file(handle)
            if is_free and not _is_at(self._path, handle):
                return "a run that ends just now"  # it has removed the file
            owner = Owner.parse(os.pread(handle, 1 << 16, 0))
            if not is_free or (owner is not None and owner.is_alive_here()):
                return str(owner or "a process that is starting")
            own = Owner.now()
            with contextlib.suppress(OSError):  # a full disk: the lock is held without a name
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps(asdict(own)).encode(), 0)
            if not has_locks:
                time.sleep(_PAUSE_SECONDS)  # of two runs that start now, the one that wrote last has the folder
                if (last := Owner.parse(os.pread(handle, 1 << 16, 0))) is not None and last != own:
                    return str(last)
                self._warn_of_no_locks(owner)
            self._handle, self._owner, self._key = handle, own, key
            _HELD[key] = self
            return None
        finally:
            if self._handle is None:
                os.close(handle)

    def _warn_of_no_locks(self, before: Owner | None) -> None:
        unknown = f"; whether the run of {before} has ended cannot be told" if before is not None else ""
        log.warning(
            "%s: its file system has no locks; a second run is noticed only on the same machine%s", self._root, unknown
        )


# The locks that this process holds, by device and inode of the folder: a process does not lock out itself.
_HELD: dict[tuple[int, int], RunLock] = {}
_GUARD = threading.RLock()


def _lock_file(handle: int) -> tuple[bool, bool]:
    """(no other process holds the record lock, the file system has such locks)."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False, True
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            return True, False
        raise
    return True, True


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _owner_at(path: Path) -> Owner | None:
    try:
        return Owner.parse(path.read_bytes())
    except FileNotFoundError:
        return None


def _device_of(folder: Path) -> int:
    """The file system that holds a folder, or would hold it if it were made."""
    folder = folder.absolute()
    while True:
        try:
            return os.stat(folder).st_dev
        except FileNotFoundError:
            folder = folder.parent


def _machine() -> str:
    """What tells the boots of all machines apart, and the process namespaces of one."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _start_ticks(pid: int) -> int | None:
    """When a process began; None where it has ended, or where that cannot be told."""
    try:
        # The name of the program, in parentheses, may hold blanks.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
