"""What ranks tell `plsc launch`."""

from __future__ import annotations

import sys

import pytest

from plsc.config import Config
from plsc.distributed.launching.reports import (
    REPORT_DIR,
    read_endings,
    read_position,
    report_end,
    report_position,
    report_uncaught,
)
from plsc.engine.observers import Run, Step, TrainingClock, Values
from plsc.engine.observers.launch_report import LaunchReport


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(REPORT_DIR, str(tmp_path))
    return tmp_path


def test_the_newest_position_of_all_ranks_counts(folder, monkeypatch):
    assert read_position(folder) is None
    for rank, step in ((0, 5), (1, 7), (0, 6)):
        monkeypatch.setenv("PADDLE_TRAINER_ID", str(rank))
        report_position(step)
    assert read_position(folder) == 7


def test_the_first_end_that_is_a_fault_stays(folder):
    for error in (None, ValueError("first"), OSError("second"), None):
        report_end(error)
    (ending,) = read_endings(folder)
    assert (ending.rank, ending.status, ending.message) == (0, 1, "ValueError: first")


@pytest.mark.parametrize(
    "error, status", [(None, 0), (SystemExit(), 0), (SystemExit(75), 75), (SystemExit("text"), 1), (KeyError(), 1)]
)
def test_the_status_of_an_end(folder, error, status):
    report_end(error)
    assert [ending.status for ending in read_endings(folder)] == [status]


def test_without_a_launcher_or_its_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(REPORT_DIR, raising=False)
    monkeypatch.chdir(tmp_path)
    hook = sys.excepthook
    report_position(1), report_end(ValueError()), report_uncaught()
    assert sys.excepthook is hook and not list(tmp_path.iterdir())
    monkeypatch.setenv(REPORT_DIR, str(tmp_path / "gone"))
    report_position(1), report_end(ValueError())


def test_an_uncaught_exception_is_reported_and_shown(folder, monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "excepthook", lambda *words: shown.append(words))
    report_uncaught()
    error = ValueError("uncaught")
    sys.excepthook(ValueError, error, None)
    assert shown == [(ValueError, error, None)]
    assert read_endings(folder)[0].message == "ValueError: uncaught"


def test_the_observer_of_every_run_reports(folder):
    observer = LaunchReport()
    assert observer.every_rank
    observer.on_start(Run(config=Config(), first_step=3, total_steps=9, global_batch=1, checkpoint=None))
    assert read_position(folder) == 3
    step = Step(number=5, epoch=0, values=Values({}), clock=TrainingClock())
    observer.on_save(step, folder)
    assert read_position(folder) == 5
    observer.on_end({}, None)
    assert read_endings(folder)[0].status == 0
    observer.on_end({}, ValueError("x"))
    assert read_endings(folder)[0].status == 1
