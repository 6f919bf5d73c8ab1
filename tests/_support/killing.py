"""A function killed before each of its changes of the file system, one after the other."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "fcntl.flock"}
_KILLED, _FAILED = 17, 18
_MOST_STEPS = 300


def kill_at_each_step(prepare, act, root: Path) -> list[Path]:
    """Folders in `root`, number k as `act` left it when its process ended before its change number k.

    Args:
        prepare: called with each new folder.
        act: called with the folder in a process forked for it. Its changes of the file system are the steps.
        root: an empty folder.
    """
    killed = []
    for step in range(_MOST_STEPS):
        folder = root / str(step)
        folder.mkdir()
        prepare(folder)
        child = os.fork()
        if not child:
            _run(act, folder, step)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, _KILLED), f"step {step}: the process ended with {status}"
        if not status:
            assert len(killed) > 1
            return killed
        killed.append(folder)
    raise AssertionError(f"more than {_MOST_STEPS} steps")


def changes_files(event, arguments) -> bool:
    """Whether an event of Python's auditing is a change of the file system, an opening for writing included."""
    is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    return event in _CHANGES or bool(is_write)


def _run(act, folder: Path, steps: int) -> None:
    left = steps

    def count(event, arguments):
        nonlocal left
        if changes_files(event, arguments):
            if not left:
                os._exit(_KILLED)
            left -= 1

    try:
        sys.addaudithook(count)
        act(folder)
    except BaseException as error:
        os.write(2, f"{error!r}\n".encode())
        os._exit(_FAILED)
    os._exit(0)
