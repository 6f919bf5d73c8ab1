"""Connections to the ranks' store: what ends a call, and what does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests._support.ranks import ROOT

# A process that waits for a key, with handlers as any script may install them. It prints its own pid first.
WAITS = """
import os, signal, socket, sys, threading, time
from plsc.distributed.store import Store
socket.setdefaulttimeout(0.1)  # of the script's own downloads
signal.signal(signal.SIGTERM, lambda number, frame: print("handled", flush=True))
store = Store("127.0.0.1", int(sys.argv[1]))
def look():
    while True:
        time.sleep(0.1)
        store.end_late_call(float(sys.argv[2]), period=0.1)
threading.Thread(target=look, daemon=True).start()
print("waits", flush=True)
print(store.get("late"), flush=True)
"""

SERVES = """
import socket, sys
from paddle.base import core
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
store = core.TCPStore("127.0.0.1", port, True, 1, 60)
print(port, flush=True)
for line in sys.stdin:
    store.set("plsc/late", line.strip())
"""


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def server():
    process = start(SERVES)
    process.port = int(process.stdout.readline())
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def waiting(server):
    started = []

    def wait(limit):
        started.append(start(WAITS, server.port, limit))
        assert started[-1].stdout.readline() == "waits\n"
        time.sleep(0.3)  # until it is in the call
        return started[-1]

    yield wait
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("limit", [0.0, 60.0])
def test_neither_a_signal_nor_a_pause_ends_a_call(server, waiting, limit):
    process = waiting(limit)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    server.stdin.write("text\n")
    server.stdin.flush()
    output, errors = process.communicate(timeout=30)
    assert output.split() == ["handled", "text"], errors


STOPS = """
import signal, sys
from plsc.distributed.store import Store
store, block, blocked = Store("127.0.0.1", int(sys.argv[1])), signal.pthread_sigmask, signal.pthread_sigmask(0, [])
def block_late(how, signals):
    # As in Python: handlers of signals that are there run within the call, after it has changed the mask.
    before = block(how, signals)
    if how == signal.SIG_BLOCK and signals:
        raise KeyboardInterrupt
    return before
signal.pthread_sigmask = block_late
try:
    store.count("anything")
except KeyboardInterrupt:
    print("interrupted", len(block(signal.SIG_BLOCK, []) - blocked))
"""


def test_no_signal_stays_blocked_where_a_handler_raises_as_they_are_blocked(server):
    output, errors = start(STOPS, server.port).communicate(timeout=30)
    assert output.split() == ["interrupted", "0"], errors


def test_a_call_that_is_late_ends(waiting):
    process, begin = waiting(1.0), time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert "ValueError" in errors.strip().splitlines()[-1]
    assert 0.4 < time.monotonic() - begin < 15


def test_the_time_of_a_pause_does_not_count(server, waiting):
    process = waiting(1.5)
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    server.stdin.write("text\n")
    server.stdin.flush()
    output, errors = process.communicate(timeout=30)
    assert output.split() == ["text"], errors
