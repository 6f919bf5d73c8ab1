"""Copies between the host and the device: batches that are read ahead, numbers that are read late."""

from __future__ import annotations

import threading

import numpy as np
import paddle
import pytest

from plsc.data.loader import Batch
from plsc.distributed.topology import Topology
from plsc.engine.transfer import LAGS, CPUTransfers, Feed, GPUTransfers, transfers_of
from tests._support.fake_streams import Device, Event


def batch(number, size=3, dtype=np.uint8):
    return Batch(np.full((size, 3, 2, 2), number, dtype), np.full(size, number))


def test_a_verdict_is_late_on_gpus_only(monkeypatch):
    Device().install(monkeypatch)
    assert transfers_of(Topology()).lag == 0
    assert transfers_of(Topology(device="gpu:0")).lag == LAGS["gpu"] > 0


# A GPU


@pytest.fixture
def device(monkeypatch):
    return Device().install(monkeypatch)


@pytest.mark.parametrize("lag", [1, 2, 4])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("early", ["copies", "nothing"])
@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("sizes", [[3] * 20, [3, 3, 3, 3, 3, 2, 3, 1] * 3])
def test_each_step_computes_with_its_own_batch(device, lag, ahead, early, reads, sizes):
    """The host is `lag` + 1 steps ahead, as in training, or all of them; all else runs as late as it may."""
    transfers, seen, done = GPUTransfers(lag), [], []
    batches = [
        batch(number % 200, size, np.float32 if number % 7 == 6 else np.uint8) for number, size in enumerate(sizes)
    ]

    for number, each in enumerate(batches):
        images, labels = transfers.take(each)
        device.do(lambda images=images, labels=labels: seen.append((images.numpy(), labels.numpy())))
        if ahead and number + 1 < len(batches):
            transfers.begin(batches[number + 1])
        if early == "copies":
            device.run(device.streams[1])
        done.append(transfers.to_host(paddle.full([1], float(number))))
        if reads and number >= lag:  # the verdict that is due
            assert done[number - lag]() == [number - lag]
    device.finish()
    assert len(seen) == len(batches)
    for (images, labels), expected in zip(seen, batches):
        np.testing.assert_array_equal(images, expected.images)
        np.testing.assert_array_equal(labels, expected.labels)
        assert images.dtype == expected.images.dtype


def test_images_keep_their_content_until_the_verdict_on_their_step_is_read(device):
    lag = 3
    transfers, held, batches = GPUTransfers(lag), [], [batch(number) for number in range(13)]
    for number in range(12):
        images, _ = transfers.take(batches[number])
        held.append(images)
        transfers.begin(batches[number + 1])
        device.run(device.streams[1])
        device.run(device.compute)
        if number >= lag:
            assert (held[number - lag].numpy() == number - lag).all()


def test_the_memory_of_batches_stays(device):
    transfers, places = GPUTransfers(2), []
    for number in range(12):
        images, _ = transfers.take(batch(number))
        places.append(images.data_ptr())
        device.run(device.streams[1])
        device.run(device.compute)
    assert len(set(places)) == 4


def test_nothing_is_waited_for_but_the_number_that_is_read(device):
    transfers = GPUTransfers(2)
    transfers.take(batch(1))
    first = transfers.to_host(paddle.ones([2]))
    device.do(lambda: pytest.fail("what comes later is not waited for"))
    transfers.take(batch(2))
    assert first() == [1.0, 1.0]


def test_threads_run_while_a_number_is_waited_for(device, monkeypatch):
    """As the ranks' watch, and the writing of a checkpoint: Paddle's own wait would keep Python's lock."""
    read, happened = GPUTransfers(2).to_host(paddle.ones([1])), threading.Event()
    synchronize = Event.synchronize
    monkeypatch.setattr(Event, "synchronize", lambda event: pytest.fail("this wait keeps Python's lock"))
    monkeypatch.setattr(Event, "query", lambda event: happened.is_set() and (synchronize(event), True)[1])
    threading.Timer(0.05, happened.set).start()
    assert read() == [1.0]


# Reading ahead


class Source:
    """Batches; says how many were read."""

    def __init__(self, *items):
        self.read, self._items = 0, items

    def __iter__(self):
        for item in self._items:
            self.read += 1
            if isinstance(item, Exception):
                raise item
            yield item


def test_a_batch_is_read_ahead_once():
    first, second = batch(1), batch(2)
    source, transfers = Source(first, second), CPUTransfers(1)
    feed = Feed(iter(source), transfers)
    assert next(feed) is first and source.read == 1
    feed.fetch()
    feed.fetch()
    assert source.read == 2
    assert next(feed) is second
    images, labels = transfers.take(second)
    assert (images.numpy() == 2).all() and (labels.numpy() == 2).all()
    feed.fetch()
    assert list(feed) == []


def test_an_error_of_reading_ahead_is_raised_where_the_batch_is_asked_for():
    feed = Feed(iter(Source(batch(1), ValueError("broken"))), CPUTransfers(1))
    next(feed)
    feed.fetch()
    with pytest.raises(ValueError, match="broken"):
        next(feed)
    assert next(feed, None) is None


def test_a_batch_that_was_begun_is_not_taken_for_another():
    transfers, first, second = CPUTransfers(1), batch(1), batch(2)
    transfers.begin(first)
    assert (transfers.take(second)[0].numpy() == 2).all()
    assert (transfers.take(first)[0].numpy() == 1).all()
