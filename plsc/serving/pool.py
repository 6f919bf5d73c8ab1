"""Predictor processes behind one queue, with dynamic batches: a free process takes as many waiting images as it may."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.errors import ServingError
from plsc.serving.http_error import HTTPError
from plsc.serving.settings import ServeSettings
from plsc.serving.worker import DONE, FAILED, REPLY, REQUEST
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

# As `python -m plsc.serving.worker`, but without the current folder on the path, where there may be a random.py.
_START = (
    f"import sys; sys.path[0:1] = []; sys.path.append({str(Path(__file__).parents[2])!r}); "
    f"from plsc.serving.worker import main; main()"
)
_START_TIMEOUT = 600.0  # seconds for a predictor process to load its model
_MAX_PAUSE = 30.0  # seconds between two attempts to start a process
_SHUTTING_DOWN = "the server is shutting down"
_ENDED_WHILE_IDLE = "a predictor process has ended while idle"


class WorkerDied(ServingError):
    """A predictor process ended, or did not answer in time."""


@dataclass
class _Job:
    """Rows of one request that go through the model together.

    Attributes:
        kind: IMAGES, FEATURES or TENSORS of worker.py.
        rows: [n, ...], at most `max_batch`.
        done: the outputs [n, D], or the error.
        arrived: time of the event loop.
        attempts: processes that died while they computed it.
    """

    kind: int
    rows: NDArray[Any]
    done: asyncio.Future[NDArray[Any]]
    arrived: float
    attempts: int = 0


class _Worker:
    """One predictor process.

    Args:
        number: of the process, from 0. One that replaces it has the same number, and so the same device.

    Attributes:
        is_busy: whether a batch is being run.
    """

    def __init__(self, settings: ServeSettings, fingerprint: str, *, number: int) -> None:
        self._settings, self._fingerprint, self._number, self.is_busy = settings, fingerprint, number, False
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> tuple[str, str]:
        """Start the process and wait until it has loaded the model; returns the names of the model's input and output.

        Raises:
            ServingError: the model cannot be loaded; the message is the process's.
        """
        threads = str(self._settings.threads_per_worker)
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                _START,
                str(self._settings.model),
                threads,
                self._fingerprint,
                str(self._number),
                self._settings.devices or "",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": threads},
            )
        except OSError as error:
            raise ServingError(f"{sys.executable}: cannot be started: {error.strerror or error}") from None
        try:
            status, message = await asyncio.wait_for(self._read_reply(), _START_TIMEOUT)
        except asyncio.TimeoutError:
            self.kill()
            raise ServingError(
                f"predictor process {self._process.pid} has not loaded {self._settings.model} within "
                f"{_START_TIMEOUT:g} s"
            ) from None
        if status == FAILED:
            raise ServingError(bytes(message).decode())
        input_name, output_name = json.loads(bytes(message))
        return input_name, output_name

    async def run(self, kind: int, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Run one forward pass.

        Raises:
            WorkerDied: the process has ended or hangs; start another.
            ServingError: Paddle refuses the batch.
        """
        process, requests, _ = self._running()
        self.is_busy = True
        try:
            requests.write(REQUEST.pack(kind, *rows.shape))
            requests.write(np.ascontiguousarray(rows).data.cast("B"))
            await requests.drain()
            # All requests of a batch have timed out by then; the process hangs and is replaced.
            status, found = await asyncio.wait_for(self._read_reply(), 2 * self._settings.timeout)
        except (OSError, asyncio.TimeoutError) as error:
            raise WorkerDied(f"predictor process {process.pid}: {error!r}") from None
        finally:
            self.is_busy = False
        if status == FAILED:
            raise ServingError(f"the model cannot run this batch: {bytes(found).decode()}")
        outputs: NDArray[np.float32] = found
        return outputs

    @property
    def has_ended(self) -> bool:
        """Whether the process has closed its output."""
        return self._running()[2].at_eof()

    async def wait(self) -> None:
        """Wait until the process ends."""
        await self._running()[0].wait()

    async def stop(self) -> None:
        """End the process: by closing its input, and after five seconds by force."""
        if self._process is None or self._process.returncode is not None:
            return
        self._running()[1].close()
        try:
            await asyncio.wait_for(self._process.wait(), 5)
        except asyncio.TimeoutError:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """End the process by force, if it runs."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _read_reply(self) -> tuple[int, Any]:
        """The status of a reply, and its array or its message in bytes."""
        process, _, replies = self._running()
        try:
            status, size, columns = REPLY.unpack(await replies.readexactly(REPLY.size))
            data = await replies.readexactly(4 * size * columns if status == DONE else size)
        except asyncio.IncompleteReadError:
            raise WorkerDied(f"predictor process {process.pid} ended unexpectedly; its log says why") from None
        return status, np.frombuffer(data, "<f4").reshape(size, columns) if status == DONE else data

    def _running(self) -> tuple[asyncio.subprocess.Process, asyncio.StreamWriter, asyncio.StreamReader]:
        """The started process, its standard input and its standard output."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None, "start() comes first"
        return process, process.stdin, process.stdout


