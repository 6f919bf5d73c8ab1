"""The progress of a run: log lines, or a bar on a terminal."""

from __future__ import annotations

import os
import re
import sys

import pytest

from plsc.config import Config
from plsc.engine.observers import Run, Step, TrainingClock, Values
from plsc.engine.observers import progress as module
from plsc.engine.observers.best import Best, better, main_metric
from plsc.engine.observers.progress import Progress, fitting
from plsc.utils import logging as logging_module


def run_of(total_steps, first_step=0, log_period=200):
    return Run(
        config=Config(log_period=log_period),
        first_step=first_step,
        total_steps=total_steps,
        global_batch=10,
        checkpoint=None,
        steps_per_epoch=None if total_steps is None else total_steps // 20,
    )


def play(progress, steps, total, first=0, log_period=2):
    clock = TrainingClock()
    progress.on_start(run_of(total, first_step=first, log_period=log_period))
    for number in range(first + 1, first + steps + 1):
        progress.on_step(Step(number=number, epoch=0, values=Values({"loss": 2.5, "lr": 0.1}), clock=clock))


def test_lines_come_at_the_first_step_at_the_period_and_at_the_last_step(caplog):
    play(Progress(), 5, 5)
    assert [re.match(r"step \d+/5", message).group() for message in caplog.messages] == [
        "step 1/5",
        "step 2/5",
        "step 4/5",
        "step 5/5",
    ]
    assert caplog.messages[0] == "step 1/5: epoch 0, loss 2.5, lr 0.1"
    assert re.fullmatch(r"step 2/5: epoch 0, loss 2.5, lr 0.1, img/s \d+, \d\d:\d\d left", caplog.messages[1])


def test_a_run_of_unknown_length_shows_neither_total_nor_time_left(caplog):
    play(Progress(), 3, None)
    assert [re.sub(r"img/s \d+", "", message) for message in caplog.messages] == [
        "step 1: epoch 0, loss 2.5, lr 0.1",
        "step 2: epoch 0, loss 2.5, lr 0.1, ",
    ]


def test_a_short_run_shows_its_first_and_its_last_step_whatever_the_period(caplog):
    play(Progress(), 20, 20, log_period=200)
    assert [message.partition(":")[0] for message in caplog.messages] == ["step 1/20", "step 20/20"]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


def test_a_terminal_has_a_bar_that_begins_where_the_run_does(terminal, caplog):
    progress = Progress()
    play(progress, 3, 8, first=5)
    bar = progress._bar
    assert (bar.initial, bar.total, bar.n) == (5, 8, 8)
    progress.on_end({}, None)
    assert bar.disable  # closed
    assert not caplog.messages


def test_the_bar_reads_the_loss_twice_a_second(terminal, monkeypatch):
    seconds, reads = [0.0], []

    class Loss:
        def item(self):
            reads.append(seconds[0])
            return 1.0

    monkeypatch.setattr(TrainingClock, "seconds", property(lambda clock: seconds[0]))
    progress, clock = Progress(), TrainingClock()
    progress.on_start(run_of(100))
    for number in range(1, 10):
        seconds[0] = number / 4
        progress.on_step(Step(number=number, epoch=0, values=Values({"loss": Loss()}), clock=clock))
    progress.on_end({}, None)
    assert reads == [0.25, 1.0, 1.75]
    assert module._BAR_SECONDS == 0.5


class Terminal:
    """What `tqdm` writes, of so many columns."""

    def __init__(self, columns):
        self.columns, self.text = columns, ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True

    def lines(self):
        return [line.rstrip() for line in re.split("[\r\n]", self.text) if line.strip()]


@pytest.mark.parametrize("columns", [30, 60, 80, 119, 120, 200])
def test_a_line_has_as_many_figures_as_the_terminal_has_columns_for(monkeypatch, columns):
    seconds, stream = [0.0], Terminal(columns)
    monkeypatch.setattr(TrainingClock, "seconds", property(lambda clock: seconds[0]))
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module.shutil, "get_terminal_size", lambda: os.terminal_size((columns, 24)))
    monkeypatch.setattr(module, "resident_memory", lambda: 1.25e9)
    progress, clock = Progress(), TrainingClock()
    progress.on_start(run_of(200_000))
    for number in (1, 2):
        seconds[0], clock.data_seconds = number * 1.0, number * 0.25
        step = Step(number=100 * number, epoch=3, values=Values({"loss": 12.345, "lr": 0.05}), clock=clock)
        progress.on_step(step)
        progress.on_verify(step, {"lfw/accuracy": 0.5 + number / 10})
    seconds[0] = 3.0
    progress.on_step(Step(number=300, epoch=3, values=Values({"loss": 1.5, "lr": 0.05}), clock=clock))
    progress.on_end({}, None)
    last = stream.lines()[-1]
    assert len(last) < columns
    assert last.startswith("|" if columns >= 120 else "300/200000")
    expected = ["epoch 3", "loss 1.5", "lr 0.05", "img/s 1000", "best lfw/accuracy 0.7000", "1.2 GB"]
    found = [figure for figure in expected if figure in last]
    left_out = {30: expected, 60: expected[3:], 80: expected[4:5], 120: expected[5:]}.get(columns, [])
    assert found == [figure for figure in expected if figure not in left_out]
    assert ("data wait 25%" in stream.text) == (columns >= 119)


