"""The progress of a run: log lines, or a bar on a terminal."""

from __future__ import annotations

import re
import sys

import pytest

from plsc.config import Config
from plsc.engine.observers import Run, Step, TrainingClock, Values
from plsc.engine.observers import progress as module
from plsc.engine.observers.progress import Progress


def run_of(total_steps, first_step=0, log_period=200):
    return Run(
        config=Config(log_period=log_period),
        first_step=first_step,
        total_steps=total_steps,
        global_batch=10,
        checkpoint=None,
    )


def play(progress, steps, total, first=0, log_period=2):
    clock = TrainingClock()
    progress.on_start(run_of(total, first_step=first, log_period=log_period))
    for number in range(first + 1, first + steps + 1):
        progress.on_step(Step(number=number, epoch=0, values=Values({"loss": 2.5, "lr": 0.1}), clock=clock))


def test_lines_come_at_the_period_and_at_the_last_step(caplog):
    play(Progress(), 5, 5)
    assert [re.match(r"step \d+/5", message).group() for message in caplog.messages] == [
        "step 2/5",
        "step 4/5",
        "step 5/5",
    ]
    assert re.fullmatch(r"step 2/5: epoch 0, loss 2.5, lr 0.1, img/s \d+, \d\d:\d\d left", caplog.messages[0])


def test_a_run_of_unknown_length_shows_neither_total_nor_time_left(caplog):
    play(Progress(), 3, None)
    assert [re.sub(r"img/s \d+", "", message) for message in caplog.messages] == ["step 2: epoch 0, loss 2.5, lr 0.1, "]


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
    assert reads == [0.75, 1.5, 2.25]
    assert module._BAR_SECONDS == 0.5


@pytest.mark.parametrize("stream", [None, object()], ids=["closed", "an object without isatty"])
def test_training_needs_no_standard_error(entry, data_dir, monkeypatch, stream):
    entry.set_num_workers(1)
    monkeypatch.setattr(sys, "stderr", stream)
    assert "loss" in entry.train()
