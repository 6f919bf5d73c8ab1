"""One start of Paddle's launcher, from its start until none of its ranks runs."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import time
from collections.abc import Sequence

from plsc.distributed.launching.causes import Cause, End, first_cause, likely_order
from plsc.distributed.launching.logs import LogFolder
from plsc.distributed.launching.processes import RankProcess, ranks_of
from plsc.distributed.launching.reports import REPORT_DIR, SAVED, read_endings, read_position

_POLL = 0.1  # seconds. Paddle's launcher asks for exit codes once per second, and then they are gone.
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl


class Attempt:
    """Starts Paddle's launcher in a session of its own, so that a terminal's signals reach it through `signal` only.

    Args:
        command: of Paddle's launcher.
        environment: of the launcher, and of the ranks.
        logs: a new folder, which the command names.
        grace: seconds for ranks that outlive the launcher to save and end.

    Attributes:
        status: exit status of Paddle's launcher, once it has ended. It is the code of the first rank, by number, that
            did not end with 0, often one that the launcher itself has ended.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str], *, logs: LogFolder, grace: float) -> None:
        self._logs, self._grace = logs, grace
        self._ranks: dict[int, RankProcess] = {}  # by process id
        self._ends: list[End] = []
        self._signaled: set[RankProcess] = set()
        self._signal: int | None = None
        self._launcher = subprocess.Popen(
            command,
            env={**environment, REPORT_DIR: str(logs.reports)},
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )

    def poll(self) -> bool:
        """Look after the ranks for a moment; False once the launcher and all ranks have ended."""
        status = self._launcher.poll()
        self._find_ranks()
        self._note_ends()
        self._logs.remove_environment()
        if status is not None:
            self._end_orphans()
            return False
        time.sleep(_POLL)
        return True

    def signal(self, number: int) -> None:
        """Send a signal to every rank once, also to one that starts later; to the launcher before there are ranks.

        Paddle's launcher itself would send SIGTERM three times and kill after 30 seconds.
        """
        self._signal, self._signaled = number, set()
        self._find_ranks()
        if not self._ranks:
            self._launcher.terminate()

    def kill(self) -> None:
        """Kill the launcher and the ranks."""
        self._find_ranks()
        self._launcher.kill()
        for rank in self._ranks.values():
            rank.kill()

    @property
    def status(self) -> int:
        return self._launcher.returncode

    @property
    def saved(self) -> bool:
        """Whether the ranks have saved their state and ask to be started again."""
        reported = [ending.status for ending in read_endings(self._logs.reports)]
        return SAVED in (self.status, *reported, *(end.code for end in self._ends)) and self.cause is None

    @property
    def is_complete(self) -> bool:
        """Whether training is complete on all ranks that were started here. A signal may have ended their scripts."""
        complete = {ending.rank for ending in read_endings(self._logs.reports) if ending.status == 0}
        return complete.issuperset(rank.rank for rank in self._ranks.values()) and self.cause is None

    @property
    def cause(self) -> Cause | None:
        """The first fault of a rank of this machine."""
        # Where the launcher asked for a rank's exit code first, its own status may tell that it was this one.
        missed = SAVED if self.status == SAVED else None
        ends = [End(end.process, missed if end.code is None else end.code) for end in self._ends]
        return first_cause(ends, self._logs)

    @property
    def position(self) -> int | None:
        """The step from which a restart would go on; None where training has not begun."""
        return read_position(self._logs.reports)

    def _find_ranks(self) -> None:
        for found in ranks_of(self._launcher.pid):
            rank = self._ranks.setdefault(found.pid, found)
            if self._signal is not None and rank not in self._signaled:
                rank.send(self._signal)
                self._signaled.add(rank)

    def _note_ends(self) -> None:
        noted = {end.process for end in self._ends}
        ended = [rank for rank in self._ranks.values() if rank not in noted and not rank.is_alive]
        ends = [End(rank, rank.exit_code()) for rank in ended]
        self._ends += likely_order(ends)

    def _end_orphans(self) -> None:
        """End ranks whose launcher is gone, as after SIGKILL. The older launcher forgets them on SIGTERM, too."""
        deadline = time.monotonic() + self._grace
        for rank in set(self._ranks.values()) - self._signaled:
            rank.send(signal.SIGTERM)
        while any(rank.is_alive for rank in self._ranks.values()) and time.monotonic() < deadline:
            time.sleep(_POLL)
        for rank in self._ranks.values():
            rank.kill()


def _end_with_parent() -> None:
    """In the child: have the system send SIGTERM when `plsc launch` ends, also where it is killed."""
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
