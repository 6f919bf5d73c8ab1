"""Worker processes that fill batches, and that are missed by name when they die or hang.

Each worker has a pipe for small messages, and batches are filled in places of one shared anonymous map. The map has
no name in the system: it goes with the last process that has it, so nothing is left behind however a run ends. Task
k goes to worker k mod W, and replies are taken in that order, so results do not depend on which worker is faster.
"""

from __future__ import annotations

import collections
import mmap
import multiprocessing
import pickle
import select
import signal
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

import cv2
import numpy as np

from plsc.errors import DataError

# Batches that a worker is to have ahead; and batches that whoever takes them may hold without a copy of them made:
# the one just given and the one before, which a loop's variable holds still.
_AHEAD, _LENT = 2, 2

# What a worker runs: (task, place to write [N, ...], hold) -> reply. It calls hold(index) before each record.
Work = Callable[[Any, np.ndarray, Callable[[int], None]], Any]


class _Worker(NamedTuple):
    process: Any
    pipe: connection.Connection
    poll: Any  # of the pipe and of the end of the process; connection.wait makes a new one every time


class WorkerPool:
    """Processes that run one function on a stream of tasks, replies in order.

    They are forked, so that a user's script need not guard its main part and sources need not be pickled; they only
    read files and call OpenCV, never Paddle. They end with `close`, or when the process that made them is gone.

    Args:
        work: what a worker runs. Its reply travels by pipe and is small; its pixels stay in the place.
        num_workers: W, 1 or more.
        batch_shape: [N, ...] of a place, uint8.
        describe: names a record by its index, for messages.
        timeout: seconds that one record may take before its worker counts as hanging; 0 waits for ever.
    """

    def __init__(
        self,
        work: Work,
        num_workers: int,
        batch_shape: Sequence[int],
        describe: Callable[[int], str],
        timeout: float = 300.0,
    ) -> None:
        context = multiprocessing.get_context("fork")
        self._describe, self._timeout = describe, timeout
        self._shape, self._size = tuple(batch_shape), int(np.prod(batch_shape))
        places = num_workers * _AHEAD + _LENT
        self._shared = mmap.mmap(-1, max(1, places * self._size))
        self._free = list(range(places))
        self._lent: dict[int, weakref.ref] = {}
        # The record a worker holds, or -1, and since when: read when the worker says nothing.
        self._held = np.frombuffer(mmap.mmap(-1, num_workers * 16), np.float64).reshape(num_workers, 2)
        self._held[:] = -1, 0
        self._outstanding: collections.deque = collections.deque()
        self._workers: list[_Worker] = []
        self._runs = 0
        for number in range(num_workers):
            ours, theirs = context.Pipe()
            inherited = [worker.pipe for worker in self._workers] + [ours]
            process = context.Process(
                target=_serve,
                daemon=True,
                name=f"plsc reader {number}",
                args=(
                    work,
                    theirs,
                    inherited,
                    [self._at(place) for place in range(places)],
                    self._held[number],
                    describe,
                ),
            )
            process.start()
            theirs.close()
            poll = select.poll()
            for source in (ours, process.sentinel):
                poll.register(source, select.POLLIN)
            self._workers.append(_Worker(process, ours, poll))

    def run(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, np.ndarray]]:
        """Hand out tasks some batches ahead, and yield each one's reply with the batch it filled, [N, ...] uint8.

        A batch is the taker's for as long as anything refers to it.

        Raises:
            DataError: what a worker raised; or a worker died or hangs, with the record it held.
        """
        self._runs += 1
        mine = self._runs
        while self._outstanding:  # of a run that was not taken to its end
            worker, place = self._outstanding.popleft()
            self._receive(worker)
            self._free.append(place)
        tasks, sent = iter(tasks), 0
        while True:
            if mine != self._runs:
                raise DataError("an epoch was begun before this one had ended; only the last one begun can go on")
            while len(self._outstanding) < _AHEAD * len(self._workers):
                task = next(tasks, None)
                if task is None:
                    break
                worker, place = sent % len(self._workers), self._free.pop()
                self._send(worker, (place, task))
                self._outstanding.append((worker, place))
                sent += 1
            if not self._outstanding:
                return
            worker, place = self._outstanding.popleft()
            yield self._receive(worker), self._lend(place)

    def close(self) -> None:
        """End the workers at once."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.join(10)  # one that waits for a dead network disk cannot even be killed
            worker.pipe.close()
        self._workers = []
        self._outstanding.clear()

    def _at(self, place: int) -> np.ndarray:
        return np.frombuffer(self._shared, np.uint8, self._size, place * self._size).reshape(self._shape)

    def _lend(self, place: int) -> np.ndarray:
        """The batch in a place, which becomes free when nothing refers to the batch; a copy where too many are lent."""
        batch, free = self._at(place), self._free
        if len(free) + len(self._outstanding) < _AHEAD * len(self._workers):
            free.append(place)
            return batch.copy()
        # What is cut out of the batch refers to its base, not to the batch.
        self._lent[place] = weakref.ref(batch.base, lambda _: free.append(place))
        return batch

    def _send(self, worker: int, message: Any) -> None:
        try:
            _write(self._workers[worker].pipe, message)
        except OSError:
            self._fail(worker)

    def _receive(self, number: int) -> Any:
        _, pipe, poll = self._workers[number]
        while True:
            ready = [source for source, _ in poll.poll(1000)]
            if pipe.fileno() in ready:
                try:
                    reply, error = pickle.loads(pipe.recv_bytes())
                except (EOFError, OSError):
                    self._fail(number)
                if error is not None:
                    self.close()
                    raise DataError(error)
                return reply
            if ready:
                self._fail(number)
            index, since = self._held[number]
            if index >= 0 and self._timeout and time.monotonic() - since > self._timeout:
                self._fail(number, time.monotonic() - since)

    def _fail(self, number: int, seconds: float | None = None) -> None:
        process, held = self._workers[number].process, int(self._held[number, 0])
        which = "no record" if held < 0 else self._describe(held)
        if seconds is not None:
            self.close()
            raise DataError(
                f"a process that reads training images hangs: it has held {which} for {seconds:.0f} s; "
                f"mend or remove that image, look at the disk, or allow more by set_worker_timeout"
            )
        process.join(10)
        code = process.exitcode
        how = f"exit status {code}"
        if code is not None and code < 0:
            how = f"killed by {signal.Signals(-code).name}" + (", out of memory?" if code == -signal.SIGKILL else "")
        self.close()
        raise DataError(
            f"a process that reads training images died ({how}) while it held {which}; look at that image, "
            f"lower set_num_workers if memory ran out, or set it to 0 to see the fault where it happens"
        )


def _serve(
    work: Work,
    pipe: connection.Connection,
    inherited: list[connection.Connection],
    places: list[np.ndarray],
    held: np.ndarray,
    describe: Callable[[int], str],
) -> None:
    # A keyboard interrupt is the parent's to handle; its handlers for the end of a run are not for here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # With the parent's ends open here, the pipes would never tell that the parent is gone.
    for end in inherited:
        end.close()
    cv2.setNumThreads(0)

    note = memoryview(held)  # a fifth of the time that an assignment through NumPy takes

    def hold(index: int) -> None:
        note[0], note[1] = index, time.monotonic()

    while True:
        try:
            place, task = pickle.loads(pipe.recv_bytes())
            reply: tuple[Any, str | None]
            try:
                reply = work(task, places[place], hold), None
            except DataError as error:
                reply = None, str(error)
            except Exception:  # of a user's own data set
                where = describe(int(held[0])) if held[0] >= 0 else "before the first record"
                reply = None, f"{where}: reading it failed:\n{traceback.format_exc()}"
            held[0] = -1
            _write(pipe, reply)
        except (EOFError, OSError):
            return


def _write(pipe: connection.Connection, message: Any) -> None:
    # The pickler of Connection.send, which can pass on files and locks as well, takes four times as long.
    pipe.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
