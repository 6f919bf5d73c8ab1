"""Verdicts that are read some steps late, as on a GPU: what is trained, saved and stopped is the same but for that."""

from __future__ import annotations

import json
import os
import signal
import threading

import numpy as np
import paddle
import pytest

from plsc import DataError, Interrupted, TrainingError
from plsc.checkpoint import Checkpoint, list_checkpoints
from plsc.data.loader import ReaderLoader
from plsc.engine import saver, transfer
from plsc.engine.about import About
from plsc.engine.observers import Observer
from plsc.engine.saver import Saver
from plsc.engine.trainer import Trainer
from tests._support.checkpoints import assert_equal, contents, names
from tests._support.images import CLASSES, SIDE
from tests._support.ranks import launch

LAG = 4


@pytest.fixture
def late(monkeypatch):
    monkeypatch.setitem(transfer.LAGS, "cpu", LAG)


@pytest.fixture
def run(entry):
    """Three epochs of six steps, a checkpoint every fourth step."""
    entry.set_train_batch_size(5)
    entry.set_train_epochs(3)
    entry.set_with_test(False)
    entry.set_save_period(steps=4, minutes=None, keep=50)
    entry.set_async_save(False)
    return entry


class At(Observer):
    """Calls a function after a step."""

    def __init__(self, number, function):
        self.number, self.function, self.last = number, function, 0

    def on_step(self, step):
        self.last = step.number
        if step.number == self.number:
            self.function()


@pytest.fixture
def whole(run, tmp_path, monkeypatch):
    """The checkpoints of a run whose verdicts are read at once."""
    run.set_model_save_dir(tmp_path / "whole")
    Trainer(run.config).train()
    run.set_model_save_dir(tmp_path / "output")
    return tmp_path / "whole"


@pytest.mark.parametrize("settings", [{}, {"on_nonfinite": "skip"}, {"async_save": "on"}])
def test_a_late_verdict_changes_nothing_that_is_trained_or_saved(run, whole, late, settings):
    for name, value in settings.items():
        setattr(run, name, value)
    Trainer(run.config).train()
    assert names(whole) == ["0.4", "0", "1.2", "1", "2.4", "2"]
    if run.config.async_save == "off":
        assert names(run.model_save_dir) == names(whole)
    for name in {"0.4", "2"} | set(names(run.model_save_dir)) & set(names(whole)):
        assert_equal(contents(whole.parent / "output" / name), contents(whole / name))


