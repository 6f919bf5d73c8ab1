"""`plsc launch` under the real launcher of Paddle: restarts, signals, and the first cause last."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests._support.launching import Launch

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

# Ranks that write down each signal, save, and leave with 75.
SAVES = """
def leave(number, frame):
    note(signal.Signals(number).name)
    leave.asked = True

leave.asked = False
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, leave)
report_position(0)
note("pid", os.getpid())
while not leave.asked:
    time.sleep(0.05)
time.sleep(1.5)  # saving; further signals would be noted
report_position(7)
report_end(SystemExit(75))
leave_together()
"""


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_ended(pids, seconds):
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, [pid for pid in pids if is_running(pid)]
        time.sleep(0.05)


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def pids_of(launch, times=2):
    return [int(line.split()[-1]) for line in launch.wait_for("pid", times)]


def test_a_run_that_fails_goes_on_and_its_logs_are_private_and_without_secrets(tmp_path):
    launch = Launch(
        tmp_path,
        """
        start = sum(line.startswith(f"{rank} start") for line in open("notes")) if os.path.exists("notes") else 0
        note("start", os.environ.get("PLSC_AUTO_RESUME"))
        report_position(start)
        time.sleep(1)
        report_position(start + 1)
        if rank == 1 and start < 2:
            raise ValueError(f"the cause {start}")
        time.sleep(1 if start == 2 else 20)
        """,
        *("--backoff", 0.1, "--restarts", 2),
        SECRET="hunter2hunter2",
    )
    status, output = launch.finish()
    assert status == 0, output
    assert sorted(launch.notes) == [f"{rank} start {resumes}" for rank in (0, 1) for resumes in ("1", "1", "None")]
    assert "restart 1 of 2 from step 1 in 0.1 s" in output and "restart 2 of 2 from step 2 in 0.2 s" in output
    assert "plsc launch: rank 1: ValueError: the cause 1" in output

    starts = sorted((tmp_path / "log").iterdir())
    assert len(starts) == 3
    for folder in starts:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {"workerlog.0", "workerlog.1"} <= {path.name for path in folder.iterdir()}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 6
    assert not [path for path in files if b"hunter2" in path.read_bytes()]


def test_a_run_that_saves_nothing_new_is_not_started_again_and_the_first_cause_is_the_last_line(tmp_path):
    launch = Launch(
        tmp_path,
        """
        note("start")
        report_position(5)
        time.sleep(0.5)
        if rank == 1:
            raise ValueError("the cause")
        time.sleep(2)  # then it notices that its peer is gone
        raise OSError("connection reset by peer")
        """,
        *("--backoff", 0.1),
    )
    status, output = launch.finish()
    assert status == 1
    assert len(launch.notes) == 4  # the first failure has one restart, though nothing was saved
    assert "no restart, since none has saved more than step 5" in output
    assert output.splitlines()[-1] == "plsc launch: rank 1: ValueError: the cause"


def test_a_script_that_fails_before_training_is_run_once(tmp_path):
    launch = Launch(tmp_path, "note('start')\nif rank == 1: sys.exit('no such data')\ntime.sleep(20)")
    status, output = launch.finish()
    assert status == 1
    assert len(launch.notes) == 2
    assert "no restart, since no training had begun" in output
    assert output.splitlines()[-1] == "plsc launch: rank 1: no such data"


def test_a_killed_rank_is_the_first_cause(tmp_path):
    launch = Launch(
        tmp_path,
        """
        report_position(0)
        time.sleep(1)
        if rank == 1:
            note("killed", time.time())
            os.kill(os.getpid(), signal.SIGKILL)
        while not os.path.exists("notes"):
            time.sleep(0.01)
        report_end(OSError("connection reset by peer"))  # at once, before the launcher knows
        time.sleep(0.5)
        sys.exit(1)
        """,
        *("--restarts", 0),
    )
    status, output = launch.finish()
    assert status == 1
    # The launcher of Paddle may ask for the exit code first.
    killed = "was ended by SIGKILL; the system may have run out of memory: see dmesg"
    sudden = "ended without a word, as if it had been killed"
    assert output.splitlines()[-1] in (f"plsc launch: rank 1 {killed}", f"plsc launch: rank 1 {sudden}")


@pytest.mark.parametrize(
    "sent, received", [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGINT"), ("SIGUSR1", "SIGUSR1"), ("SIGHUP", "SIGTERM")]
)
def test_a_signal_reaches_each_rank_once_and_the_run_leaves_with_75(tmp_path, sent, received):
    launch = Launch(tmp_path, SAVES)
    pids = pids_of(launch)
    # So the signals of a terminal, which it sends to a group, reach the ranks from here only.
    assert os.getpgid(launch.process.pid) not in [os.getpgid(pid) for pid in pids]
    launch.process.send_signal(signal.Signals[sent])
    time.sleep(0.3)
    launch.process.send_signal(signal.Signals[sent])  # schedulers repeat themselves
    status, output = launch.finish()
    assert status == 75, output
    assert sorted(line for line in launch.notes if "SIG" in line) == [f"0 {received}", f"1 {received}"]
    assert output.splitlines()[-1] == "plsc launch: stopped; the same command goes on"


def test_a_signal_after_training_leaves_with_75(tmp_path):
    """What the script does after training is cut off, and begins again with the same command."""
    launch = Launch(tmp_path, 'report_position(7)\nreport_end()\nnote("pid", os.getpid())\ntime.sleep(60)')
    pids_of(launch)
    launch.process.send_signal(signal.SIGTERM)
    status, output = launch.finish()
    assert status == 75, output


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_scheduler_may_signal_every_process_of_a_job(tmp_path, name):
    """As Slurm does: Paddle's launcher ends on SIGUSR1, and repeats SIGTERM. The ranks here bear both."""
    launch = Launch(tmp_path, SAVES)
    pids = pids_of(launch)
    for pid in (launch.process.pid, parent_of(pids[0]), *pids):
        os.kill(pid, signal.Signals[name])
    status, output = launch.finish()
    assert status == 75, output
    assert not any(map(is_running, pids))


