"""The folder in which Paddle's launcher writes the logs of the ranks: private, and without the environment.

Paddle's launcher writes the whole environment of the ranks, secrets included, into the folder of the logs, for every
user to read: `envlog.N`, `backup_env.N.json` and `<job>.<six letters>.log`. It has no option against that.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import time
from pathlib import Path

from plsc.distributed.topology import LONG_VARIABLES
from plsc.errors import ConfigError
from plsc.utils.atomic import write_file

_TRACEBACK = "Traceback (most recent call last):"
_BYTES_OF_END = 1 << 16


class LogFolder:
    """A new folder, `<parent>/<date>-<host>`, of which only the owner can read anything.

    Args:
        parent: made where there is none.

    Attributes:
        path: of the folder.
        reports: a folder in it, for `plsc.distributed.launching.reports`.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, parent: Path) -> None:
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{socket.gethostname()}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self.path = _make_private(parent, name)
            self.reports = self.path.absolute() / "reports"
            self.reports.mkdir()
        except OSError as error:
            raise ConfigError(
                f"{parent}: the folder of the logs cannot be made: {error.strerror}; choose another with --log_dir"
            ) from None
        self._without_environment: set[Path] = set()

    def worker(self, local_rank: int) -> Path:
        """The log of a rank of this machine."""
        return self.path / f"workerlog.{local_rank}"

    def remove_environment(self) -> None:
        """Remove the environment from what Paddle's launcher has written up to now."""
        for path in (*self.path.glob("envlog.*"), *self.path.glob(f"*.{'[a-z]' * 6}.log")):
            path.unlink(missing_ok=True)
        for path in set(self.path.glob("backup_env.*.json")) - self._without_environment:
            with contextlib.suppress(json.JSONDecodeError):  # it is being written
                environment = json.loads(path.read_text())
                needed = {name: environment[name] for name in LONG_VARIABLES if name in environment}
                with write_file(path) as file:  # ranks read it
                    file.write(json.dumps(needed).encode())
                self._without_environment.add(path)


def last_error(log: Path) -> str | None:
    """The last error in a rank's log: that of `plsc`, or of the last traceback; else the last line."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _BYTES_OF_END))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith("plsc: "):
            return lines[number].removeprefix("plsc: ")
        if lines[number].strip() == _TRACEBACK:
            return next((line for line in lines[number + 1 :] if line[:1].strip()), None)
    return next((line.strip() for line in reversed(lines) if line.strip()), None)


def _make_private(parent: Path, name: str) -> Path:
    for number in itertools.count(1):
        path = parent / (name if number == 1 else f"{name}.{number}")
        try:
            path.mkdir(mode=0o700)
            return path
        except FileExistsError:  # of another launcher that started in the same second
            continue
    raise AssertionError
