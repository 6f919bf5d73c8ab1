"""Which rank failed first, and why."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from plsc.distributed.launching.logs import LogFolder, last_error
from plsc.distributed.launching.processes import RankProcess
from plsc.distributed.launching.reports import SAVED, Ending, read_endings

# Exit codes of ranks that were asked to stop and had no handler.
_STOPS = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR1)


@dataclass(frozen=True)
class End:
    """A rank that has ended.

    Attributes:
        process: the rank.
        code: its exit code as `subprocess` gives it; None where the launcher asked for it first.
    """

    process: RankProcess
    code: int | None


@dataclass(frozen=True)
class Cause:
    """What ended a run.

    Attributes:
        text: the rank and its error.
        status: the rank's exit status; 1 where it has none, as after SIGKILL.
        log: of the rank, where it ran on this machine.
    """

    text: str
    status: int
    log: Path | None


def first_cause(ends: list[End], logs: LogFolder) -> Cause | None:
    """The first fault of a rank, or None where no rank failed.

    A rank that is killed tells nothing, and the others tell of broken connections: it is the cause where it ended
    first. Else the first report is, then what stands in the log of the rank that ended first. After a rank that has
    saved and left, Paddle's launcher ends the others: that is no fault.

    A signal that ends a rank which has saved, or whose training is complete, is none either: its process has no handler
    any more.

    Args:
        ends: the ranks of this machine that have ended, in this order.
        logs: of the run.
    """
    reports = {ending.rank: ending for ending in read_endings(logs.reports)}
    faults = [ending for ending in reports.values() if ending.status not in (0, SAVED)]
    for end in ends:
        report = None if end.process.rank is None else reports.get(end.process.rank)
        status = end.code if end.code is not None or report is None else report.status
        if status in _STOPS and report is not None and report.status in (0, SAVED):
            status = report.status
        if status == SAVED:
            return None
        if status == 0:
            continue
        if report is None and ((status is None and faults) or (status is not None and status < 0)):
            return _killed(end, logs)
        return _reported(faults[0], ends, logs) if faults else _logged(end, logs)
    return _reported(faults[0], ends, logs) if faults else None


def likely_order(ends: list[End]) -> list[End]:
    """The ranks that ended within one look, causes before consequences.

    One that was killed is rather a cause. One that SIGTERM ended is rather a consequence: Paddle's launcher sends it to
    the others after a rank has failed.
    """
    return sorted(ends, key=lambda end: (end.code != -signal.SIGKILL, end.code == -signal.SIGTERM))


def _killed(end: End, logs: LogFolder) -> Cause:
    how = "ended without a word, as if it had been killed"
    if end.code is not None:
        how = f"was ended by {signal.Signals(-end.code).name}"
        if -end.code == signal.SIGKILL:
            how += "; the system may have run out of memory: see dmesg"
    return Cause(f"{end.process.name} {how}", 1, logs.worker(end.process.local_rank))


def _logged(end: End, logs: LogFolder) -> Cause:
    log = logs.worker(end.process.local_rank)
    how = "without a message" if end.code is None else f"with status {end.code}"
    return Cause(f"{end.process.name}: {last_error(log) or f'it ended {how}'}", end.code or 1, log)


def _reported(fault: Ending, ends: list[End], logs: LogFolder) -> Cause:
    places = {end.process.rank: end.process.local_rank for end in ends}
    log = logs.worker(places[fault.rank]) if fault.rank in places else None
    return Cause(f"rank {fault.rank}: {fault.message}", fault.status, log)