def test_a_signal_before_there_are_ranks_stops_the_launcher(tmp_path):
    launch = Launch(tmp_path, SAVES)
    while not (tmp_path / "log").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    launch.process.send_signal(signal.SIGTERM)
    status, output = launch.finish()
    assert status == 75, output
    assert not launch.notes


def test_ranks_that_ask_for_it_are_started_again_at_once(tmp_path):
    launch = Launch(
        tmp_path,
        """
        start = sum(line.startswith(f"{rank} start") for line in open("notes")) if os.path.exists("notes") else 0
        note("start")
        report_position(start)
        time.sleep(0.5)
        report_position(min(start + 1, 2))
        leave_together(f"saved{start}")
        """,
        *("--backoff", 60, "--restarts", 0),
    )
    status, output = launch.finish()
    assert status == 75, output
    assert len(launch.notes) == 6  # the third start saved nothing new
    assert "the ranks have saved step 2 and are started again" in output


@pytest.mark.parametrize("second", [False, True], ids=["after the grace period", "after a second signal"])
def test_ranks_that_do_not_end_are_killed(tmp_path, second):
    launch = Launch(
        tmp_path,
        """
        signal.signal(signal.SIGTERM, lambda *_: note("SIGTERM"))
        note("pid", os.getpid())
        while True:
            time.sleep(0.1)
        """,
        *("--grace", 60 if second else 1),
    )
    pids = pids_of(launch)
    launch.process.send_signal(signal.SIGTERM)
    if second:
        time.sleep(3.2)
        launch.process.send_signal(signal.SIGTERM)
    status, output = launch.finish()
    assert status == 128 + signal.SIGTERM
    assert "the ranks have not ended in time and are killed" in output
    assert not any(map(is_running, pids))


def test_ranks_end_with_plsc_launch(tmp_path):
    launch = Launch(tmp_path, SAVES)
    pids = pids_of(launch)
    launch.process.kill()
    launch.process.wait(10)
    wait_until_ended(pids, seconds=20)
    assert {"0 SIGTERM", "1 SIGTERM"} <= set(launch.notes)


def test_ranks_whose_launcher_is_killed_save_and_are_started_again(tmp_path):
    launch = Launch(tmp_path, SAVES)
    pids = pids_of(launch)
    os.kill(parent_of(pids[0]), signal.SIGKILL)
    assert not any(map(is_running, pids_of(launch, times=4)[:2]))
    launch.process.send_signal(signal.SIGTERM)
    status, output = launch.finish()
    assert status == 75, output
    assert "the ranks have saved step 7 and are started again" in output


def test_the_older_launcher_of_paddle(tmp_path):
    launch = Launch(tmp_path, SAVES, *("--legacy", "1"))
    pids_of(launch)
    launch.process.send_signal(signal.SIGTERM)
    status, output = launch.finish()
    assert status == 75, output
    assert sorted(line for line in launch.notes if "SIG" in line) == ["0 SIGTERM", "1 SIGTERM"]
