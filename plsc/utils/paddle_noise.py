"""What Paddle prints of itself, which tells a user nothing: kept from the terminal. Warnings and errors are not.

| what                                      | printed by                  | kept back by             |
|-------------------------------------------|-----------------------------|--------------------------|
| `UserWarning: No ccache found`            | import of Paddle            | `IMPORT_WARNING`         |
| `I1128 ... create libuv server`, ...      | its C++ logger, glog        | `quiet_environment`      |
| 30 lines of `LAUNCH INFO`                 | `paddle.distributed.launch` | `paddle_launcher`        |
| `Modified FLAGS detected`                 | `init_parallel_env`         | `without_flags`          |
| `static graph(PIR) not support ...!!!!!`  | graphs                      | `plsc.utils.c_stderr`    |
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, MutableMapping
from typing import Any

# The beginning of a warning that only those who compile C++ extensions need.
IMPORT_WARNING = "No ccache found"
_LINES_OF_FLAGS = ("=======================", "FLAGS(name=")


def quiet_environment(environment: MutableMapping[str, str], *, of_launcher: bool = False) -> None:
    """Set variables for processes that import Paddle later. What the user has set stays.

    Args:
        environment: of the processes.
        of_launcher: of `paddle.distributed.launch`, and of the ranks that it starts: they may import Paddle themselves.
    """
    environment.setdefault("GLOG_minloglevel", "1")  # glog prints warnings and errors, and no information
    if of_launcher:
        ignored = f"ignore:{IMPORT_WARNING}"
        present = environment.get("PYTHONWARNINGS", "")
        if ignored not in present:
            environment["PYTHONWARNINGS"] = f"{ignored},{present}" if present else ignored


class _WithoutFlags:
    """A stream without the lines that list Paddle's flags."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._drops_newline = stream, False

    def write(self, text: str) -> int:
        if text.startswith(_LINES_OF_FLAGS) or (self._drops_newline and text == "\n"):
            self._drops_newline = not text.endswith("\n")
            return len(text)
        self._drops_newline = False
        return int(self._stream.write(text) or len(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def without_flags() -> Iterator[None]:
    """Within it, `init_parallel_env` does not list the flags that differ from their defaults, as Paddle's own do."""
    stream = sys.stderr
    with contextlib.redirect_stderr(_WithoutFlags(stream)) if stream is not None else contextlib.nullcontext():
        yield
