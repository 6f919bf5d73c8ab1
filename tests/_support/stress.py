"""Calls from several threads and processes at once. Every result is compared with that of a lone call.

A test of an object is a function that takes the fixture `stress_seconds`: a second in `make test`, and its share of ten
minutes in `make soak`, where the test is marked `soak`.

    def test_the_gallery_in_threads(gallery, stress_seconds):
        stress_threads(compared(lambda number: gallery.search(PROBES[number]), len(PROBES)), stress_seconds)

An object that is changed meanwhile has a `work` of its own, which raises where something is wrong:

    def work(rng):
        gallery.add([f"ann {rng.integers(9)}"], EMBEDDING)
        assert ...
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import sys
import threading
import time
import traceback

import numpy as np

GRACE = 60  # seconds that a call may take beyond the time given, before it counts as a hang
_SHOWN = 3
# Seconds after which Python lets another thread run. By default it is 500 times as long, and races are rare.
_SWITCH, _USUAL_SWITCH = 1e-5, sys.getswitchinterval()


def compared(call, count, tolerance=1e-5):
    """A `work` that makes `call(number)` for a random number below `count`, and compares it with the lone call's.

    Args:
        call: returns an array, or anything that compares by ==. It is called for every number now.
        count: of numbers.
        tolerance: largest absolute difference of arrays.
    """
    lone = [call(number) for number in range(count)]

    def work(rng):
        number = int(rng.integers(count))
        found, expected = call(number), lone[number]
        if isinstance(expected, np.ndarray):
            assert found.shape == expected.shape, f"call {number}: {found.shape}, expected {expected.shape}"
            difference = float(np.abs(found - expected).max(initial=0))
            assert difference <= tolerance, f"call {number} differs from the lone call by {difference}"
        else:
            assert found == expected, f"call {number}: {found!r}, expected {expected!r}"

    return work


def stress_threads(work, seconds, *, threads=4, seed=0):
    """Call `work(rng)` in every thread again and again; returns the number of calls.

    Args:
        work: raises where something is wrong.
        seconds: how long.
        threads: how many.
        seed: of the generators that `work` is given.

    Raises:
        AssertionError: a call failed or hung; says how many calls did, and shows the first.
    """
    end, counts, failures = time.monotonic() + seconds, [0] * threads, []

    def run(number):
        rng = np.random.default_rng([seed, number])
        while time.monotonic() < end and len(failures) < 1000:
            try:
                work(rng)
            except BaseException:
                failures.append(traceback.format_exc())
            counts[number] += 1

    started = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(threads)]
    sys.setswitchinterval(_SWITCH)
    try:
        for thread in started:
            thread.start()
        for thread in started:
            thread.join(max(0, end + GRACE - time.monotonic()))
    finally:
        sys.setswitchinterval(_USUAL_SWITCH)
    if any(thread.is_alive() for thread in started):
        faulthandler.dump_traceback(sys.stderr)
        raise AssertionError(f"a call did not end within {seconds + GRACE:g} s; standard error shows where it is")
    assert not failures, f"{len(failures)} of {sum(counts)} calls failed: " + "\n".join(failures[:_SHOWN])
    return sum(counts)


def stress_processes(work, seconds, *, processes=2, threads=2, start="fork"):
    """`stress_threads` in several processes at once; returns the number of calls of all.

    Args:
        work: raises where something is wrong. With "spawn" it must be picklable.
        seconds: how long.
        processes: how many.
        threads: in each process.
        start: how multiprocessing starts them.

    Raises:
        AssertionError: a call failed or hung, or a process died.
    """
    context = multiprocessing.get_context(start)
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    started = [
        context.Process(target=_report, args=(sender, work, seconds, threads, seed), daemon=True)
        for seed, (_, sender) in enumerate(pipes)
    ]
    for process in started:
        process.start()
    for _, sender in pipes:
        sender.close()
    total = 0
    try:
        for (receiver, _), process in zip(pipes, started):
            assert receiver.poll(seconds + 2 * GRACE), f"process {process.pid} does not end"
            try:
                found = receiver.recv()
            except EOFError:
                process.join(GRACE)
                raise AssertionError(f"process {process.pid} died with status {process.exitcode}") from None
            assert isinstance(found, int), found
            total += found
    finally:
        for process in started:
            process.join(5)
            if process.is_alive():
                process.kill()
    return total


def _report(sender, work, seconds, threads, seed):
    try:
        sender.send(stress_threads(work, seconds, threads=threads, seed=seed + 1))
    except BaseException:
        sender.send(traceback.format_exc())