@pytest.mark.parametrize("step", [1, 3, 6, 11])
def test_a_signal_is_heeded_late_and_loses_nothing(run, whole, late, step, tmp_path):
    run.set_save_period(minutes=None, keep=50)
    watcher = At(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        Trainer(run.config, observers=[watcher]).train()
    # The end of an epoch reads every verdict, and asks again when its checkpoint is written.
    assert watcher.last == min(step + 1 + LAG, 6 * ((step - 1) // 6 + 1))
    newest = list_checkpoints(run.model_save_dir)[-1]
    assert About.of(Checkpoint(newest)).step == watcher.last
    run.set_auto_resume(True)
    Trainer(run.config).train()
    assert_equal(contents(tmp_path / "output" / "2"), contents(whole / "2"))


@pytest.mark.parametrize("lag", [0, LAG])
def test_a_run_that_is_stopped_after_its_last_batch_still_has_the_last_values(run, monkeypatch, tmp_path, lag):
    """Nothing is left of the epoch of a reader, whose length is not known."""
    monkeypatch.setitem(transfer.LAGS, "cpu", lag)
    images = np.random.default_rng(0).integers(0, 255, (30, 3, SIDE, SIDE)).astype(np.float32)
    run.train_reader = lambda: iter([[(image, 1) for image in images[start : start + 5]] for start in range(0, 30, 5)])
    run.set_train_epochs(1)
    run.set_save_period(minutes=None)
    run.set_test_period(3)
    expected = Trainer(run.config).train()
    run.set_model_save_dir(tmp_path / "stopped")
    with pytest.raises(Interrupted):
        Trainer(run.config, observers=[At(5, lambda: os.kill(os.getpid(), signal.SIGTERM))]).train()
    assert names(run.model_save_dir) == ["0.6"]
    run.set_auto_resume(True)
    assert Trainer(run.config).train() == {name: expected[name] for name in ("loss", "lr")}


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("settings", [{"save_minutes": None}, {"save_minutes": None, "save_steps": 2}])
def test_ranks_stop_after_the_same_step(tmp_path, settings):
    """The signal reaches one of them."""
    settings = {
        "model": "batch norm",
        "train_epochs": 2,
        "num_workers": 0,
        "train_batch_size": 3,
        "lag": LAG,
        **settings,
    }

    def train(folder, **more):
        given = {**settings, "model_save_dir": str(tmp_path / folder), "save_keep": 50, **more}
        return launch(2, "train_worker.py", json.dumps(given), log_dir=tmp_path / f"log {folder}", check=False)

    assert train("whole", lag=0)[0] == 0
    status, output = train("stopped", signal=[1, 3])
    assert status != 0 and "stopped by SIGTERM on rank 1" in output
    assert About.of(Checkpoint(list_checkpoints(tmp_path / "stopped")[-1])).step in (3 + 1 + LAG, 6)
    assert train("stopped", auto_resume=True)[0] == 0
    assert_equal(contents(tmp_path / "stopped" / "1"), contents(tmp_path / "whole" / "1"))


# Steps that are not sound


class Finished:
    """Finished images, of which one is bad."""

    num_classes = CLASSES

    def __len__(self):
        return 60

    def __getitem__(self, index):
        image = np.random.default_rng(index).standard_normal((3, SIDE, SIDE)).astype(np.float32)
        if index == 7:
            image[1, 2, 3] = np.nan
        return image, index % CLASSES


def step_of(run, index):
    """The step, from 1, that has an image."""
    loader = Trainer(run.config).loader
    order = loader._order(0)
    return int(np.flatnonzero(order == index)[0]) // run.config.train_batch_size + 1


@pytest.mark.parametrize("save_steps", [None, 1, 3])
def test_a_step_that_is_not_sound_is_found_late_named_and_never_saved(run, late, save_steps):
    run.train_dataset = Finished()
    run.set_save_period(steps=save_steps, minutes=None, keep=50)
    bad = step_of(run, 7)
    watcher = At(0, None)
    with pytest.raises(TrainingError, match=rf"epoch 0, step {bad}: the input, item 7 of Finished, holds nan"):
        Trainer(run.config, observers=[watcher]).train()
    assert bad <= watcher.last <= min(bad + LAG, 12)
    assert watcher.last == bad or save_steps != 1  # a save reads every verdict
    assert all(About.of(Checkpoint(path)).step < bad for path in list_checkpoints(run.model_save_dir))


class Breaks(paddle.optimizer.Momentum):
    """Makes a parameter NaN in its third step."""

    calls = 0

    def step(self):
        super().step()
        self.calls += 1
        if self.calls == 3 and len(self._parameter_list) > 1:  # the network's
            paddle.assign(paddle.full_like(self._parameter_list[0], float("nan")), self._parameter_list[0])


@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_what_an_update_has_broken_is_not_blamed_on_a_later_step(run, late, mode, caplog):
    run.set_save_period(minutes=None)
    run.on_nonfinite = mode
    run.set_optimizer(lambda learning_rate, parameters: Breaks(learning_rate, 0.9, parameters=parameters))
    with pytest.raises(TrainingError, match="epoch 0, step 3: after the update the parameter '.*' holds nan"):
        Trainer(run.config).train()
    assert not [message for message in caplog.messages if "skipped" in message and "skipped_steps 0" not in message]


# Saving


def test_no_save_begins_before_every_verdict_is_read(run, late, monkeypatch):
    start, seen, trainers = Saver.start, [], []

    def counted(self, step, *arguments, **options):
        seen.append((step.number, len(trainers[0]._judge._unread)))
        start(self, step, *arguments, **options)

    monkeypatch.setattr(Saver, "start", counted)
    trainers.append(Trainer(run.config, observers=[At(13, lambda: os.kill(os.getpid(), signal.SIGTERM))]))
    with pytest.raises(Interrupted):
        trainers[0].train()
    assert [unread for _, unread in seen] == [0] * len(seen)
    assert [number for number, _ in seen] == [4, 6, 8, 12, 16]


def test_a_save_that_the_clock_asks_for_is_made_once(run, late, monkeypatch):
    """Rank 0 asks at each step until the save begins."""
    now = [0.0]
    monkeypatch.setattr(saver.time, "monotonic", lambda: now[0])
    run.set_train_batch_size(1)
    run.set_train_epochs(1)
    run.set_save_period(minutes=1, keep=50)
    run.set_async_save(False)
    Trainer(run.config, observers=[At(3, lambda: now.__setitem__(0, 61.0))]).train()
    assert names(run.model_save_dir) == [f"0.{3 + 1 + LAG}", "0"]


def test_a_phase_is_not_taken_for_done_by_what_ranks_told_in_the_one_before(run, late, monkeypatch):
    """While rank 0 names the folder, the verdicts that are read still say that the files are written."""
    opened, complete, announced = threading.Event(), saver.complete, []

    def complete_when_open(*arguments, **options):
        assert opened.wait(60)
        complete(*arguments, **options)

    class Saved(Observer):
        def on_save(self, step, path):
            announced.append((opened.is_set(), (path / "manifest.json").is_file()))

    monkeypatch.setattr(saver, "complete", complete_when_open)
    run.set_train_batch_size(1)
    run.set_train_epochs(1)
    run.set_save_period(steps=2, minutes=None, keep=50)
    run.set_async_save(True)
    Trainer(run.config, observers=[Saved(), At(24, opened.set)]).train()
    assert announced and all(announced[0]) and all(map(all, announced))


# Reading ahead


def test_an_image_that_cannot_be_read_ends_the_run_after_the_steps_before_it(run, late, monkeypatch):
    class Broken(Finished):
        def __getitem__(self, index):
            if index == 9:
                raise OSError("gone")
            return np.zeros((3, SIDE, SIDE), np.float32), index % CLASSES

    run.train_dataset = Broken()
    run.set_save_period(minutes=None)
    watcher = At(0, None)
    with pytest.raises(DataError, match="item 9 of Broken: reading it failed"):
        Trainer(run.config, observers=[watcher]).train()
    assert watcher.last == step_of(run, 9) - 1


class Counted(ReaderLoader):
    """Says how many batches were asked for."""

    asked = 0

    def epoch(self, epoch, first_step=0):
        for batch in super().epoch(epoch, first_step):
            self.asked += 1
            yield batch


def test_nothing_is_read_ahead_of_the_last_step(run, late):
    """What gives the batches may have no more, and wait for ever."""
    run.set_train_steps(3)
    batch = [(np.zeros((3, SIDE, SIDE), np.float32), 1)] * 5
    loader = Counted(lambda: iter([batch] * 9), (3, SIDE, SIDE), num_classes=CLASSES)
    Trainer(run.config, loader=loader).train()
    assert loader.asked == 3


def test_an_epoch_that_is_closed_late_leaves_the_next_one_alone(run, late):
    """As that of a run that an error has ended, when the error is collected."""
    run.set_num_workers(0)
    trainer = Trainer(run.config)
    first, second = trainer._batches(), trainer._batches()
    next(first), next(second)
    first.close()
    trainer._fetch()
    assert trainer._feed._is_fetched and next(second) is not None
    second.close()
    assert trainer._feed is None
