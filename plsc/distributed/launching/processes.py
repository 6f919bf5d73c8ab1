"""The ranks of a launcher, found among its children in /proc, and how they end."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plsc.distributed.topology import rank_in_environment

# Fields of /proc/PID/stat, counted from the one after the name.
_STATE, _PARENT, _SESSION, _STARTED, _EXIT_CODE = 0, 1, 3, 19, 49


@dataclass(frozen=True)
class RankProcess:
    """A rank that runs or has ended.

    Attributes:
        pid: of the process, which leads a session and a process group of its own.
        started: ticks since the machine's start. Another process of the same id has another number.
        local_rank: on this machine, as in the name of its log.
        rank: of all machines. None where the process had ended before it was asked.
    """

    pid: int
    started: int
    local_rank: int
    rank: int | None

    @property
    def name(self) -> str:
        return f"rank {self.rank}" if self.rank is not None else f"rank {self.local_rank} of this machine"

    @property
    def is_alive(self) -> bool:
        fields = _stat(self.pid)
        return fields is not None and int(fields[_STARTED]) == self.started and fields[_STATE] not in "ZX"

    def exit_code(self) -> int | None:
        """The exit code as `subprocess` gives it, -9 for SIGKILL. None where its parent has asked for it already."""
        fields = _stat(self.pid)
        if fields is None or int(fields[_STARTED]) != self.started or fields[_STATE] != "Z":
            return None
        return os.waitstatus_to_exitcode(int(fields[_EXIT_CODE]))

    def send(self, number: int) -> None:
        """Send a signal to the rank alone."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the rank and the processes that it has started."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def ranks_of(launcher: int) -> Iterator[RankProcess]:
    """The ranks that are children of a launcher. Other children, as nvidia-smi, lead no session."""
    for local_rank, (pid, fields) in enumerate(_session_leaders(launcher)):
        try:
            place = rank_in_environment(Path(f"/proc/{pid}/environ").read_bytes())
        except OSError:
            place = None
        if place is not None:
            yield RankProcess(pid, int(fields[_STARTED]), local_rank=place[1], rank=place[0])
        elif fields[_STATE] == "Z":
            # It ended at once, and its environment is gone: the launcher starts ranks in their order. Between fork and
            # exec a child has the launcher's environment, and is looked at again.
            yield RankProcess(pid, int(fields[_STARTED]), local_rank=local_rank, rank=None)


def _session_leaders(parent: int) -> list[tuple[int, list[str]]]:
    found = ((pid, _stat(pid)) for pid in _children(parent))
    return [
        (pid, fields)
        for pid, fields in found
        if fields is not None and int(fields[_PARENT]) == parent and int(fields[_SESSION]) == pid
    ]


def _children(parent: int) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    except OSError:  # the process has ended, or the kernel has no such file
        return [int(name) for name in os.listdir("/proc") if name.isdigit()] if _stat(parent) else []


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
