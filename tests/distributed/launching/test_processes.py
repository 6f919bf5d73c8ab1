"""Ranks are found among a launcher's children, and their exit codes are read before the launcher asks for them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from plsc.distributed.launching.processes import ranks_of

# Two ranks in sessions of their own, a child that is none, and a rank that ended at once. No exit code is asked for.
LAUNCHER = """
import subprocess, sys, time

def start(rank, command, **options):
    place = {} if rank is None else {"PADDLE_TRAINER_ID": str(4 + rank), "PADDLE_RANK_IN_NODE": str(rank)}
    return subprocess.Popen(command, env={"PATH": "/usr/bin:/bin", **place}, stdout=subprocess.DEVNULL, **options)

sleep = ["sleep", "60"]
ranks = [start(0, sleep, start_new_session=True), start(1, sleep, start_new_session=True)]
start(None, sleep)
time.sleep(0.3)
ranks.append(start(None, ["sh", "-c", "exit 3"], start_new_session=True))
time.sleep(0.3)
print("started", flush=True)
time.sleep(60)
"""


@pytest.fixture
def launcher():
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    yield process.pid
    for rank in ranks_of(process.pid):
        rank.kill()
    process.kill()
    process.communicate()


def wait_until_ended(rank):
    deadline = time.monotonic() + 10
    while rank.is_alive:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ranks_and_how_they_end(launcher):
    first, second, third = ranks_of(launcher)
    assert [(rank.local_rank, rank.rank) for rank in (first, second, third)] == [(0, 4), (1, 5), (2, None)]
    assert (first.name, third.name) == ("rank 4", "rank 2 of this machine")
    assert first.is_alive and first.exit_code() is None
    assert not third.is_alive and third.exit_code() == 3
    first.send(signal.SIGTERM)
    second.kill()
    for rank, code in ((first, -15), (second, -9)):
        wait_until_ended(rank)
        assert rank.exit_code() == code


def test_without_children_there_are_no_ranks():
    with subprocess.Popen(["sleep", "60"]) as process:
        assert not list(ranks_of(process.pid))
        process.kill()
    assert not list(ranks_of(process.pid))
