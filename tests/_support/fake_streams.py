"""Streams, events and pinned memory of a GPU, played on the CPU: each stream runs only when a test, or a wait, says so.

A stream is a queue of functions. `Device.run` runs one as far as the events for which it waits have happened. So a test
chooses the worst order that CUDA allows: a copy as early as it may begin, a computation as late as it may.
"""

from __future__ import annotations

import contextlib
import weakref

import paddle


class Event:
    def __init__(self, device):
        self._device, self.recorded, self.happened = device, 0, 0
        self._looks = 0

    def record(self, stream=None):
        self.recorded += 1
        number = self.recorded
        (stream or self._device.current).queue.append(lambda: (self._happen(number), True)[1])

    def _happen(self, number):
        self.happened = max(self.happened, number)

    def query(self):
        """False at the first look at what has not happened; at the second one it has."""
        self._looks = self._looks + 1 if self.happened < self.recorded else 0
        if self._looks > 1:
            self.synchronize()
        return self.happened >= self.recorded

    def synchronize(self):
        """What is waited for happens now, and no more than that takes."""
        number = self.recorded
        while self.happened < number:
            before = self._device.left()
            for stream in self._device.streams:
                while self.happened < number and stream.step():
                    pass
            assert self._device.left() < before, "the host waits for what can never happen"


class Stream:
    def __init__(self):
        self.queue = []

    def wait_event(self, event):
        number = event.recorded  # what is recorded later is not waited for
        self.queue.append(lambda: event.happened >= number)

    def step(self):
        """Run the first function; False where there is none, or it waits."""
        if not self.queue or not self.queue[0]():
            return False
        self.queue.pop(0)
        return True


class Device:
    """A GPU with a stream that computes, and the streams that are made later."""

    def __init__(self):
        self.compute = Stream()
        self.current, self.streams = self.compute, [self.compute]

    def install(self, monkeypatch):
        """Put this in the place of Paddle's functions for CUDA."""
        for name, fake in {
            "Event": lambda: Event(self),
            "Stream": self._stream,
            "stream_guard": self._guard,
            "current_stream": lambda: self.current,
        }.items():
            monkeypatch.setattr(paddle.device, name, fake)
        monkeypatch.setattr(paddle, "CUDAPinnedPlace", paddle.CPUPlace)
        copy = paddle.Tensor.copy_
        monkeypatch.setattr(paddle.Tensor, "copy_", lambda target, source, blocking: self._copy(copy, target, source))

        def copy_to(source, place, blocking):
            assert not blocking
            target = paddle.full(source.shape, float("nan"))
            self.current.queue.append(lambda: (copy(target, source, True), True)[1])
            return target

        monkeypatch.setattr(paddle.Tensor, "_copy_to", copy_to)
        monkeypatch.setattr(paddle, "empty", self._empty)
        return self

    def run(self, stream):
        """Run a stream as far as it can."""
        while stream.step():
            pass

    def finish(self):
        """Run everything."""
        while self.left():
            for stream in self.streams:
                self.run(stream)

    def left(self):
        return sum(len(stream.queue) for stream in self.streams)

    def do(self, function):
        """Put a computation into the queue."""
        self.compute.queue.append(lambda: (function(), True)[1])

    def _stream(self):
        self.streams.append(Stream())
        return self.streams[-1]

    @contextlib.contextmanager
    def _guard(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def _empty(self, shape, dtype):
        """New memory, to which a kernel in the queue of the computing stream still writes."""
        tensor = paddle.zeros(shape, dtype)
        self.do(lambda: tensor.fill_(77))
        return tensor

    def _copy(self, copy, target, source):
        pinned = weakref.ref(source)

        def run():
            assert pinned() is not None, "pinned memory was freed before it was copied"
            copy(target, pinned(), True)
            return True

        self.current.queue.append(run)
