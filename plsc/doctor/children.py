"""Processes that a check starts, bounded in time. Each leads a process group of its own, which is all that is ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple

# Seconds between two looks at processes that run.
_LOOK = 0.05
# Seconds that the others get after one has failed: to say why they cannot go on either.
_AFTER_FAILURE = 10.0


class Child(NamedTuple):
    """A process that has ended.

    Attributes:
        status: as of `subprocess`, -9 for SIGKILL; None where it was ended because its time was over.
        output: what it wrote to standard output.
        errors: what it wrote to standard error.
    """

    status: int | None
    output: str
    errors: str

    def answer(self) -> dict[str, Any] | None:
        """What it printed as a JSON object on the last such line; None where it failed or printed none."""
        if self.status != 0:
            return None
        # Libraries write lines of their own before.
        for line in reversed(self.output.splitlines()):
            if line.startswith("{"):
                with contextlib.suppress(ValueError):
                    found: dict[str, Any] = json.loads(line)
                    return found
        return None

    def reason(self) -> str:
        """Why there is no answer, in a line."""
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        last = lines[-1] if lines else "it wrote no message"
        if self.status is None:
            return f"it did not end in time; its last line: {last}"
        if self.status < 0:
            return f"it was ended by {_signal_name(-self.status)}; its last line: {last}"
        return last if self.status else "it gave no answer"


def run_children(
    commands: Sequence[Sequence[str]], *, environments: Sequence[Mapping[str, str]], seconds: float
) -> list[Child]:
    """Run processes at the same time until all have ended, or for so many seconds.

    Args:
        commands: one for each process.
        environments: one for each process.
        seconds: after which those that run are killed, with what they started.
    """
    with contextlib.ExitStack() as stack:
        files = [[stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)] for _ in commands]
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(_kill, processes)
        for command, environment, (output, errors) in zip(commands, environments, files):
            processes.append(
                subprocess.Popen(
                    command,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=errors,
                    start_new_session=True,
                )
            )
        _wait(processes, seconds)
        statuses = [process.poll() for process in processes]
        _kill(processes)
        return [Child(status, _text(output), _text(errors)) for status, (output, errors) in zip(statuses, files)]


def _wait(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    end, has_failed = time.monotonic() + seconds, False
    while time.monotonic() < end:
        statuses = [process.poll() for process in processes]
        if None not in statuses:
            return
        if any(statuses) and not has_failed:
            end, has_failed = min(end, time.monotonic() + _AFTER_FAILURE), True
        time.sleep(_LOOK)


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
