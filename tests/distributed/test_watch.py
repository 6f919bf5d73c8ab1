"""Ranks that raise, die, hang or are late: when the job ends, and what each log says last."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plsc.distributed.processes import Process
from tests._support.ranks import ROOT, WORKERS, launch

SHORT = 0.1  # minutes: rank_timeout of the tests that wait for it


def run(folder, fault, rank, minutes=10.0, *, ranks=2, size=0):
    """Start ranks, one with a fault; returns (status, what the launcher shows, lines of each rank, seconds)."""
    logs = folder / "log"
    given = (folder, fault, rank, minutes, size)
    status, output = launch(ranks, "fault_worker.py", *given, log_dir=logs, check=False, timeout=150)
    ended = time.time()
    console = output.partition("\n== workerlog.0")[0]
    lines = [(logs / f"workerlog.{number}").read_text().strip().splitlines() for number in range(ranks)]
    begin = re.search(r"FAULT ([\d.]+)", output)
    assert begin, output
    return status, said(console), lines, ended - float(begin.group(1))


def said(console):
    """What the launcher shows of the ranks, without its own lines."""
    return [line for line in console.strip().splitlines() if not line.startswith("LAUNCH")]


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("rank", [1, 0])
def test_an_error_of_one_rank_is_the_last_line_of_all(tmp_path, rank):
    status, console, lines, seconds = run(tmp_path, "raise", rank)
    cause = r"item \d+ of Pixels: reading it failed: OSError\(5, 'Input/output error'\)"
    of_its_own = rf"plsc\.errors\.DataError: rank {rank}: {cause}"
    of_the_other = rf"plsc\.errors\.DistributedError: rank {rank} on \S+ stopped: DataError: {cause}"
    # The status is that of rank 0, which Paddle's launcher may end by SIGTERM once the other has ended.
    assert status in (1, 256 - signal.SIGTERM) and seconds < 20
    assert re.fullmatch(of_its_own, lines[rank][-1])
    assert re.fullmatch(of_the_other, lines[1 - rank][-1])
    assert re.fullmatch(f"{of_its_own}|{of_the_other}", console[-1])


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("fault", ["kill", "kill in backward"])
def test_a_rank_that_dies_is_named_within_seconds(tmp_path, fault):
    """In backward the other rank waits in Gloo, which fails; else it waits for the rank that is late."""
    status, _, lines, seconds = run(tmp_path, fault, 1)
    assert status != 0 and seconds < 15
    assert re.match(r"plsc\.errors\.DistributedError: rank 1 on \S+ is dead: its process \d+ has ended", lines[0][-1])


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("rank", [1, 0])
def test_a_stopped_rank_is_named(tmp_path, rank):
    status, console, lines, seconds = run(tmp_path, "stop", rank, SHORT)
    assert status != 0 and 6 < seconds < 30
    last = lines[1 - rank][-1]
    assert re.match(rf"plsc\.errors\.DistributedError: rank {rank} on \S+ has made no progress for [678] s; its", last)
    assert "its process does not run, or is in a call that does not return. If" in last
    assert "(most recent call first):" in "\n".join(lines[1 - rank])
    assert console[-1] == last


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("rank", [1, 0])
def test_a_rank_that_hangs_is_named_and_writes_its_stacks(tmp_path, rank):
    status, console, lines, seconds = run(tmp_path, "stall100", rank, SHORT)
    assert status != 0 and 6 < seconds < 30
    expected = (
        rf"plsc\.errors\.DistributedError: rank {rank} on \S+ has made no progress for [678] s; its last report: "
        r"reading a batch of epoch 0, for step 10; its log has its stacks. .*set_rank_timeout\(0\.2\)$"
    )
    assert re.match(expected, lines[0][-1]) and re.match(expected, lines[1][-1]) and re.match(expected, console[-1])
    assert re.search(r"fault_worker.py\", line \d+ in fail", "\n".join(lines[rank]))


@pytest.mark.slow
@pytest.mark.ranks
def test_a_rank_may_be_later_than_the_time_limit_of_gloo(tmp_path):
    status, console, lines, seconds = run(tmp_path, "stall40", 1)
    assert status == 0 and seconds > 40
    assert [line.split()[0] for line in (lines[0][-1], lines[1][-1])] == ["RESULT", "RESULT"]


@pytest.mark.slow
@pytest.mark.ranks
def test_in_groups_of_ranks_too_a_dead_rank_is_named_and_a_late_one_awaited(tmp_path):
    """Rank 2 waits for rank 3 within their group, ranks 0 and 1 for their replicas."""
    status, _, lines, seconds = run(tmp_path / "kill", "kill", 3, ranks=4, size=2)
    assert status != 0 and seconds < 15
    for rank in range(3):
        assert re.match(r"plsc\.errors\.DistributedError: rank 3 on \S+ is dead: its process \d+ has", lines[rank][-1])
    status, _, lines, seconds = run(tmp_path / "late", "stall40", 3, ranks=4, size=2)
    assert status == 0 and seconds > 40 and all(line[-1].startswith("RESULT") for line in lines)


@pytest.mark.slow
@pytest.mark.ranks
def test_ranks_and_their_readers_end_with_the_launcher(tmp_path):
    command = [
        sys.executable,
        "-m",
        "paddle.distributed.launch",
        "--nproc_per_node",
        "2",
        "--log_dir",
        tmp_path / "log",
    ]
    command += [WORKERS / "fault_worker.py", tmp_path, "launcher", 1, 10, 0]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    assert launcher.wait(120) == -signal.SIGKILL
    processes = [pid for rank in range(2) for pid in map(int, (tmp_path / f"pids{rank}").read_text().split())]
    assert len(processes) == 6
    deadline = time.monotonic() + 40
    while (left := [pid for pid in processes if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    assert "saved" in (tmp_path / "log" / "workerlog.0").read_text()


def test_a_process_that_is_stopped_has_not_ended_and_one_nobody_waited_for_has():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    state = Path(f"/proc/{child.pid}/stat")
    process = Process.this()._replace(pid=child.pid, birth=state.read_text().rpartition(")")[2].split()[19])
    child.send_signal(signal.SIGSTOP)
    assert not process.has_ended()
    assert process._replace(birth="0").has_ended()
    child.kill()
    while state.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert process.has_ended()
    child.wait()
    assert process.has_ended()
