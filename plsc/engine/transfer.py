"""Copies between the host and the device for which neither waits.

A GPU works through a queue that the host fills. Reading a number from it the usual way (`item`, `numpy`) waits until
the queue is empty, and so does a copy from ordinary memory to it; then the device has nothing to do until the host has
filled the queue again. Here a number is copied into pinned memory when the device comes to it, and read some steps
later; a batch is copied from pinned memory by a stream of its own, while the device computes.

What runs on a GPU was never run on one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import paddle

from plsc.data.loader import Batch
from plsc.distributed.topology import Topology

# How many steps later the verdict on a step is read, by the kind of device. It is the number of steps by which the host
# may be ahead of the device, and by which a run goes on after a signal or a step that is not sound. On a CPU nothing is
# gained: there the host is the device.
LAGS = {"cpu": 0, "gpu": 4}

# Seconds between two looks at an event.
_LOOK = 1e-4

# Returns numbers that were on the device.
Read = Callable[[], list[float]]


class Transfers(Protocol):
    """Copies between the host and one device.

    Attributes:
        lag: steps after which the verdict on a step is read; the same on all ranks.
    """

    lag: int

    def begin(self, batch: Batch) -> None:
        """Begin to copy a batch to the device. `take` gets it."""
        ...

    def take(self, batch: Batch) -> tuple[paddle.Tensor, paddle.Tensor]:
        """(images, labels) of a batch on the device. They keep their content until `lag` + 1 more were begun."""
        ...

    def to_host(self, numbers: paddle.Tensor) -> Read:
        """Begin to copy a tensor [n], which nothing writes to afterwards, to the host; what is returned reads it."""
        ...


def transfers_of(topology: Topology) -> Transfers:
    """The copies between the host and the device of a rank."""
    return GPUTransfers(LAGS["gpu"]) if topology.on_gpu else CPUTransfers(LAGS["cpu"])


class CPUTransfers:
    """Tensors of the host: `Transfers` without copies that run beside anything else.

    Args:
        lag: as in `Transfers`.
    """

    def __init__(self, lag: int = 0) -> None:
        self.lag = lag
        self._begun: tuple[Batch, tuple[paddle.Tensor, paddle.Tensor]] | None = None

    def begin(self, batch: Batch) -> None:
        self._begun = batch, self._copy(batch)

    def take(self, batch: Batch) -> tuple[paddle.Tensor, paddle.Tensor]:
        begun, self._begun = self._begun, None
        return begun[1] if begun is not None and begun[0] is batch else self._copy(batch)

    def to_host(self, numbers: paddle.Tensor) -> Read:
        read: Read = numbers.tolist
        return read

    def _copy(self, batch: Batch) -> tuple[paddle.Tensor, paddle.Tensor]:
        return paddle.to_tensor(batch.images), paddle.to_tensor(batch.labels)


class GPUTransfers:
    """Copies from and to pinned memory: `Transfers` for a GPU.

    Batches lie in `lag` + 2 slots in turn, whose memory stays. New memory for each batch would be wrong: Paddle gives a
    tensor memory of the stream that computes whatever the current stream is (`GPUContext::SetCUDAStream` leaves the
    allocator), and a kernel in the queue may still use what the host has freed. Nor may a pinned tensor be freed
    before its copy is done.

    Args:
        lag: as in `Transfers`.
    """

    def __init__(self, lag: int) -> None:
        self.lag = lag
        self._stream = paddle.device.Stream()
        self._slots = [_Slot() for _ in range(lag + 2)]
        self._turn = 0
        self._begun: tuple[Batch, _Slot] | None = None
        self._in_use: _Slot | None = None

    def begin(self, batch: Batch) -> None:
        self._begun = batch, self._copy(batch)

    def _copy(self, batch: Batch) -> _Slot:
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % len(self._slots)
        _wait(slot.copied)  # not long: `lag` + 2 batches ago
        slot.pinned = [paddle.to_tensor(part, place=paddle.CUDAPinnedPlace()) for part in (batch.images, batch.labels)]
        slot.fit()
        with paddle.device.stream_guard(self._stream):
            self._stream.wait_event(slot.used)
            for source, target in zip(slot.pinned, slot.tensors):
                target.copy_(source, False)
        slot.copied.record(self._stream)
        return slot

    def take(self, batch: Batch) -> tuple[paddle.Tensor, paddle.Tensor]:
        begun, self._begun = self._begun, None
        slot = begun[1] if begun is not None and begun[0] is batch else self._copy(batch)
        if self._in_use is not None:
            self._in_use.used.record()  # all that uses it is in the queue
        self._in_use = slot
        paddle.device.current_stream().wait_event(slot.copied)
        return slot.tensors[0], slot.tensors[1]

    def to_host(self, numbers: paddle.Tensor) -> Read:
        pinned = numbers._copy_to(paddle.CUDAPinnedPlace(), False)
        copied = paddle.device.Event()
        copied.record()

        def read() -> list[float]:
            _wait(copied)
            numbers: list[float] = pinned.tolist()
            return numbers

        return read


def _wait(event: Any) -> None:
    """Wait for an event while other threads run, as the ranks' watch and the writing of a checkpoint.

    The binding of `Event.synchronize` (`cuda_streams_py.cc`) keeps Python's lock for as long as it waits.
    """
    while not event.query():
        time.sleep(_LOOK)


class _Slot:
    """Memory for one batch, on both sides.

    Attributes:
        pinned: the batch in pinned memory.
        tensors: the batch on the device.
        copied: the device has the batch.
        used: nothing in the queue uses `tensors` any more.
    """

    def __init__(self) -> None:
        self.pinned: list[paddle.Tensor] = []
        self.tensors: list[paddle.Tensor] = []
        self.copied, self.used = paddle.device.Event(), paddle.device.Event()

    def fit(self) -> None:
        """Have memory on the device for what is in `pinned`."""
        if [(tensor.shape, tensor.dtype) for tensor in self.tensors] != [
            (source.shape, source.dtype) for source in self.pinned
        ]:
            self.tensors = [paddle.empty(source.shape, source.dtype) for source in self.pinned]
            self.used.record()  # a kernel in the queue may still use this memory


class Feed:
    """The batches of an epoch; the next one is read, and its copy begun, while the device computes.

    Args:
        batches: of the epoch.
        transfers: to the device.
    """

    def __init__(self, batches: Iterator[Batch], transfers: Transfers) -> None:
        self._batches, self._transfers = batches, transfers
        self._fetched: Batch | Exception | None = None
        self._is_fetched = False

    def fetch(self) -> None:
        """Read the next batch, and begin to copy it. What reading it raises is raised when it is asked for."""
        if self._is_fetched:
            return
        try:
            self._fetched = next(self._batches, None)
        except Exception as error:  # whatever it is, it belongs to the next step
            self._fetched = error
        self._is_fetched = True
        if self._fetched is not None and not isinstance(self._fetched, Exception):
            self._transfers.begin(self._fetched)

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Batch:
        if not self._is_fetched:
            return next(self._batches)
        fetched, self._fetched, self._is_fetched = self._fetched, None, False
        if fetched is None:
            raise StopIteration
        if isinstance(fetched, Exception):
            raise fetched
        return fetched
