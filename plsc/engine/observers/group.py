"""The observers of one run, called together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plsc.distributed import watch
from plsc.engine.observers import Observer, Run, Step
from plsc.errors import ConfigError, TrainingError

log = logging.getLogger("plsc")


def check_observer(observer: object) -> Observer:
    """Return `observer` if it is one; otherwise raise `ConfigError`."""
    if not isinstance(observer, Observer):
        raise ConfigError(
            f"observer: got {observer!r} ({type(observer).__name__}), expected an instance of a subclass of "
            f"plsc.engine.observers.Observer"
        )
    return observer


class ObserverGroup:
    """Calls the observers that this rank has.

    Args:
        observers: in the order in which they are called.
        is_main: whether this is rank 0; another rank has only observers with `every_rank`.

    Raises:
        ConfigError: one is no `Observer`.
        TrainingError: of every method: an observer raised an exception.
    """

    def __init__(self, observers: Iterable[object], is_main: bool) -> None:
        checked = [check_observer(observer) for observer in observers]
        self._observers = [observer for observer in checked if is_main or observer.every_rank]

    @contextmanager
    def running(self, run: Run, results: Mapping[str, float]) -> Iterator[None]:
        """`on_start` before a `with` block; `on_end` with the results after it, also if the block raises."""
        try:
            self._call("on_start", run)
            yield
        except BaseException as error:
            self._end(results, error)
            raise
        failure = self._end(results, None)
        if failure is not None:
            raise failure

    def on_step(self, step: Step) -> None:
        self._call("on_step", step)

    def on_verify(self, step: Step, results: Mapping[str, float]) -> None:
        self._call("on_verify", step, results)

    def on_save(self, step: Step, path: Path) -> None:
        self._call("on_save", step, path)

    def _call(self, event: str, *arguments: Any) -> None:
        for observer in self._observers:
            watch.phase(f"in {event} of the observer {type(observer).__qualname__}")
            try:
                getattr(observer, event)(*arguments)
            except Exception as error:
                raise _failure(observer, event, error) from error

    def _end(self, results: Mapping[str, float], error: BaseException | None) -> TrainingError | None:
        """Call `on_end` of every observer, those after a failing one too; returns the first failure."""
        first: TrainingError | None = None
        for observer in self._observers:
            try:
                observer.on_end(results, error)
            except Exception as reason:
                failure = _failure(observer, "on_end", reason)
                failure.__cause__ = reason
                if error is not None or first is not None:
                    log.error("%s", failure)  # it must not hide the error that came first
                first = first or failure
        return first


def _failure(observer: Observer, event: str, error: Exception) -> TrainingError:
    name = f"{type(observer).__module__}.{type(observer).__qualname__}"
    advice = "correct the observer, or train without it"
    if isinstance(error, OSError):  # also of the library's observers, which every run has
        advice = "mend what the system reports, such as a full disk, and resume from the last checkpoint"
    return TrainingError(f"observer {name}: {event} raised {type(error).__name__}: {error}; {advice}")
