"""Signals that ask a run to stop: it saves, and leaves so that the same command goes on."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from plsc.errors import Interrupted, NotSavedError

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

    What asks to stop may repeat itself while the process ends. So after `Interrupted` a signal still has no effect for
    3 s from the first one, and after that the effect that it had before.

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
        self._later: dict[int, Any] = {}  # the handlers of further signals

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
        self._at_once, self._later = at_once, dict.fromkeys(_SIGNALS, signal.SIG_DFL)
        for number, handler in before.items():
            # Paddle's import has replaced handlers without Python's knowledge: the user's is installed again.
            is_heeded = handler in _DEFAULTS or isinstance(getattr(handler, "__self__", None), StopRequest)
            signal.signal(number, self._handle if is_heeded else handler)
            # Paddle's store takes a call of the system that a signal has interrupted for a lost connection.
            signal.siginterrupt(number, False)
        try:
            yield
        except (Interrupted, NotSavedError) as ending:
            if isinstance(ending, Interrupted):
                log.warning("%s", ending)
                self._later = {number: handler or signal.SIG_DFL for number, handler in before.items()}
            else:
                _put_back(before)
            atexit.register(_ignore_signals)
            raise
        except BaseException:
            _put_back(before)
            raise
        _put_back(before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and time.monotonic() - self._when > _REPEATED:
            signal.signal(number, self._later[number])
            os.kill(os.getpid(), number)
        elif self.name is None:
            self.name, self._when = signal.Signals(number).name, time.monotonic()
            if self._at_once:
                raise Interrupted(f"stopped by {self.name} before the first step")


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Hold signals back within a `with` block that imports Paddle, which replaces their handlers; then heed them.

    Raises:
        Interrupted: after the block, where a signal came meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        with StopRequest().heeded(at_once=True):
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _put_back(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler or signal.SIG_DFL)


def _ignore_signals() -> None:
    """While a process ends with a status of its own: the interpreter would install the default handlers, and a signal
    to ranks of which one has ended would make it another."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
