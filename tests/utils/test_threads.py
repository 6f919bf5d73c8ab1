"""The bounded thread map."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from plsc.utils.threads import thread_map


def test_results_come_in_the_order_of_the_items():
    def work(item):
        time.sleep(0.002 * (item % 3))
        return 2 * item

    assert list(thread_map(work, range(50), threads=4)) == list(range(0, 100, 2))
    assert list(thread_map(work, [], threads=4)) == []


def test_an_endless_iterator_is_read_no_further_than_the_bound():
    read = []
    items = (read.append(item) or item for item in itertools.count())
    results = thread_map(abs, items, threads=2, ahead=3)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert read == list(range(8))
    results.close()


def test_an_exception_comes_in_its_turn_and_what_was_not_begun_is_dropped():
    begun, release = [], threading.Event()

    def work(item):
        begun.append(item)
        if item == 1:
            raise ValueError("one")
        if item > 1:
            release.wait(10)
        return item

    results = thread_map(work, range(100), threads=1, ahead=9)
    assert next(results) == 0
    threading.Timer(0.2, release.set).start()
    with pytest.raises(ValueError, match="one"):
        next(results)
    assert len(begun) <= 3
