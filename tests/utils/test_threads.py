"""The bounded thread map, and the lock of many readers or one writer."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time

import pytest

from plsc.utils.threads import SharedLock, thread_map


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


# SharedLock


def in_threads(*functions):
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    return threads


def test_readers_hold_a_lock_together_and_a_writer_alone():
    lock, barrier, inside, found = SharedLock(), threading.Barrier(3), [0, 0], []

    def meet():
        with lock.reading():
            barrier.wait(10)  # breaks unless all three are inside

    for thread in in_threads(meet, meet, meet):
        thread.join(10)
    assert not barrier.broken

    def count(hold, number):
        for _ in range(200):
            with hold():
                inside[number] += 1
                found.append(tuple(inside))
                time.sleep(0)
                inside[number] -= 1

    for thread in in_threads(*[lambda: count(lock.reading, 0)] * 3, *[lambda: count(lock.writing, 1)] * 2):
        thread.join(30)
    assert len(found) == 1000 and all(not (writers and (readers or writers > 1)) for readers, writers in found)


@pytest.mark.parametrize("many, one", [("reading", "writing"), ("writing", "reading")])
def test_no_kind_waits_for_ever_for_the_other(many, one):
    lock, stop = SharedLock(), threading.Event()

    def hold():
        while not stop.is_set():
            with getattr(lock, many)():
                time.sleep(0.001)

    threads = in_threads(hold, hold, hold)
    begin = time.monotonic()
    for _ in range(20):
        with getattr(lock, one)():
            pass
    assert time.monotonic() - begin < 10
    stop.set()
    for thread in threads:
        thread.join(10)


def test_an_interrupted_wait_leaves_the_lock_usable():
    lock = SharedLock()

    def interrupt(*_):
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGALRM, interrupt)
    try:
        for hold in (lock.reading, lock.writing):
            entered, leave = threading.Event(), threading.Event()

            def write(entered=entered, leave=leave):
                with lock.writing():
                    entered.set()
                    leave.wait(10)

            (thread,) = in_threads(write)
            entered.wait(10)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt), hold():
                pass
            leave.set()
            thread.join(10)
            for again in (lock.writing, lock.reading):
                with again():
                    pass
    finally:
        signal.signal(signal.SIGALRM, earlier)


def test_a_fork_waits_for_the_writer_and_the_new_process_holds_nothing():
    lock, state, stop, reading = SharedLock(), [0, 0], threading.Event(), threading.Event()

    def write():
        while not stop.is_set():
            with lock.writing():
                state[0] += 1
                time.sleep(0.001)
                state[1] += 1

    def read():
        with lock.reading():
            reading.set()
            time.sleep(0.05)

    try:
        (thread,) = in_threads(write)
        for _ in range(5):
            in_threads(read)
            reading.wait(10)
            child = os.fork()
            if not child:
                signal.alarm(10)
                with lock.writing():
                    os._exit(state[0] != state[1])
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        thread.join(10)


def test_a_fork_comes_before_writers_that_arrive_later():
    lock, order, entered, leave = SharedLock(), [], threading.Event(), threading.Event()

    def write(name):
        with lock.writing():
            order.append(name)
            entered.set()
            leave.wait(10)

    def fork():
        lock._stop_for_fork()  # as os.fork() does first
        order.append("fork")
        lock._go_on_after_fork()

    first, *_ = in_threads(lambda: write("first"))
    entered.wait(10)
    (forking,) = in_threads(fork)
    while not lock._is_forking:
        time.sleep(0.001)
    later = in_threads(*[lambda: write("later")] * 5)
    while lock._writers_waiting < 5:
        time.sleep(0.001)
    leave.set()
    for thread in (first, forking, *later):
        thread.join(10)
    assert order == ["first", "fork"] + ["later"] * 5