class PredictorPool:
    """Several predictor processes behind one bounded queue.

    Args:
        settings: number of processes, and limits.
        fingerprint: of the model's card; a process that finds another model does not start.
        on_batch: called with (rows, seconds) after each forward pass.
        on_restart: called when a process is replaced.

    Attributes:
        queue_rows: images that wait for a process.
        ready: number of processes that have loaded the model.
        names: names of the model's input and output.
    """

    def __init__(
        self,
        settings: ServeSettings,
        fingerprint: str,
        *,
        on_batch: Callable[[int, float], None] = lambda rows, seconds: None,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings, self._fingerprint = settings, fingerprint
        self._on_batch, self._on_restart = on_batch, on_restart
        self._jobs: collections.deque[_Job] = collections.deque()
        self._changed, self._gathering = asyncio.Event(), asyncio.Lock()
        self._last_batch, self._rows_per_second = 1, 1.0
        self._tasks: list[asyncio.Task[None]] = []
        self._workers: list[_Worker] = []
        self.queue_rows, self.ready, self.names = 0, 0, ("", "")

    async def start(self) -> None:
        """Start all processes; returns when each has loaded the model.

        Raises:
            ServingError: the model cannot be loaded.
        """
        self._workers = [
            _Worker(self._settings, self._fingerprint, number=number) for number in range(self._settings.workers)
        ]
        try:
            found = await asyncio.gather(*(worker.start() for worker in self._workers))
        except BaseException:
            await self.stop()
            raise
        self.names, self.ready = found[0], len(found)
        self._tasks = [asyncio.create_task(self._keep_serving(worker)) for worker in self._workers]

    async def stop(self) -> None:
        """End the processes. Jobs that still wait are answered with 503."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        _fail(self._jobs, HTTPError(503, _SHUTTING_DOWN, headers={"Retry-After": "1"}))
        self._jobs.clear()
        await asyncio.gather(*(worker.stop() for worker in self._workers))
        self.ready = 0

    async def run(self, kind: int, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Run rows [N, ...] through the model: [N, D]. N may exceed `max_batch`.

        Args:
            kind: IMAGES for pixels [N, 3, H, W] uint8 to embeddings of unit length, FEATURES for these to outputs of
                any length, TENSORS for the model's own input.
            rows: the batch.

        Raises:
            HTTPError: 503 the queue is full, or the predictor failed; 504 the answer took longer than the timeout.
        """
        self._check_queue(len(rows))
        loop, largest = asyncio.get_running_loop(), self._settings.max_batch
        jobs = [
            _Job(kind, rows[start : start + largest], loop.create_future(), loop.time())
            for start in range(0, len(rows), largest)
        ]
        self._jobs.extend(jobs)
        self.queue_rows += len(rows)
        self._changed.set()
        try:
            found = await asyncio.wait_for(asyncio.gather(*(job.done for job in jobs)), self._settings.timeout)
        except asyncio.TimeoutError:
            raise HTTPError(504, f"no answer within {self._settings.timeout:g} s; the server is overloaded") from None
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _check_queue(self, count: int) -> None:
        # A request that finds the queue empty is accepted, however many images it has.
        if not self.queue_rows or self.queue_rows + count <= self._settings.max_queue:
            return
        pause = max(1, math.ceil(self.queue_rows / self._rows_per_second))
        raise HTTPError(
            503,
            f"{counted(self.queue_rows, 'image')} in the queue already, expected {self._settings.max_queue} at most; "
            f"try again in {pause} s",
            headers={"Retry-After": str(pause)},
        )

    async def _keep_serving(self, worker: _Worker) -> None:
        """Have one process serve until cancelled; replace it where it ends, also while it is idle."""
        while True:
            serving, end = asyncio.create_task(self._serve(worker)), asyncio.create_task(worker.wait())
            try:
                await asyncio.wait({serving, end}, return_when=asyncio.FIRST_COMPLETED)
                while not serving.done():
                    if not worker.is_busy:  # else the batch fails in a moment
                        serving.cancel()
                    await asyncio.wait({serving}, timeout=0.1)
            finally:
                serving.cancel()
                end.cancel()
            if serving.cancelled():
                reason = _ENDED_WHILE_IDLE
            elif (fault := serving.exception()) is not None:
                log.error("a predictor process is replaced after a fault of the server", exc_info=fault)
                reason = "a predictor process was given up"
            else:
                reason = serving.result()
            await self._replace(worker, reason)

    async def _serve(self, worker: _Worker) -> str:
        """Run batch after batch in one process until it ends or hangs; returns which, for the log. Cancelled while the
        process is idle, it loses no job.
        """
        while True:
            batch = await self._next_batch()
            if not batch:
                continue
            if worker.has_ended:
                self._put_back(batch)
                return _ENDED_WHILE_IDLE
            try:
                await self._run_batch(worker, batch)
            except WorkerDied as error:
                self._count_attempt(batch)
                self._put_back(batch)
                return str(error)
            except ServingError as error:
                _fail(batch, error)
            except asyncio.CancelledError:
                _fail(batch, HTTPError(503, _SHUTTING_DOWN, headers={"Retry-After": "1"}))
                raise
            except Exception as error:
                _fail(batch, error)
                raise

    async def _run_batch(self, worker: _Worker, batch: list[_Job]) -> None:
        rows = batch[0].rows if len(batch) == 1 else np.concatenate([job.rows for job in batch])
        begin = time.perf_counter()
        found = await worker.run(batch[0].kind, rows)
        seconds = time.perf_counter() - begin
        self._rows_per_second += 0.1 * (len(rows) / seconds - self._rows_per_second)
        self._on_batch(len(rows), seconds)
        start = 0
        for job in batch:
            if not job.done.done():
                job.done.set_result(found[start : start + len(job.rows)])
            start += len(job.rows)

    def _count_attempt(self, batch: list[_Job]) -> None:
        for job in batch:
            job.attempts += 1
            # If all processes died at one time, a job may meet each of them once. After that the job itself is suspect.
            if job.attempts > self._settings.workers:
                reason = f"the predictor failed {counted(job.attempts, 'time')}; try again"
                _fail([job], HTTPError(503, reason, headers={"Retry-After": "1"}))

    def _put_back(self, batch: list[_Job]) -> None:
        self._jobs.extendleft(reversed(batch))
        self.queue_rows += sum(len(job.rows) for job in batch)
        self._changed.set()

    async def _replace(self, worker: _Worker, reason: str) -> None:
        log.error("%s; starting another", reason)
        self.ready -= 1
        self._on_restart()
        pause = 0.5
        while True:
            worker.kill()
            try:
                await worker.start()
                break
            except Exception as error:
                log.error("a predictor process cannot start: %s; next attempt in %g s", error, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE)
        self.ready += 1

    async def _next_batch(self) -> list[_Job]:
        """Wait for jobs, and take those that run together: of one kind and shape, `max_batch` rows at most.

        While fewer images wait than the previous batch had, the clients of that batch are probably about to send their
        next requests, so that the batch waits for them, `max_wait_ms` at most. A lone client's batches have one image
        each and never wait.
        """
        loop = asyncio.get_running_loop()
        async with self._gathering:
            while not self._jobs:
                self._changed.clear()
                await self._changed.wait()
            is_time = False

            def end_wait() -> None:
                nonlocal is_time
                is_time = True
                self._changed.set()

            timer = loop.call_at(self._jobs[0].arrived + self._settings.max_wait_ms / 1000, end_wait)
            try:
                # A flag and not the clock, because a timer may fire a little early.
                while self.queue_rows < min(self._last_batch, self._settings.max_batch) and not is_time:
                    self._changed.clear()
                    await self._changed.wait()
            finally:
                timer.cancel()
            return self._take()

    def _take(self) -> list[_Job]:
        batch: list[_Job] = []
        rows = 0
        while self._jobs:
            job = self._jobs[0]
            if not job.done.done():
                fits = not batch or (
                    job.kind == batch[0].kind
                    and job.rows.shape[1:] == batch[0].rows.shape[1:]
                    and rows + len(job.rows) <= self._settings.max_batch
                )
                if not fits:
                    break
                batch.append(job)
                rows += len(job.rows)
            self._jobs.popleft()
            self.queue_rows -= len(job.rows)
        self._last_batch = max(1, rows)
        return batch


def _fail(jobs: Iterable[_Job], error: Exception) -> None:
    for job in jobs:
        if not job.done.done():
            job.done.set_exception(error)
