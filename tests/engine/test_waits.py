"""For what a step waits on a GPU: counted where Paddle would wait for the device, or copy to it.

On a CPU the last layer reads some tensors by NumPy, which waits for nothing; those reads are left out here.
"""

from __future__ import annotations

import collections
import sys

import numpy as np
import paddle
import pytest

from plsc.engine import transfer
from plsc.engine.observers import Observer, Run
from plsc.engine.trainer import Trainer
from plsc.engine.transfer import CPUTransfers

LAG, WARM = 4, 6
READS = ("item", "numpy", "tolist", "__bool__", "__float__", "__int__", "__index__", "__array__")


class Counting(CPUTransfers):
    """Numbers for the host are not read by Paddle's methods but by `read`; batches are one copy each."""

    def __init__(self, counts):
        super().__init__(LAG)
        self._counts, self._given = counts, 0

    def _copy(self, batch):
        self._counts["batches"] += 1
        with self._counts.paused():
            return super()._copy(batch)

    def to_host(self, numbers):
        self._given += 1
        number, read = self._given, super().to_host(numbers)

        def counted():
            self._counts["late" if self._given - number >= LAG else "waits for a verdict"] += 1
            with self._counts.paused():
                return read()

        return counted


class Counts(collections.Counter):
    """Counts while it is on, what the library itself calls, by the function that calls."""

    is_on = False

    def paused(self):
        return Paused(self)

    def note(self, what, size=None):
        if not self.is_on:
            return
        frame = sys._getframe(2)
        while frame and not frame.f_globals.get("__name__", "").startswith("plsc."):
            frame = frame.f_back
        module = frame.f_globals["__name__"] if frame else "?"
        if module not in ("plsc.losses.ops", "plsc.losses.logit_ops", "plsc.losses.exponentials", "plsc.losses.passes"):
            self[f"{what} in {module}.{frame.f_code.co_name}"] += 1


class Paused:
    def __init__(self, counts):
        self._counts = counts

    def __enter__(self):
        self._before, self._counts.is_on = self._counts.is_on, False

    def __exit__(self, *error):
        self._counts.is_on = self._before


@pytest.fixture
def counts(monkeypatch):
    """What one step does, once `is_on`."""
    made = Counts()

    def wrap(owner, name, what):
        real = getattr(owner, name)

        def counted(*arguments, **named):
            if what(*arguments):
                made.note(name)
            with made.paused():  # one method calls another
                return real(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)

    for name in READS:
        if hasattr(paddle.Tensor, name):
            wrap(paddle.Tensor, name, lambda *_: True)
    for name in ("__add__", "__sub__", "__mul__", "__truediv__"):  # an array beside a tensor is copied
        wrap(paddle.Tensor, name, lambda _, other: isinstance(other, np.ndarray))
    # A single number is no copy: Paddle has an operator make it.
    wrap(paddle, "to_tensor", lambda data, *_: np.asarray(data).size > 1)
    monkeypatch.setattr(transfer, "transfers_of", lambda topology: Counting(made))
    monkeypatch.setattr("plsc.engine.parts.transfers_of", lambda topology: Counting(made))
    return made


@pytest.fixture
def run(entry):
    entry.set_train_batch_size(5)
    entry.set_train_epochs(10)
    entry.set_with_test(False)
    entry.set_save_period(minutes=None)
    return entry


def count(run, counts, steps=4):
    """What so many steps of a run do, between two saves."""
    trainer = Trainer(run.config)
    batches = trainer.loader.epoch(0)
    every = [next(batches) for _ in range(6)]
    for number in range(WARM + steps):
        counts.is_on = number >= WARM
        if number == WARM:
            counts.clear()
        trainer._between_steps(trainer._make_step({}))
        trainer.train_step(every[number % len(every)])
    counts.is_on = False
    return {name: number / steps for name, number in counts.items()}


EXPECTED = {"batches": 1, "late": 1}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss_type": "arcface"},
        {"loss_type": "dist_softmax"},
        {"sample_ratio": 0.5},
        {"calc_acc": True},
        {"pixel_mean": (120.0, 110.0, 100.0), "pixel_std": (60.0, 61.0, 62.0)},
    ],
)
def test_a_step_waits_for_nothing_and_copies_one_batch(run, counts, settings):
    for name, value in settings.items():
        setattr(run, name, value)
    assert count(run, counts) == EXPECTED


def test_a_step_that_may_be_left_out_waits_once(run, counts):
    """Before anything moves; the verdict on what the update left is read late."""
    run.on_nonfinite = "skip"
    assert count(run, counts) == {"batches": 1, "late": 1, "waits for a verdict": 1}


def test_the_counting_counts(run, counts, monkeypatch):
    """One read of each kind and one copy in each step are found."""
    train_step = Trainer.train_step

    def reading(trainer, batch):
        values = train_step(trainer, batch)
        note(values["loss"])
        return values

    reads = "loss.item(), loss.numpy(), loss.tolist(), bool(loss), float(loss)"
    module = {"__name__": "plsc.example", "paddle": paddle}
    exec(f"def note(loss):\n    {reads}\n    paddle.to_tensor([1.0, 2.0])", module)
    note = module["note"]
    monkeypatch.setattr(Trainer, "train_step", reading)
    found = count(run, counts)
    names = ["item", "numpy", "tolist", "__bool__", "__float__", "to_tensor"]
    assert found == {**EXPECTED, **{f"{name} in plsc.example.note": 1 for name in names}}


class Reading(Observer):
    """Reads what the file of metrics reads at logged steps."""

    def on_start(self, run):
        self.run = run

    def on_step(self, step):
        if self.run.is_logged(step):
            dict(step.values), dict(step.measures.scalars), dict(step.measures.histograms)


def test_a_logged_step_is_measured_with_one_copy_that_is_read_when_it_is_logged(run, counts):
    """Of four steps one is logged: its numbers are one tensor for the host, and its loss and accuracy three."""
    run.set_log_period(4)
    run.set_calc_acc(True)
    trainer, reading = Trainer(run.config), Reading()
    reading.on_start(Run(config=run.config, first_step=0, total_steps=None, global_batch=5, checkpoint=None))
    batches = trainer.loader.epoch(0)
    every = [next(batches) for _ in range(6)]
    for number in range(2 * 4 + 4):
        counts.is_on = number >= 8
        if number == 8:
            counts.clear()
        trainer._between_steps(trainer._make_step({}))
        reading.on_step(trainer._make_step(trainer.train_step(every[number % 6])))
    counts.is_on = False
    assert counts["late"] == 4 and counts["batches"] == 4
    # The first of these waits for the device; nothing is begun in between, so the others find it idle.
    reads = {name: number for name, number in counts.items() if name not in ("late", "batches")}
    assert reads == {"item in plsc.engine.observers.__getitem__": 3, "waits for a verdict": 1}
