"""Predictor processes fed with dynamic batches: whatever waits when one is free goes in together."""

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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plsc.errors import ServingError
from plsc.serving.http_error import Refused
from plsc.serving.settings import ServeSettings
from plsc.serving.worker import DONE, FAILED, REPLY, REQUEST

log = logging.getLogger("plsc")

# As `python -m plsc.serving.worker`, but nothing is imported from the current folder, where there may be a random.py.
_START = (
    f"import sys; sys.path[0:1] = []; sys.path.append({str(Path(__file__).parents[2])!r}); "
    f"from plsc.serving.worker import main; main()"
)
_LONGEST_START = 600.0  # seconds for a predictor to load its model
_LONGEST_PAUSE = 30.0  # seconds between attempts to start a worker that keeps failing


class WorkerDied(ServingError):
    """A predictor process ended, or did not answer in time."""


@dataclass
class _Job:
    kind: int
    rows: np.ndarray
    done: asyncio.Future
    arrived: float
    attempts: int = 0


class _Worker:
    """One predictor process."""

    def __init__(self, settings: ServeSettings, fingerprint: str) -> None:
        self._settings, self._fingerprint = settings, fingerprint
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> tuple[str, str]:
        """Start it and wait until it has loaded the model; returns the names of the model's input and output.

        Raises:
            ServingError: the model cannot be loaded; the message is the worker's.
        """
        threads = str(self._settings.threads_per_worker)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _START,
            str(self._settings.model),
            threads,
            self._fingerprint,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )
        try:
            status, message = await asyncio.wait_for(self._read_reply(), _LONGEST_START)
        except asyncio.TimeoutError:
            self.kill()
            raise ServingError(
                f"predictor process {self._process.pid} has not loaded {self._settings.model} within "
                f"{_LONGEST_START:g} s"
            ) from None
        if status == FAILED:
            raise ServingError(bytes(message).decode())
        return tuple(json.loads(bytes(message)))

    async def run(self, kind: int, rows: np.ndarray) -> np.ndarray:
        """One forward pass.

        Raises:
            WorkerDied: the process is no more; start another.
            ServingError: Paddle refuses the batch.
        """
        try:
            self._process.stdin.write(REQUEST.pack(kind, *rows.shape))
            self._process.stdin.write(memoryview(np.ascontiguousarray(rows)).cast("B"))
            await self._process.stdin.drain()
            # A pass that takes this long is no pass any more; the worker is replaced.
            status, found = await asyncio.wait_for(self._read_reply(), 2 * self._settings.timeout)
        except (OSError, asyncio.TimeoutError) as error:
            raise WorkerDied(f"predictor process {self._process.pid}: {error!r}") from None
        if status == FAILED:
            raise ServingError(f"the model cannot run this batch: {bytes(found).decode()}")
        return found

    @property
    def is_dead(self) -> bool:
        return self._process.stdout.at_eof()

    async def _read_reply(self):
        try:
            status, size, columns = REPLY.unpack(await self._process.stdout.readexactly(REPLY.size))
            data = await self._process.stdout.readexactly(4 * size * columns if status == DONE else size)
        except asyncio.IncompleteReadError:
            raise WorkerDied(f"predictor process {self._process.pid} ended unasked; its log says why") from None
        return status, np.frombuffer(data, "<f4").reshape(size, columns) if status == DONE else data

    async def stop(self) -> None:
        """End it: by closing its input, and after five seconds by force."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 5)
        except asyncio.TimeoutError:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


class PredictorPool:
    """Several predictor processes behind one bounded queue.

    Args:
        settings: how many, and the limits.
        fingerprint: of the model's description; a process that finds another one does not start.
        on_batch: called with (rows, seconds) after each forward pass.
        on_restart: called when a process had to be replaced.

    Attributes:
        waiting: rows in the queue.
        ready: predictor processes that have loaded the model.
        names: what the model calls its input and output.
    """

    def __init__(
        self,
        settings: ServeSettings,
        fingerprint: str,
        on_batch: Callable[[int, float], None] = lambda rows, seconds: None,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings, self._fingerprint = settings, fingerprint
        self._on_batch, self._on_restart = on_batch, on_restart
        self._jobs: collections.deque[_Job] = collections.deque()
        self._arrived, self._gathering = asyncio.Event(), asyncio.Lock()
        self._last_batch, self._rows_per_second = 1, 1.0
        self._tasks: list[asyncio.Task] = []
        self._workers: list[_Worker] = []
        self.waiting, self.ready, self.names = 0, 0, ("", "")

    async def start(self) -> None:
        """Start all processes; returns when every one has loaded the model.

        Raises:
            ServingError: the model cannot be loaded.
        """
        self._workers = [_Worker(self._settings, self._fingerprint) for _ in range(self._settings.workers)]
        try:
            found = await asyncio.gather(*(worker.start() for worker in self._workers))
        except BaseException:
            await self.stop()
            raise
        self.names, self.ready = found[0], len(found)
        self._tasks = [asyncio.create_task(self._serve(worker)) for worker in self._workers]

    async def stop(self) -> None:
        """End the processes. Jobs that still wait are refused."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._jobs:
            _fail(self._jobs.popleft(), Refused(503, "the server is shutting down", {"Retry-After": "1"}))
        await asyncio.gather(*(worker.stop() for worker in self._workers))
        self.ready = 0

    async def run(self, kind: int, rows: np.ndarray) -> np.ndarray:
        """Rows [N, ...] through the model: [N, D]; N may exceed the largest batch.

        Raises:
            Refused: 503 the queue is full, or the predictor failed; 504 the answer took longer than the timeout.
        """
        if self.waiting and self.waiting + len(rows) > self._settings.max_queue:
            pause = max(1, math.ceil(self.waiting / self._rows_per_second))
            raise Refused(
                503,
                f"{self.waiting} images wait already, {self._settings.max_queue} at most may; try again in {pause} s",
                {"Retry-After": str(pause)},
            )
        loop, largest = asyncio.get_running_loop(), self._settings.max_batch
        jobs = [
            _Job(kind, rows[start : start + largest], loop.create_future(), loop.time())
            for start in range(0, len(rows), largest)
        ]
        self._jobs.extend(jobs)
        self.waiting += len(rows)
        self._arrived.set()
        try:
            found = await asyncio.wait_for(asyncio.gather(*(job.done for job in jobs)), self._settings.timeout)
        except asyncio.TimeoutError:
            raise Refused(504, f"no answer within {self._settings.timeout:g} s; the server is overloaded") from None
        return found[0] if len(found) == 1 else np.concatenate(found)

    async def _serve(self, worker: _Worker) -> None:
        """Batch after batch, for ever; a dead process is replaced."""
        while True:
            batch = await self._next_batch()
            if not batch:
                continue
            if worker.is_dead:
                self._put_back(batch)
                await self._replace(worker, "a predictor process has ended while idle")
                continue
            rows = batch[0].rows if len(batch) == 1 else np.concatenate([job.rows for job in batch])
            begin = time.perf_counter()
            try:
                found = await worker.run(batch[0].kind, rows)
            except WorkerDied as error:
                for job in batch:
                    job.attempts += 1
                    # It may meet every process once, where all have died at a time; then it is perhaps the batch that
                    # kills them.
                    if job.attempts > self._settings.workers:
                        _fail(
                            job,
                            Refused(503, f"the predictor failed {job.attempts} times; try again", {"Retry-After": "1"}),
                        )
                self._put_back(batch)
                await self._replace(worker, str(error))
                continue
            except ServingError as error:
                for job in batch:
                    _fail(job, error)
                continue
            except asyncio.CancelledError:
                for job in batch:
                    _fail(job, Refused(503, "the server is shutting down", {"Retry-After": "1"}))
                raise
            seconds = time.perf_counter() - begin
            self._rows_per_second += 0.1 * (len(rows) / seconds - self._rows_per_second)
            self._on_batch(len(rows), seconds)
            start = 0
            for job in batch:
                if not job.done.done():
                    job.done.set_result(found[start : start + len(job.rows)])
                start += len(job.rows)

    def _put_back(self, batch: list[_Job]) -> None:
        self._jobs.extendleft(reversed(batch))
        self.waiting += sum(len(job.rows) for job in batch)
        self._arrived.set()

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
            except ServingError as error:
                log.error("a predictor process cannot start: %s; next attempt in %g s", error, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        self.ready += 1

    async def _next_batch(self) -> list[_Job]:
        """Jobs to run together, of one kind and shape, `max_batch` rows at most.

        While the batch is smaller than the one before it, others that were answered with that one are probably on
        their way again: they are waited for, `max_wait_ms` at most. A lone client's batches are of one: no wait.
        """
        loop = asyncio.get_running_loop()
        async with self._gathering:
            while not self._jobs:
                self._arrived.clear()
                await self._arrived.wait()
            is_time = False

            def ring() -> None:
                nonlocal is_time
                is_time = True
                self._arrived.set()

            timer = loop.call_at(self._jobs[0].arrived + self._settings.max_wait_ms / 1000, ring)
            # Not by the clock: a timer may ring a little early.
            while self.waiting < min(self._last_batch, self._settings.max_batch) and not is_time:
                self._arrived.clear()
                await self._arrived.wait()
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
            self.waiting -= len(job.rows)
        self._last_batch = max(1, rows)
        return batch


def _fail(job: _Job, error: Exception) -> None:
    if not job.done.done():
        job.done.set_exception(error)