def test_figures_that_fit():
    figures = ["epoch 1", "loss 2.5", "lr 0.1"]
    assert fitting(figures, 100) == "epoch 1, loss 2.5, lr 0.1"
    assert fitting(figures, len("epoch 1, loss 2.5, lr 0.1") - 1) == "epoch 1, loss 2.5"
    assert fitting(["epoch 1", "best lfw/accuracy 0.9", "1 GB"], 20) == "epoch 1, 1 GB"
    assert fitting(figures, 7) == "epoch 1" and fitting(figures, 5) == fitting(figures, -3) == ""


@pytest.mark.parametrize(
    "keep_best, results, expected",
    [
        ("cfp_fp.accuracy", {"lfw/accuracy": 1.0, "cfp_fp/accuracy": 0.9}, "cfp_fp/accuracy"),
        (None, {"lfw/pairs": 6000.0, "lfw/accuracy": 1.0, "val/top1": 0.9}, "lfw/accuracy"),
        (None, {"val/top5": 1.0, "val/top1": 0.9}, "val/top1"),
        ("val.top5", {"val/top5": 1.0, "val/top1": 0.9}, "val/top5"),
        ("lfw.accuracy", {"other/count": 3.0}, None),
    ],
)
def test_the_result_that_a_run_is_judged_by(keep_best, results, expected):
    assert main_metric(keep_best, results) == expected


def test_the_best_verification_is_the_first_of_equal_ones():
    best = None
    for step, accuracy in ((2, 0.75), (4, 0.875), (6, 0.875), (7, float("nan")), (8, 0.5)):
        best = better(best, None, {"lfw/accuracy": accuracy}, step=step)
    assert best == Best("lfw/accuracy", 0.875, 4) and str(best) == "best lfw/accuracy 0.8750"
    assert better(best, None, {"val/top1": 1.0}, step=9) == best  # another metric is not compared
    assert better(None, None, {"count": 3.0}, step=1) is None


def test_the_line_says_what_is_done_before_the_first_step_is_and_shows_that_at_once(monkeypatch):
    stream = Terminal(80)
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress()
    progress.on_start(run_of(100, first_step=7))
    assert "making step 8" in stream.text
    progress.on_step(Step(number=8, epoch=0, values=Values({"loss": 2.5}), clock=TrainingClock()))
    assert "8/100" in stream.text and "loss 2.5" in stream.text and "img/s" not in stream.text
    progress.on_end({}, None)


def test_the_memory_of_a_gpu_is_shown_where_there_is_one(monkeypatch):
    monkeypatch.setattr(module, "resident_memory", lambda: 1.26e9)
    monkeypatch.setattr(module, "reserved_gpu_memory", lambda: 40.04e9)
    assert Progress(on_gpu=True)._memory() == "1.3 GB, GPU 40.0 GB"
    assert Progress()._memory() == "1.3 GB"


def test_quiet_shows_no_bar(terminal, monkeypatch):
    monkeypatch.setattr(logging_module, "_is_quiet", True)
    progress = Progress()
    play(progress, 3, 8)
    assert progress._bar is None


def test_the_times_of_an_epoch_and_of_the_rest_are_told_once_after_a_minute(monkeypatch, caplog):
    seconds = [0.0]
    monkeypatch.setattr(TrainingClock, "seconds", property(lambda clock: seconds[0]))
    progress, clock = Progress(), TrainingClock()
    run = run_of(2000, first_step=500, log_period=10)
    run.config.train_epochs = 20
    progress.on_start(run)
    for number in range(501, 560):
        seconds[0] = (number - 500) * 2.0
        progress.on_step(Step(number=number, epoch=5, values=Values({"loss": 1.0}), clock=clock))
    told = [message for message in caplog.messages if "an epoch" in message]
    assert told == ["an epoch about 03:20, the rest of the run about 49:00, without verification and saving"]


@pytest.mark.parametrize("stream", [None, object()], ids=["closed", "an object without isatty"])
def test_training_needs_no_standard_error(entry, data_dir, monkeypatch, stream):
    entry.set_num_workers(1)
    monkeypatch.setattr(sys, "stderr", stream)
    assert "loss" in entry.train()
