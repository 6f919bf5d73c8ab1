"""Worker processes that fill batches. When one dies or hangs, the error names the record that it was reading.

Each worker has a pipe for small messages. Batches are written to slots of one shared anonymous memory map. The map has
no name in the system and is freed with the last process that uses it, so nothing is left behind however a run ends.
Task k goes to worker k mod W, and replies are taken in that order, so results do not depend on the speed of a worker.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import mmap
import multiprocessing
import pickle
import select
import signal
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import connection
from multiprocessing.util import Finalize
from typing import Any, NamedTuple, NoReturn

import cv2
import numpy as np
import numpy.typing as npt

from plsc.errors import ConfigError, DataError, StorageError
from plsc.utils.hints import setter

# Seconds between two looks at a worker that does not reply.
_LOOK = 1
# Batches prefetched per worker.
_AHEAD = 2
# Batches that the consumer may hold before a batch is copied: the current one, and the one before it, which the loop
# variable keeps alive until the next assignment.
_HELD = 2

_Batch = npt.NDArray[Any]  # uint8
# The function that a worker runs: (task, slot to write to [N, ...], hold) -> reply. It calls hold(index) before each
# record.
Work = Callable[[Any, _Batch, Callable[[int], None]], Any]


class _Worker(NamedTuple):
    process: Any
    pipe: connection.Connection
    poll: Any  # of the pipe and of the end of the process; connection.wait makes a new one at every call


class WorkerPool:
    """Processes that run one function on a stream of tasks, with replies in the order of the tasks.

    The processes are forked, so that a user's script need not guard its main part and sources need not be pickled. They
    read files and call OpenCV, never Paddle. They end with `close`, or when the process that made them has ended.

    They are forked after the ranks are connected, so that what they inherit may lie on a GPU, which a forked process
    cannot use. They free none of it: what there was at the fork is left out of garbage collection. Where a user's own
    data set calls Paddle, it computes on the CPU.

    Args:
        work: the function that a worker runs. Its reply goes through a pipe and should be small; the pixels go to
            shared memory.
        num_workers: W, 1 or more.
        batch_shape: [N, ...] of a batch, uint8.
        describe: names a record by its index, for messages.
        timeout: seconds without progress, while its reply is awaited, after which a worker counts as hanging; 0 waits
            forever. A new record is progress.

    Raises:
        ConfigError: this process is a daemon, which cannot start processes.
        DataError: the system cannot start as many processes.

    Example:
        >>> def fill(task, batch, hold):
        ...     batch[:] = task
        ...     return task
        >>> pool = WorkerPool(fill, 2, batch_shape=(4, 3), describe=str)
        >>> [int(batch.sum()) for reply, batch in pool.run([1, 2, 3])]
        [12, 24, 36]
        >>> pool.close()
    """

    def __init__(
        self,
        work: Work,
        num_workers: int,
        *,
        batch_shape: Sequence[int],
        describe: Callable[[int], str],
        timeout: float = 300.0,
    ) -> None:
        if multiprocessing.current_process().daemon:
            raise ConfigError(
                f"num_workers is {num_workers}, but this process is a daemon, as those of multiprocessing.Pool are, "
                f"which cannot start processes; {setter('num_workers', 0)} to read training images in this "
                f"process, or train in one that is made with multiprocessing.Process(daemon=False)"
            )
        context = multiprocessing.get_context("fork")
        self._describe, self._timeout = describe, timeout
        self._shape, self._size = tuple(batch_shape), int(np.prod(batch_shape))
        slots = num_workers * _AHEAD + _HELD
        self._shared = mmap.mmap(-1, max(1, slots * self._size))
        self._free = list(range(slots))
        self._in_use: dict[int, weakref.ref[Any]] = {}
        # The record that each worker is reading, or -1, and when it began; looked at when a worker does not reply.
        self._held = np.frombuffer(mmap.mmap(-1, num_workers * 16), np.float64).reshape(num_workers, 2)
        self._held[:] = -1, 0
        self._outstanding: collections.deque[tuple[int, int]] = collections.deque()  # (worker, slot)
        self._workers: list[_Worker] = []
        self._runs = 0
        # Before multiprocessing sends SIGTERM to its processes and waits for them, when the interpreter ends.
        Finalize(self, _end, [self._workers], exitpriority=0)
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
                    [self._at(slot) for slot in range(slots)],
                    self._held[number],
                    describe,
                ),
            )
            try:
                with _without_collection():
                    process.start()
            except OSError as error:
                self.close()
                raise DataError(
                    f"process {number + 1} of {num_workers} that read training images cannot be started: "
                    f"{error.strerror}; lower {setter('num_workers')}"
                ) from None
            theirs.close()
            poll = select.poll()
            for source in (ours, process.sentinel):
                poll.register(source, select.POLLIN)
            self._workers.append(_Worker(process, ours, poll))

    @property
    def pids(self) -> list[int]:
        """The ids of the processes; empty after `close`."""
        return [worker.process.pid for worker in self._workers]

    def run(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, _Batch]]:
        """Yield (reply, batch [N, ...] uint8) of each task, while workers run the next tasks.

        A batch keeps its content for as long as anything refers to it.

        Raises:
            DataError: a worker raised it, or a worker died or hangs; the message names the record.
            StorageError: a worker raised it.
        """
        self._runs += 1
        mine = self._runs
        while self._outstanding:  # from a run that was left before its end
            worker, slot = self._outstanding.popleft()
            self._receive(worker)
            self._free.append(slot)
        tasks, sent = iter(tasks), 0
        while True:
            if mine != self._runs:
                raise DataError("an epoch was begun before this one had ended; only the last one begun can go on")
            while len(self._outstanding) < _AHEAD * len(self._workers):
                task = next(tasks, None)
                if task is None:
                    break
                worker, slot = sent % len(self._workers), self._free.pop()
                self._send(worker, (slot, task))
                self._outstanding.append((worker, slot))
                sent += 1
            if not self._outstanding:
                return
            worker, slot = self._outstanding.popleft()
            yield self._receive(worker), self._batch(slot)

    def close(self) -> None:
        """End the workers at once."""
        _end(self._workers)
        self._outstanding.clear()

    def _at(self, slot: int) -> _Batch:
        return np.frombuffer(self._shared, np.uint8, self._size, slot * self._size).reshape(self._shape)

    def _batch(self, slot: int) -> _Batch:
        """The batch in a slot, which becomes free when nothing refers to the batch; a copy where too few are free."""
        batch, free = self._at(slot), self._free
        if len(free) + len(self._outstanding) < _AHEAD * len(self._workers):
            free.append(slot)
            return np.array(batch)
        # A slice of the batch, and a slice of that, refer to the array below them, `batch.base`, and not to `batch`. So
        # `base` is alive exactly as long as anything refers to the memory of the slot.
        self._in_use[slot] = weakref.ref(batch.base, lambda _: free.append(slot))
        return batch

    def _send(self, worker: int, message: Any) -> None:
        try:
            _write(self._workers[worker].pipe, message)
        except OSError:
            self._fail(worker)

    def _receive(self, number: int) -> Any:
        """The reply of a worker to its oldest task."""
        _, pipe, poll = self._workers[number]
        waited, held = 0.0, self._held[number].tolist()
        while True:
            begin = time.monotonic()
            ready = [source for source, _ in poll.poll(1000 * _LOOK)]
            if pipe.fileno() in ready:
                try:
                    reply, error = pickle.loads(pipe.recv_bytes())
                except (EOFError, OSError):
                    self._fail(number)
                if error is not None:
                    self.close()
                    raise error if isinstance(error, StorageError) else DataError(error)
                return reply
            if ready:
                self._fail(number)
            # What lasted longer than it was to last was a pause of this process, and of its workers, too.
            waited += min(time.monotonic() - begin, 2 * _LOOK)
            if held != (held := self._held[number].tolist()):
                waited = 0.0
            if self._timeout and waited > self._timeout:
                self._fail(number, waited)

    def _fail(self, number: int, seconds: float | None = None) -> NoReturn:
        """Raise the error for a worker that died, or that has hung for so many seconds."""
        process, held = self._workers[number].process, int(self._held[number, 0])
        which = "no record" if held < 0 else self._describe(held)
        if seconds is not None:
            pid = process.pid
            self.close()
            raise DataError(
                f"a process that reads training images hangs: process {pid} has held {which} for {seconds:.0f} s; "
                f"{'replace or remove that image, ' if held >= 0 else 'find out whether it was stopped, '}"
                f"check the disk, or allow more time with {setter('worker_timeout')}"
            )
        process.join(10)
        code = process.exitcode
        how = f"exit status {code}"
        if code is not None and code < 0:
            how = f"killed by {signal.Signals(-code).name}" + (", out of memory?" if code == -signal.SIGKILL else "")
        self.close()
        raise DataError(
            f"a process that reads training images died ({how}) while it held {which}; look at that image, "
            f"lower {setter('num_workers')} if memory ran out, or set it to 0 to see the fault where it happens"
        )


def _end(workers: list[_Worker]) -> None:
    """End workers at once, and empty the list."""
    for worker in workers:
        worker.process.kill()
        worker.process.join(10)  # a process that waits for a dead network disk cannot be killed
        worker.pipe.close()
    workers.clear()


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Within it, nothing is collected, so that a process forked in it collects nothing before it begins."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _leave_parents_objects() -> None:
    """In a forked process: never free what the parent had, such as tensors on a GPU, and keep Paddle off the GPU."""
    gc.freeze()
    gc.enable()
    paddle = sys.modules.get("paddle")
    if paddle is not None:
        paddle.set_device("cpu")


def _serve(
    work: Work,
    pipe: connection.Connection,
    inherited: list[connection.Connection],
    slots: list[_Batch],
    held: npt.NDArray[np.float64],
    describe: Callable[[int], str],
) -> None:
    _leave_parents_objects()
    # Terminals and schedulers signal all processes of a group. The parent decides what follows, and needs batches until
    # then; a worker ends when its pipe does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # If the parent's ends stayed open here, reading would never end when the parent does.
    for end in inherited:
        end.close()
    cv2.setNumThreads(0)

    note: Any = held.data  # a memoryview, which takes a fifth of the time of an assignment through NumPy

    def hold(index: int) -> None:
        note[0], note[1] = index, time.monotonic()

    while True:
        try:
            slot, task = pickle.loads(pipe.recv_bytes())
            reply: tuple[Any, str | StorageError | None]
            try:
                reply = work(task, slots[slot], hold), None
            except DataError as error:
                reply = None, str(error)
            except StorageError as error:
                reply = None, error
            except Exception:  # a user's own data set may raise any
                where = describe(int(held[0])) if held[0] >= 0 else "before the first record"
                reply = None, f"{where}: reading it failed:\n{traceback.format_exc()}"
            held[0] = -1
            _write(pipe, reply)
        except (EOFError, OSError):
            return


def _write(pipe: connection.Connection, message: Any) -> None:
    # Connection.send takes four times as long: its pickler can also send files and locks.
    pipe.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
