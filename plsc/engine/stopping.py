"""Signals that ask a run to stop: it saves, and leaves so that the same command goes on."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from plsc.errors import Interrupted

log = logging.getLogger("plsc")

# A scheduler's warning, `kill`, Ctrl-C.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Seconds after the first signal in which others count as the same: Paddle's launcher repeats SIGTERM three times
# within 0.6 s, and on Ctrl-C a process gets the terminal's SIGINT and the launcher's SIGTERM.
_REPEATED = 3.0
# Handlers that nobody has chosen.
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler, None)


class StopRequest:
    """Whether SIGTERM, SIGINT or SIGUSR1 asked this process to stop.

    A second signal, 3 s or more after the first, ends the process at once. A handler that the user's script has
    installed stays, and then that signal stops nothing here.

    Attributes:
        name: of the signal; None where there was none.

    Example:
        >>> stop = StopRequest()
        >>> with stop.heeded():
        ...     while not stop.name:
        ...         work()
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._when = 0.0
        self._at_once = False

    def is_asked(self) -> bool:
        """Whether there was a signal."""
        return self.name is not None

    @contextlib.contextmanager
    def heeded(self, *, at_once: bool = False) -> Iterator[None]:
        """Heed signals within a `with` block; in other threads than the main one, Python lets no signal be heeded.

        Args:
            at_once: raise `Interrupted` in place of waiting to be asked. For phases in which nothing is to be saved.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        self._at_once = at_once
        for number, handler in before.items():
            # Paddle's import has replaced handlers without Python's knowledge: the user's is installed again.
            signal.signal(number, self._handle if handler in _DEFAULTS else handler)
            # Paddle's store takes a call of the system that a signal has interrupted for a lost connection.
            signal.siginterrupt(number, False)
        try:
            yield
        except Interrupted as interruption:
            log.warning("%s", interruption)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and time.monotonic() - self._when > _REPEATED:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self.name is None:
            self.name, self._when = signal.Signals(number).name, time.monotonic()
            if self._at_once:
                raise Interrupted(f"stopped by {self.name} before the first step")
