"""`plsc launch`: starts of Paddle's launcher, one after the other, until the run is finished, stopped or in vain."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from plsc.distributed.launching.attempt import Attempt
from plsc.distributed.launching.logs import LogFolder
from plsc.distributed.launching.reports import SAVED

AUTO_RESUME = "PLSC_AUTO_RESUME"
# It imports Paddle, which this process does without.
PADDLE_LAUNCHER = "plsc.distributed.launching.paddle_launcher"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
_AT_ONCE = 10.0  # seconds for the ranks after a second signal
_REPEATED = 3.0  # seconds after the first signal in which others count as the same: schedulers send several
_LONGEST_WAIT = 300.0
_LOOK = 0.1


@dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """What `plsc launch` is asked for.

    Attributes:
        command: the script and its arguments.
        flags: of `paddle.distributed.launch`, each as '--name=value', but for '--log_dir'.
        log_dir: folder in which each start makes its own.
        restarts: after failures, at most.
        grace: seconds for the ranks to save and end, from the first signal.
        backoff: seconds before the first restart, doubled with each one up to 300.
    """

    command: Sequence[str]
    flags: Sequence[str] = ()
    log_dir: Path = Path("log")
    restarts: int = 3
    grace: float = 120.0
    backoff: float = 5.0


class Launcher:
    """Runs a script on its ranks, and again where that helps.

    | the ranks                                                  | then               | exit status             |
    |------------------------------------------------------------|--------------------|-------------------------|
    | finish                                                     |                    | 0                       |
    | save and leave with 75, because `plsc launch` got a signal |                    | 75                      |
    | save and leave with 75 by themselves                       | started again      |                         |
    | the same, and nothing new is saved                         |                    | 75                      |
    | fail, and a checkpoint is newer than at the start before   | started again      |                         |
    | fail, and none is, or no restart is left                   |                    | that of the first, or 1 |
    | get a signal, and do not save within `grace`               | killed             | 128 + signal            |

    Before a restart after a failure there is a wait. The first failure counts as progress where training had begun.
    Starts after the first one have the variable `PLSC_AUTO_RESUME=1`.

    Each rank gets a signal once, from here, since Paddle's launcher would send SIGTERM three times and kill after 30
    seconds. SIGHUP is passed on as SIGTERM.

    Args:
        settings: what to run.
        environment: of the ranks.
    """

    def __init__(self, settings: LaunchSettings, environment: Mapping[str, str]) -> None:
        self._settings = settings
        # The launcher would prefer this variable to its flag.
        self._environment = {name: value for name, value in environment.items() if name != "PADDLE_LOG_DIR"}
        self._signals: list[int] = []
        self._first_signal = 0.0

    def run(self) -> int:
        """Run to the end; returns the exit status.

        Raises:
            ConfigError: the folder of the logs cannot be made.
        """
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # as `nohup` sets it
                signal.signal(number, self._note_signal)
        try:
            return self._run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self) -> int:
        position, restarts = None, 0
        while True:
            attempt = self._attempt(again=position is not None)
            if attempt.status == 0:
                return 0
            if self._signals:
                return self._stopped(attempt)
            before, position = position, attempt.position
            has_progressed = position is not None and (before is None or position > before)
            if attempt.saved:
                if not has_progressed:
                    _say("the ranks have saved nothing new and ask to be started again: not done")
                    return SAVED
                _say(f"the ranks have saved step {position} and are started again")
                continue
            refusal = self._refusal(restarts, position, has_progressed=has_progressed)
            if refusal is not None:
                return _failed(refusal, attempt)
            restarts += 1
            seconds = min(self._settings.backoff * 2 ** (restarts - 1), _LONGEST_WAIT)
            plan = f"restart {restarts} of {self._settings.restarts} from step {position} in {seconds:g} s"
            _failed(plan, attempt)
            if not self._wait(seconds):
                return SAVED

    def _attempt(self, *, again: bool) -> Attempt:
        settings, logs = self._settings, LogFolder(self._settings.log_dir)
        _say(f"logs of the ranks: {logs.path}")
        launcher = [sys.executable, "-m", PADDLE_LAUNCHER, *settings.flags, f"--log_dir={logs.path}"]
        environment = {**self._environment, AUTO_RESUME: "1"} if again else self._environment
        attempt = Attempt([*launcher, *settings.command], environment, logs=logs, grace=settings.grace)
        sent, deadline = 0, float("inf")
        while attempt.poll():
            if len(self._signals) > sent:
                deadline = min(deadline, time.monotonic() + (_AT_ONCE if sent else settings.grace))
                sent = len(self._signals)
                self._pass_on(attempt, self._signals[-1])
            if time.monotonic() > deadline:
                _say("the ranks have not ended in time and are killed")
                attempt.kill()
                deadline = float("inf")
        return attempt

    def _pass_on(self, attempt: Attempt, number: int) -> None:
        name = signal.Signals(number).name
        _say(f"{name}: the ranks have {self._settings.grace:g} s to save and end; a second signal ends them at once")
        # A rank without a handler of SIGHUP would end at once.
        attempt.signal(signal.SIGTERM if number == signal.SIGHUP else number)

    def _stopped(self, attempt: Attempt) -> int:
        if attempt.saved or attempt.is_complete:
            _say("stopped; the same command goes on")
            return SAVED
        _failed("stopped; the ranks have not saved", attempt)
        return 128 + self._signals[0]

    def _refusal(self, restarts: int, position: int | None, *, has_progressed: bool) -> str | None:
        """Why the run is not started again, or None."""
        if restarts == self._settings.restarts:
            return f"{restarts} restarts were made" if restarts else "no restarts are allowed"
        if position is None:
            return "no restart, since no training had begun"
        return None if has_progressed else f"no restart, since none has saved more than step {position}"

    def _wait(self, seconds: float) -> bool:
        """Wait before a restart; False where a signal came."""
        end = time.monotonic() + seconds
        while not self._signals and time.monotonic() < end:
            time.sleep(_LOOK)
        return not self._signals

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._signals or now - self._first_signal > _REPEATED:
            self._first_signal = self._first_signal if self._signals else now
            self._signals.append(number)


def _failed(consequence: str, attempt: Attempt) -> int:
    """Show the first cause, last of all; returns its exit status."""
    _say(consequence)
    cause = attempt.cause
    if cause is None:
        _say(f"paddle.distributed.launch ended with status {attempt.status}; its output above says why")
        return 1
    if cause.log is not None:
        _say(f"log of the rank that failed first: {cause.log}")
    _say(cause.text)
    return cause.status


def _say(text: str) -> None:
    print(f"plsc launch: {text}", file=sys.stderr, flush=True)
