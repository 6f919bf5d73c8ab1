"""Processes of ranks: which one it is, and whether it has ended."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process of some machine.

    Attributes:
        host: the name of the machine.
        machine: the running system and its name space of processes. Where two are equal, /proc shows both processes.
        pid: its id.
        birth: when it began, by which it differs from a later process of the same id.
    """

    host: str
    machine: str
    pid: int
    birth: str

    @classmethod
    def this(cls) -> Process:
        """The process that calls this."""
        machine = f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
        return cls(socket.gethostname(), machine, os.getpid(), _state_and_birth(os.getpid())[1])

    def has_ended(self) -> bool:
        """Whether it has; it must be of this machine. One that is stopped has not, one that nobody waited for has."""
        try:
            state, birth = _state_and_birth(self.pid)
        except OSError:
            return True
        return state in "ZX" or birth != self.birth


def _state_and_birth(pid: int) -> tuple[str, str]:
    # The name of the program, the second field, is in parentheses and may hold blanks.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]
