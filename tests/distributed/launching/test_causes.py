"""The first cause, from what ranks report, how they end and what is in their logs."""

from __future__ import annotations

import pytest

from plsc.distributed.launching.causes import End, first_cause, likely_order
from plsc.distributed.launching.logs import LogFolder, last_error
from plsc.distributed.launching.processes import RankProcess
from plsc.distributed.launching.reports import REPORT_DIR, report_end


@pytest.fixture
def logs(tmp_path, monkeypatch):
    logs = LogFolder(tmp_path)
    monkeypatch.setenv(REPORT_DIR, str(logs.reports))
    return logs


@pytest.fixture
def report(monkeypatch):
    def report(rank, error):
        monkeypatch.setenv("PADDLE_TRAINER_ID", str(rank))
        report_end(error)

    return report


def end(rank, code, local_rank=None):
    return End(RankProcess(1000, 1, rank=rank, local_rank=rank if local_rank is None else local_rank), code)


def test_the_first_report_counts(logs, report):
    report(1, ValueError("the cause"))
    report(0, OSError("connection reset"))
    cause = first_cause([end(0, 1), end(1, 1)], logs)
    assert (cause.text, cause.status, cause.log) == ("rank 1: ValueError: the cause", 1, logs.worker(1))


def test_a_report_of_another_machine_has_no_log_here(logs, report):
    report(3, SystemExit(74))
    cause = first_cause([end(0, -15)], logs)
    assert (cause.text, cause.log) == ("rank 0 was ended by SIGTERM", logs.worker(0))
    report(0, OSError("connection reset"))
    cause = first_cause([end(0, 1)], logs)
    assert (cause.text, cause.status, cause.log) == ("rank 3: SystemExit: 74", 74, None)


@pytest.mark.parametrize("code, how", [(-9, "was ended by SIGKILL; the system"), (None, "ended without a word")])
def test_a_killed_rank_counts_before_reports_of_its_peers(logs, report, code, how):
    report(0, OSError("connection reset"))
    cause = first_cause([end(1, code), end(0, 1)], logs)
    assert cause.text.startswith(f"rank 1 {how}")
    assert cause.status == 1


def test_ranks_that_the_launcher_ends_are_not_the_cause(logs, report):
    report(1, ValueError("the cause"))
    assert first_cause([end(1, 1), end(0, -9)], logs).text == "rank 1: ValueError: the cause"


def test_a_rank_that_has_saved_is_no_fault_and_neither_are_those_that_the_launcher_then_ends(logs, report):
    assert first_cause([end(0, 75), end(1, -9)], logs) is None
    report(0, SystemExit(75))
    assert first_cause([end(0, None), end(1, -9)], logs) is None


def test_a_rank_that_is_complete_is_no_fault(logs, report):
    report(0, None)
    assert first_cause([end(0, None), end(1, 0)], logs) is None
    report(1, ValueError("at the end"))
    assert first_cause([end(0, None), end(1, 1)], logs).text == "rank 1: ValueError: at the end"


def test_of_ranks_that_ended_at_the_same_time_a_killed_one_is_the_first_and_one_that_was_stopped_the_last():
    ends = [end(rank, code) for rank, code in enumerate((-15, 1, None, -9, -15, -11))]
    assert [found.process.rank for found in likely_order(ends)] == [3, 1, 2, 5, 0, 4]


@pytest.mark.parametrize("code, is_fault", [(-15, False), (-2, False), (-11, True), (1, True)])
def test_a_signal_that_ends_a_rank_whose_training_is_complete_is_no_fault(logs, report, code, is_fault):
    report(0, None)
    report(1, None)
    assert (first_cause([end(0, code), end(1, 0)], logs) is not None) == is_fault
    assert first_cause([end(2, -15)], logs) is not None


def test_the_log_tells_where_the_rank_does_not(logs):
    logs.worker(1).write_text("step 1\nTraceback (most recent call last):\n  File x\n    y\nKeyError: 'z'\nstep 2\n")
    cause = first_cause([end(None, 1, local_rank=1), end(0, -15)], logs)
    assert cause.text == "rank 1 of this machine: KeyError: 'z'"
    assert first_cause([end(0, 3)], logs).text == "rank 0: it ended with status 3"
    assert first_cause([end(0, 3)], logs).status == 3
    assert first_cause([], logs) is None


def test_the_last_error_in_a_log(tmp_path):
    log = tmp_path / "workerlog.0"
    assert last_error(log) is None
    for text, error in [
        ("", None),
        ("no such file\n\n", "no such file"),
        ("plsc: data/label.txt: no such file\nbye\n", "data/label.txt: no such file"),
        (
            "Traceback (most recent call last):\n  a\nA: 1\nTraceback (most recent call last):\n  b\nplsc.B: 2\n",
            "plsc.B: 2",
        ),
        ("x" * 100_000 + "\nTraceback (most recent call last):\n  a\nA: 1\n", "A: 1"),
        ("Traceback (most recent call last):\n  cut off", None),
    ]:
        log.write_text(text)
        assert last_error(log) == error


@pytest.mark.parametrize("code, is_fault", [(-15, False), (-9, True)])
def test_a_rank_that_has_saved_may_be_ended_while_its_process_ends(logs, report, code, is_fault):
    """Python has no handlers any more then, and Paddle's launcher ends a rank as soon as another has ended."""
    report(0, SystemExit(75))
    report(1, SystemExit(75))
    assert (first_cause([end(0, code), end(1, None)], logs) is not None) == is_fault
