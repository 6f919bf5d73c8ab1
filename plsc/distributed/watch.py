"""Ranks watch each other, so that one that raises, dies or hangs ends the job, and every rank says which one and why.

Once a second a thread of each rank writes what the rank is doing to the ranks' key-value store. Rank 0 reads what all
write, the others what rank 0 writes; each looks at the processes of its own machine. The first fault that a rank finds
in itself or in another goes to the store, and all ranks raise it as `DistributedError`. A rank whose main thread cannot
raise it, because it computes or waits in a library, is ended after `_RAISING` seconds with the same last line.

A rank that is late is no fault. So before a collective of Gloo, which waits for 30 s only and is of no use afterwards,
ranks wait for each other here: `meet`.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

import paddle.distributed as dist

from plsc.distributed.processes import Process
from plsc.distributed.store import Store
from plsc.errors import DistributedError, Interrupted, PLSCError
from plsc.utils.hints import setter

log = logging.getLogger("plsc")

_PERIOD = 1.0  # seconds between reports
# Seconds without a report after which another machine counts as lost. On its own machine a rank can tell a process that
# is stopped from one that has ended, so there `rank_timeout` counts.
_SILENCE = 60.0
_RAISING = 2.0  # seconds for the main thread to raise an error; the launcher leaves 3 s from the end of another rank
_LEARNING = 5.0  # seconds for the other ranks to learn of an error
_SAVING = 60.0  # seconds for a rank to end by itself after its launcher has ended
_PAUSED = 10.0  # seconds between two reports of this rank after which it was paused itself and judges nobody
_FAULT = 1 << 40  # added to the count of arrivals, so that nobody waits on
_LONGEST_NAP = 0.004  # seconds between two looks at the count of arrivals
# In the messages of Gloo and NCCL, which Paddle passes on as errors of several classes.
_COMMUNICATION = ("gloo", "pair closure", "Connection closed by peer", "NCCL", "TCP receive error", "TCP send error")


class _Doing(NamedTuple):
    text: str
    since: float  # time.monotonic()


class _Report(NamedTuple):
    number: int
    doing: str
    idle: float  # seconds since the last progress
    waits: bool  # for other ranks
    is_inside: bool  # of an operation of this library
    has_left: bool  # its script has ended


class _Heard(NamedTuple):
    report: _Report
    at: float  # time.monotonic() of this rank when the report was new


class _Fault(NamedTuple):
    rank: int
    text: str
    hangs: bool = False
    is_stop: bool = False  # a signal asked to stop, which is no fault
    hears: bool = True  # whether that rank can still learn of it

    def as_error(self) -> DistributedError | Interrupted:
        """What another rank raises."""
        return Interrupted(self.text) if self.is_stop else DistributedError(self.text)

    def __str__(self) -> str:
        """The last line of a rank that cannot raise it."""
        kind = DistributedError
        return self.text if self.is_stop else f"{kind.__module__}.{kind.__name__}: {self.text}"


_doing = _Doing("starting", time.monotonic())
_depth = 0  # of `watched` blocks
_thread = 0  # that is in them
_current: Watch | None = None


def phase(text: str) -> None:
    """Say what this rank begins to do, for messages about a rank that hangs: "verifying lfw". It counts as progress.

    What may take longer than `rank_timeout` must call this repeatedly. It takes less than a microsecond. Calls in other
    threads than that of the operation are passed over.
    """
    global _doing
    if _depth and threading.get_ident() != _thread:
        return
    _doing = _Doing(text, time.monotonic())


def start(
    rank: int, world_size: int, *, address: tuple[str, int] | None, launcher: int | None, minutes: float | None
) -> None:
    """Begin to watch. Every rank must call this when the ranks are connected. A later call changes `minutes` only.

    Args:
        rank: this rank.
        world_size: number of ranks.
        address: host and port of the ranks' key-value store; None for a single rank.
        launcher: the process whose end ends this rank; None where no launcher started it.
        minutes: `rank_timeout`; 0 sets no limit, None leaves it as it is.
    """
    global _current
    if _current is None:
        if address is None and launcher is None:
            return
        _current = Watch(rank, world_size, address=address, launcher=launcher)
        os.register_at_fork(after_in_child=_forget)
        atexit.register(_leave)
    if minutes is not None:
        _current.allow(minutes * 60.0)


def meet(group: str = "", size: int | None = None) -> None:
    """Wait until every rank has called this, however late. Every rank must call it; without a watch it does nothing.

    Args:
        group: name of a group of ranks, which wait for each other only; '' for all ranks.
        size: number of ranks in the group; by default all.

    Raises:
        DistributedError: another rank stopped, died, ended or hangs.
    """
    if _current is not None:
        _current.meet(group, size)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """An operation of all ranks, in which the others learn of an exception of this one. Also a decorator.

    Ranks leave it together. An exception that all ranks raise (`PLSCError.is_on_all_ranks`) is passed on as it is.

    Raises:
        DistributedError: another rank had an exception first; also in place of the one that followed from it here.
        Interrupted: the same where a signal stopped another rank before there was anything to save.
    """
    global _depth, _thread
    if not _depth:
        _thread = threading.get_ident()
        phase("starting")
    _depth += 1
    try:
        yield
        if _depth == 1 and _current is not None:
            _current.close()
    except (Exception, Interrupted) as error:
        first = error if _depth > 1 or _current is None else _current.first_cause(error)
        if first is error:
            raise
        raise first from error
    finally:
        _depth -= 1


def _forget() -> None:
    global _current
    _current = None


def _leave() -> None:
    if _current is not None:
        _current.leave()


class Watch:
    """The watch of one rank; see `start`."""

    def __init__(self, rank: int, world_size: int, *, address: tuple[str, int] | None, launcher: int | None) -> None:
        self._rank, self._world_size, self._launcher = rank, world_size, launcher
        self._limit = 600.0
        self._fault: _Fault | None = None  # the first one of the job that this rank knows of
        self._is_raised = False  # by the main thread
        self._is_informed = False  # has said that it knows of the fault
        self._are_stacks_written = False
        self._waits_since: float | None = None
        self._has_left = False
        self._meetings: Counter[str] = Counter()  # by group
        self._reports = 0
        self._heard: dict[int, _Heard] = {}
        self._processes = [Process.this()]
        self._stores: tuple[Store, ...] = ()
        if address is not None:
            self._stores = self._main, self._own = Store(*address), Store(*address)  # of the main thread, of the watch
            gathered: list[tuple[str, str, int, str]] = []
            dist.all_gather_object(gathered, tuple(self._processes[0]))
            self._processes = [Process(*fields) for fields in gathered]
            threading.Thread(target=self._end_late_calls, name="plsc watch of the store", daemon=True).start()
            self._report()
            self.meet()  # from here on there is a report of every rank
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plsc watch", daemon=True)
        self._thread.start()

    def allow(self, seconds: float) -> None:
        """Set the time after which a rank without progress counts as hanging; 0 sets no limit."""
        self._limit = seconds

    # What the main thread calls.

    def meet(self, group: str = "", size: int | None = None) -> None:
        """See the function of this name."""
        if not self._stores:
            return
        try:
            self._arrive(group, size)
        except ValueError:
            self._fault = self._fault or self._lost_store()
        self._raise_fault()

    def close(self) -> None:
        """Wait for the others at the end of an operation, which this rank has completed."""
        if self._stores:
            phase("waiting for the other ranks at the end")
            with contextlib.suppress(ValueError):  # rank 0 has met all and ended
                self._arrive()
            self._raise_fault()

    def _raise_fault(self) -> None:
        if self._fault is not None:
            self._is_raised = True
            self._write_stacks(self._fault)
            self._tell(self._main, self._fault)
            raise self._fault.as_error()

    def _arrive(self, group: str = "", size: int | None = None) -> None:
        self._meetings[group] += 1
        wanted, nap = self._meetings[group] * (size or self._world_size), 5e-5
        key = f"arrived/{group}" if group else "arrived"
        try:
            arrived = self._main.add(key, 1)
            # A fault is added to the count of all ranks only; of a group it ends the wait when the thread has heard it.
            while arrived < wanted and not (group and self._fault):
                self._waits_since = self._waits_since or time.monotonic()
                time.sleep(nap)
                nap = min(1.1 * nap, _LONGEST_NAP)  # so that a wait gets longer by a tenth at most
                arrived = self._main.count(key)
        finally:
            phase(_doing.text)
            self._waits_since = None
        if arrived >= _FAULT:
            self._fault = self._fault or self._read_fault(self._main)

    def first_cause(self, error: Exception | Interrupted) -> Exception | Interrupted:
        """What a rank raises in place of an error of its own: the error itself where it is the first of the job."""
        if not self._stores or _is_on_all_ranks(error):
            return error
        self._is_raised = True
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            # The launcher is about to end all ranks. Paddle's own handler would print a traceback below the error.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        deadline = time.monotonic() + _LEARNING
        while self._fault is None and _is_of_communication(error) and time.monotonic() < deadline:
            time.sleep(0.1)  # the thread finds out which rank has gone
        if self._fault is None:
            self._fault = self._publish(self._main, self._describe(error))
            if self._fault == self._describe(error):
                self._tell(self._main, self._fault)
                return _with_rank(error, self._rank)
        return error if str(error) == self._fault.text else self._fault.as_error()

    def _describe(self, error: Exception | Interrupted) -> _Fault:
        if isinstance(error, Interrupted):
            return self._fault_of(self._rank, f"was {error}", is_stop=True)
        return self._fault_of(self._rank, f"stopped: {type(error).__name__}: {error}")

    def _tell(self, store: Store, fault: _Fault) -> None:
        """Say that this rank knows the fault. The store ends with rank 0, and the launcher ends all ranks with the one
        at fault: these two wait until the others know it too."""
        self._say_informed(store)
        if self._rank not in (0, fault.rank):
            return
        wanted, deadline = self._world_size - (not fault.hears), time.monotonic() + _LEARNING
        with contextlib.suppress(ValueError):
            while store.count("informed") < wanted and time.monotonic() < deadline:
                time.sleep(0.05)

    def leave(self) -> None:
        """Say at the end of the process that this rank has not died."""
        self._stop.set()
        self._thread.join(_LEARNING)
        if self._stores and not self._thread.is_alive():
            self._has_left = True
            with contextlib.suppress(ValueError):
                self._report()

    # What the threads call.

    def _end_late_calls(self) -> None:
        while True:
            time.sleep(_PERIOD)
            for store in self._stores:
                store.end_late_call(self._limit, period=_PERIOD)

    def _run(self) -> None:
        last, deadline, orphaned = time.monotonic(), None, None
        while not self._stop.wait(_PERIOD):
            now = time.monotonic()
            if now - last > _PAUSED:
                self._excuse(now)
            last = now
            orphaned = orphaned or self._notice_launcher(now)
            if orphaned and now - orphaned > _SAVING:
                self._end(_Fault(self._rank, "the launcher of this rank has ended"))
            if self._stores:
                try:
                    self._look(now)
                except ValueError:
                    self._fault = self._fault or self._lost_store()
            deadline = self._see_to_the_end(now, deadline)

    def _notice_launcher(self, now: float) -> float | None:
        """Stop this rank as the launcher would, where the launcher has ended without doing so."""
        if self._launcher is None or os.getppid() == self._launcher:
            return None
        log.error("the launcher, process %d, has ended, so this rank ends", self._launcher)
        os.kill(os.getpid(), signal.SIGTERM)
        return now

    def _look(self, now: float) -> None:
        """Report, and look for a fault."""
        self._report()
        if self._fault is None and self._own.count("faulty"):
            self._fault = self._read_fault(self._own)
        fault = self._fault or self._find_dead() or self._find_hanging(now)
        if fault is not None and self._fault is None:
            self._write_stacks(fault)
            self._fault = self._publish(self._own, fault)
        if self._fault is not None:
            self._say_informed(self._own)

    def _say_informed(self, store: Store) -> None:
        if not self._is_informed:
            self._is_informed = True
            with contextlib.suppress(ValueError):
                store.add("informed", 1)

    def _report(self) -> None:
        self._reports += 1
        report = _Report(
            self._reports,
            _doing.text,
            time.monotonic() - _doing.since,
            waits=self._waits_since is not None,
            is_inside=_depth > 0,
            has_left=self._has_left,
        )
        self._own.set(f"report/{self._rank}", json.dumps(report))

    def _hear(self, rank: int, now: float) -> _Heard:
        report = _Report(*json.loads(self._own.get(f"report/{rank}")))
        if rank not in self._heard or self._heard[rank].report.number != report.number:
            self._heard[rank] = _Heard(report, now)
        return self._heard[rank]

    def _find_dead(self) -> _Fault | None:
        """A rank of this machine whose process has ended without a word, or one that has left while this one waits."""
        here = self._processes[self._rank].machine
        for rank, process in enumerate(self._processes):
            if process.machine == here and rank != self._rank and process.has_ended():
                report = self._hear(rank, time.monotonic()).report
                if not report.has_left:
                    return self._fault_of(
                        rank,
                        f"is dead: its process {process.pid} has ended without an error message, as by SIGKILL, a lack "
                        f"of memory or a crash; its last report: {report.doing}",
                        hears=False,
                    )
        return None

    def _find_hanging(self, now: float) -> _Fault | None:
        """The rank that has made no progress for the longest time, if that is too long."""
        if self._rank:
            heard = {0: self._hear(0, now)}
        else:
            heard = {rank: self._hear(rank, now) for rank in range(1, self._world_size)}
        idle = {}
        for rank, (report, at) in heard.items():
            silent = now - at
            if report.has_left:
                if self._waits_since is not None and now - self._waits_since > _LEARNING:
                    return self._fault_of(rank, "has ended its script, but another rank waits for it")
            elif report.is_inside:
                if silent > _SILENCE and self._processes[rank].machine != self._processes[self._rank].machine:
                    return self._fault_of(
                        rank,
                        f"has not reported for {silent:.0f} s: its machine or the network has failed; its last report: "
                        f"{report.doing}",
                        hears=False,
                    )
                idle[rank] = silent if report.waits else report.idle + silent
        # Rank 0, which hears of all, comes first.
        late = 2 * _PERIOD if self._rank else 0.0
        if _depth and self._waits_since is None:
            idle[self._rank] = now - _doing.since
        slowest = max(idle, key=lambda rank: idle[rank], default=self._rank)
        if self._limit and idle.get(slowest, 0.0) > self._limit + late:
            doing = _doing.text if slowest == self._rank else heard[slowest].report.doing
            runs = slowest == self._rank or now - heard[slowest].at < min(_PAUSED, self._limit / 2)
            return self._hanging(slowest, idle[slowest], doing=doing, runs=runs)
        return None

    def _hanging(self, rank: int, seconds: float, *, doing: str, runs: bool) -> _Fault:
        state = "its log has its stacks" if runs else "its process does not run, or is in a call that does not return"
        more = setter("rank_timeout", round(self._limit / 30.0, 1))
        return self._fault_of(
            rank,
            f"has made no progress for {seconds:.0f} s; its last report: {doing}; {state}. If that may take so long: "
            f"{more}",
            hangs=True,
            hears=runs,
        )

    def _fault_of(self, rank: int, text: str, **kind: bool) -> _Fault:
        return _Fault(rank, f"rank {rank} on {self._processes[rank].host} {text}", **kind)

    def _lost_store(self) -> _Fault:
        """The fault of rank 0, to which the connection is lost or which does not answer in time."""
        process, doing = self._processes[0], self._heard[0].report.doing if 0 in self._heard else "starting"
        is_here = process.machine == self._processes[self._rank].machine
        if is_here and not process.has_ended():
            return self._hanging(0, self._limit, doing=doing, runs=False)
        return self._fault_of(0, f"is dead, or its machine or the network has failed; its last report: {doing}")

    def _read_fault(self, store: Store) -> _Fault:
        return _Fault(*json.loads(store.get(f"fault/{store.count('faulty') - 1}")))

    def _publish(self, store: Store, fault: _Fault) -> _Fault:
        """Make a fault the first of the job, unless there is one; returns the first."""
        try:
            store.set(f"fault/{self._rank}", json.dumps(fault))
            if store.add("faults", 1) == 1:
                store.add("faulty", self._rank + 1)
                store.add("arrived", _FAULT)
                return fault
            while not store.count("faulty"):
                time.sleep(0.01)
            return self._read_fault(store)
        except ValueError:
            return self._fault or self._lost_store()

    def _see_to_the_end(self, now: float, deadline: float | None) -> float | None:
        """End this rank where its main thread has not raised the fault in time; returns the deadline."""
        if self._fault is None or self._is_raised or not _depth:
            self._arm()
            return None
        if deadline is None:
            self._write_stacks(self._fault)
            deadline = now + _RAISING
        if self._fault.rank == self._rank or now > deadline:
            self._tell(self._own, self._fault)
            self._end(self._fault)
        return deadline

    def _write_stacks(self, fault: _Fault) -> None:
        if fault.hangs and not self._are_stacks_written:
            self._are_stacks_written = True
            faulthandler.dump_traceback(2, all_threads=True)

    def _arm(self) -> None:
        """Have the stacks written where this thread cannot, because a call of the main thread never lets it run."""
        if _depth and self._limit and self._stores:
            faulthandler.dump_traceback_later(self._limit + _PAUSED, file=2)
        else:
            faulthandler.cancel_dump_traceback_later()

    def _excuse(self, now: float) -> None:
        """After a pause of this process, begin anew to measure what all ranks do."""
        global _doing
        _doing = _Doing(_doing.text, now)
        self._heard = {rank: heard._replace(at=now) for rank, heard in self._heard.items()}

    def _end(self, fault: _Fault) -> NoReturn:
        os.write(2, f"\n{fault}\n".encode())
        os._exit(Interrupted.status if fault.is_stop else 1)


def _is_on_all_ranks(error: BaseException | None) -> bool:
    """Whether every rank raises it, or the error in place of which it was raised."""
    while error is not None:
        if isinstance(error, (PLSCError, Interrupted)) and error.is_on_all_ranks:
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_of_communication(error: Exception | Interrupted) -> bool:
    return not isinstance(error, (PLSCError, Interrupted)) and any(word in str(error) for word in _COMMUNICATION)


def _with_rank(error: Exception | Interrupted, rank: int) -> Exception | Interrupted:
    """The same error, whose message names the rank."""
    if isinstance(error, Interrupted):
        return error
    text = str(error)
    if isinstance(error, PLSCError) and error.args == (text,):
        if f"rank {rank}" not in text:
            error.args = (f"rank {rank}: {text}",)
    elif hasattr(error, "add_note"):  # from Python 3.11 on
        error.add_note(f"(raised on rank {rank})")
    return error
