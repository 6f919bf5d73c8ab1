"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from plsc import CheckpointError, Interrupted, TrainingError
from plsc.checkpoint import Part, list_checkpoints, reader
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.engine import saver, snapshot
from plsc.engine.dataloading import build_dataloader
from plsc.engine.observers import Observer
from plsc.engine.saver import Notices
from plsc.engine.tensor_rows import TensorRows
from plsc.engine.trainer import Trainer
from plsc.errors import NotSavedError
from tests._support.checkpoints import assert_equal, contents, names
from tests._support.memory import Taken
from tests._support.ranks import launch


class Events(Observer):
    """What an observer is told, in order."""

    def __init__(self):
        self.seen = []

    def on_step(self, step):
        self.seen.append(("step", step.number))

    def on_verify(self, step, results):
        self.seen.append(("verify", step.number))

    def on_save(self, step, path):
        assert (path / "manifest.json").is_file()
        assert np.isfinite(step.values["loss"])
        self.seen.append((path.name, step.number))


@pytest.fixture
def by_steps(entry):
    """Two epochs of six steps; a checkpoint every second step."""
    entry.set_train_batch_size(5)
    entry.set_train_epochs(2)
    entry.set_with_test(False)
    entry.set_save_period(steps=2, minutes=None, keep=50)
    return entry


class Gate:
    """Holds back `write_parts` until it is opened."""

    def __init__(self, monkeypatch):
        self.open = threading.Event()
        write = saver.write_parts

        def write_when_open(*arguments, **options):
            assert self.open.wait(60)
            write(*arguments, **options)

        monkeypatch.setattr(saver, "write_parts", write_when_open)


def test_checkpoints_are_saved_by_steps(by_steps):
    by_steps.set_async_save(False)
    by_steps.train()
    assert names(by_steps.model_save_dir) == ["0.2", "0.4", "0", "1.2", "1.4", "1"]


def test_checkpoints_are_saved_by_time(by_steps, monkeypatch):
    by_steps.set_async_save(False)
    by_steps.set_save_period(minutes=1, keep=50)
    now = iter(range(0, 10_000_000, 35))  # seconds; asked at most twice a step
    monkeypatch.setattr(saver.time, "monotonic", lambda: next(now))
    by_steps.train()
    assert len(names(by_steps.model_save_dir)) > 3
    assert names(by_steps.model_save_dir)[-1] == "1"


@pytest.mark.parametrize("mode, copies", [(True, True), (False, False), ("auto", True)])
def test_a_checkpoint_holds_one_step_whatever_the_next_steps_change(by_steps, tmp_path, monkeypatch, mode, copies):
    """Its writing begins three steps later, where it is a copy that is written."""
    by_steps.set_train_steps(6)
    by_steps.set_save_period(minutes=None)
    by_steps.train()  # the expected state after step 2 is that of a run that ends there
    shutil.move(by_steps.model_save_dir, tmp_path / "whole")
    by_steps.set_train_steps(2)
    by_steps.train()
    shutil.move(by_steps.model_save_dir, tmp_path / "short")

    gate = Gate(monkeypatch)

    class Opens(Observer):
        def on_step(self, step):
            if step.number == 5 or not copies:
                gate.open.set()

    by_steps.set_train_steps(6)
    by_steps.set_save_period(steps=2, minutes=None)
    by_steps.set_async_save(mode)
    by_steps.add_observer(Opens())
    by_steps.train()
    assert_equal(contents(tmp_path / "output" / "0.2"), contents(tmp_path / "short" / "0.2"))
    assert_equal(contents(tmp_path / "output" / "0"), contents(tmp_path / "whole" / "0"))


def test_a_save_that_is_due_waits_for_the_one_under_way(by_steps, monkeypatch):
    gate, events = Gate(monkeypatch), Events()

    class Opens(Observer):
        def on_step(self, step):
            if step.number == 5:
                gate.open.set()

    by_steps.set_train_epochs(1)
    by_steps.set_async_save(True)
    by_steps.add_observer(Opens())
    by_steps.add_observer(events)
    by_steps.train()
    saved = names(by_steps.model_save_dir)
    assert saved[0] == "0.2" and saved[-1] == "0" and "0.4" not in saved
    assert events.seen.index(("0.2", 2)) > events.seen.index(("step", 5))


def test_observers_get_the_checkpoint_of_an_epoch_after_its_verification(entry):
    for mode in (True, False):
        events = Events()
        entry.set_async_save(mode)
        entry.set_model_save_dir(f"{entry.model_save_dir}{mode}")
        Trainer(entry.config, observers=[events]).train()
        assert events.seen[-2:] == [("verify", 3), ("0", 3)]


def test_observers_get_a_checkpoint_before_the_next_one_takes_its_place(by_steps, monkeypatch):
    """Also where the run is stopped while the former one is written: of one checkpoint within an epoch, one is kept."""
    gate, events = Gate(monkeypatch), Events()

    class Stops(Observer):
        def on_step(self, step):
            if step.number == 4:
                os.kill(os.getpid(), signal.SIGUSR1)
            if step.number == 5:
                gate.open.set()

    by_steps.set_save_period(steps=2, minutes=None, keep=1)
    with pytest.raises(Interrupted):
        Trainer(by_steps.config, observers=[events, Stops()]).train()
    assert [seen for seen in events.seen if seen[0] != "step"] == [("0.2", 2), ("0.5", 5)]
    assert names(by_steps.model_save_dir) == ["0.5"]


def test_a_save_that_fails_costs_no_training(by_steps, monkeypatch, caplog):
    """The next try is soon; what was begun is removed."""
    write, calls = saver.write_parts, []

    def fail_twice(folder, *arguments, **options):
        calls.append(folder.name)
        if len(calls) <= 2:
            raise CheckpointError("no space left on device")
        write(folder, *arguments, **options)

    monkeypatch.setattr(saver, "write_parts", fail_twice)
    monkeypatch.setattr(saver, "_RETRY_SECONDS", 0.0)
    by_steps.set_async_save(False)
    by_steps.train()
    assert calls[:3] == ["0.2", "0.3", "0.4"]
    assert names(by_steps.model_save_dir) == ["0.4", "0", "1.2", "1.4", "1"]
    assert caplog.text.count("no space left on device; another try follows") == 2
    assert not list(Path(by_steps.model_save_dir).glob(".*"))


def test_a_run_whose_last_save_fails_tries_again_and_has_a_status_of_its_own(by_steps, monkeypatch):
    def fail(*arguments, **options):
        raise CheckpointError("no space left on device")

    slept = []
    monkeypatch.setattr(saver.time, "sleep", slept.append)
    write = saver.write_parts
    monkeypatch.setattr(saver, "write_parts", fail)
    by_steps.set_train_epochs(1)
    with pytest.raises(NotSavedError, match="0 was not written: no space left on device; no further try") as raised:
        by_steps.train()
    assert raised.value.code == 74
    assert sum(slept) == 1800
    slept.clear()
    monkeypatch.setattr(saver.time, "sleep", lambda seconds: monkeypatch.setattr(saver, "write_parts", write))
    by_steps.train()
    assert names(by_steps.model_save_dir) == ["0"]


def test_too_little_space_is_found_before_training_and_before_each_save(by_steps, monkeypatch, caplog):
    usage = shutil.disk_usage(by_steps.dataset_dir)
    free = [1000]
    monkeypatch.setattr(saver.shutil, "disk_usage", lambda path: usage._replace(free=free[0]))
    with pytest.raises(CheckpointError, match=r"has 1000 bytes of free space, and a checkpoint takes .* MiB"):
        Trainer(by_steps.config)
    free[0] = usage.free

    class Fills(Observer):
        def on_step(self, step):
            free[0] = 1000 if step.number < 6 else usage.free

    by_steps.set_train_epochs(1)
    Trainer(by_steps.config, observers=[Fills()]).train()
    assert caplog.text.count("has 1000 bytes of free space") == 2
    assert names(by_steps.model_save_dir) == ["0"]


def test_an_error_loses_no_checkpoint_under_way(by_steps, monkeypatch):
    gate = Gate(monkeypatch)

    class Fails(Observer):
        def on_step(self, step):
            if step.number == 4:
                threading.Timer(0.2, gate.open.set).start()
                raise ValueError("on purpose")

    by_steps.set_async_save(True)
    by_steps.add_observer(Fails())
    with pytest.raises(TrainingError, match="on purpose"):
        by_steps.train()
    assert names(by_steps.model_save_dir) == ["0.2"]


def test_numbers_that_are_not_finite_stop_training(by_steps, monkeypatch):
    trainer = Trainer(by_steps.config)
    state = trainer.head.state

    def broken():
        return {name: value * float("nan") for name, value in state().items()}

    monkeypatch.setattr(trainer.head, "state", broken)
    with pytest.raises(CheckpointError, match=r"0.2 was not written: head.weight holds nan in row 0"):
        trainer.train()
    assert not names(by_steps.model_save_dir)


def make_saver(entry, **settings):
    entry.config.assign(**settings)
    return saver.Saver(entry.config, Collectives())


@pytest.mark.parametrize("free, copies", [(10_000, True), (9_000, False)])
def test_a_copy_takes_most_of_the_free_memory_or_none(entry, monkeypatch, caplog, free, copies):
    monkeypatch.setattr(snapshot, "shared_memory", lambda: free)
    part = Part("weight", np.zeros([8_000], np.uint8))
    made = snapshot.Snapshot(entry.config, Collectives())
    for _ in range(2):
        assert (made.copy([part]) is not None) is copies
    assert caplog.text.count("training goes on while" if copies else "training waits while") == 1


class Ranks(Collectives):
    """Collectives of one rank that gets what others have told as well."""

    def __init__(self, told):
        super().__init__()
        self._told = told

    def gather_objects(self, value):
        return [value, *self._told]


def told(size, kept_elsewhere="", **pools):
    return snapshot._Needs(size, pools, kept_elsewhere)


@pytest.mark.parametrize(
    "mode, others, reason",
    [
        ("auto", [told(7_000, own=20_000)], ""),
        ("auto", [told(9_000, own=20_000)], "a copy takes 16.6 KiB on own, where 19.5 KiB of memory is free"),
        ("on", [told(9_000, own=20_000)], ""),
        ("auto", [told(1_000, own=9_000)], "a copy takes 8.79 KiB on own, where 8.79 KiB of memory is free"),
        ("auto", [told(9_000, other=20_000), told(9_000, third=20_000)], ""),
        ("auto", [told(9_000, other=20_000), told(9_000, other=20_000)], "a copy takes 17.6 KiB on other, where 19.5"),
        ("auto", [told(900, own=20_000, process=1_000)], "a copy takes 900 bytes on process, where 1000 bytes of "),
        ("auto", [told(1_000, "head.weight", own=20_000)], "head.weight is not kept in memory, so no copy"),
        ("on", [told(1_000, "head.weight", own=20_000)], "head.weight is not kept in memory, so no copy"),
        ("off", [told(1_000, own=20_000)], r"set_async_save(False) asks for it"),
    ],
)
def test_one_rank_without_memory_is_enough_for_all_to_wait(entry, monkeypatch, caplog, mode, others, reason):
    monkeypatch.setattr(snapshot, "shared_memory", lambda: 20_000)
    monkeypatch.setattr(snapshot.socket, "gethostname", lambda: "own")
    entry.config.assign(async_save=mode)
    part = Part("weight", np.zeros([8_000], np.uint8))
    with caplog.at_level("INFO", "plsc"):
        made = snapshot.Snapshot(entry.config, Ranks(others))
        monkeypatch.setattr(snapshot, "agree", lambda action, *arguments, **options: action())
        assert (made.copy([part]) is None) is bool(reason)
    assert f"training waits while checkpoints are written: {reason}" in caplog.text or not reason
    assert caplog.text.count("while checkpoints are written") == 1


def test_the_limit_of_a_process_counts(entry, monkeypatch, caplog):
    monkeypatch.setattr(snapshot, "process_memory", lambda: 9_000)
    made = snapshot.Snapshot(entry.config, Collectives())
    assert made.copy([Part("weight", np.zeros([8_000], np.uint8))]) is None
    assert "within the limit of the process of rank 0 (ulimit), where 8.79 KiB of memory is free" in caplog.text


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_rows_that_may_not_be_copied_are_written_from_where_they_are(by_steps, monkeypatch, caplog, mode):
    by_steps.set_async_save(mode)
    by_steps.set_train_epochs(1)
    by_steps.set_center_location("disk")
    monkeypatch.setattr(snapshot.Snapshot, "_reserve", lambda *arguments: pytest.fail("memory is taken"))
    by_steps.train()
    assert names(by_steps.model_save_dir) == ["0.2", "0.4", "0"]
    assert caplog.text.count("training waits while checkpoints are written: head.weight is not kept in memory") == 1


@pytest.mark.parametrize("is_copied", [True, False])
def test_a_save_without_a_copy_takes_memory_for_a_block(by_steps, monkeypatch, is_copied):
    monkeypatch.setattr(reader, "BLOCK_BYTES", 1 << 16)
    rows = [paddle.ones([40_000, 16]), paddle.ones([40_000, 16], "bfloat16"), paddle.ones([40_000, 16], "int8")]
    parts = [Part(f"head.{number}", TensorRows(tensor)) for number, tensor in enumerate(rows)]
    made = make_saver(by_steps, async_save="on" if is_copied else "off")
    step, size = SimpleNamespace(number=1), 40_000 * 16 * 7
    with Taken() as taken:
        made.start(step, "0.1", parts=lambda: parts, about={}, prunes=False)
        made.finish()
    assert names(by_steps.model_save_dir) == ["0.1"]
    assert taken.bytes > size if is_copied else taken.bytes < size / 4


def test_a_signal_while_training_waits_for_a_save_stops_with_that_checkpoint(by_steps, monkeypatch):
    write, events = saver.write_parts, Events()

    def signal_and_write(*arguments, **options):
        os.kill(os.getpid(), signal.SIGUSR1)
        write(*arguments, **options)

    monkeypatch.setattr(saver, "write_parts", signal_and_write)
    by_steps.set_async_save(False)
    with pytest.raises(Interrupted):
        Trainer(by_steps.config, observers=[events]).train()
    assert events.seen == [("step", 1), ("step", 2), ("0.2", 2)]


def test_a_signal_while_training_waits_for_the_checkpoint_of_an_epoch_stops_with_it(by_steps, monkeypatch):
    complete, events = saver.complete, Events()

    def signal_and_complete(*arguments, **options):
        os.kill(os.getpid(), signal.SIGUSR1)
        complete(*arguments, **options)

    monkeypatch.setattr(saver, "complete", signal_and_complete)
    by_steps.set_save_period(minutes=None)
    by_steps.set_async_save(False)
    with pytest.raises(Interrupted):
        Trainer(by_steps.config, observers=[events]).train()
    assert events.seen == [*(("step", step) for step in range(1, 7)), ("0", 6)]


def test_the_memory_for_a_copy_is_that_of_all_that_is_saved(by_steps, monkeypatch):
    """The optimizers that Paddle has get their state in the first step that moves something."""
    by_steps.loss_type = "arcface"
    by_steps.set_optimizer(functools.partial(paddle.optimizer.Adam, weight_decay=1e-4))
    wanted, prepare = [], snapshot.Snapshot.prepare
    monkeypatch.setattr(
        snapshot.Snapshot, "prepare", lambda self, layouts: (wanted.append(dict(layouts)), prepare(self, layouts))
    )
    trainer = Trainer(by_steps.config)
    trainer.train()
    assert len(wanted) == 1
    assert wanted[0] == snapshot.layouts(trainer._contents.parts({}))


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_copy_is_of_the_time_when_it_is_made(entry, is_prepared):
    value, number = np.random.default_rng(0).standard_normal([3000, 7]), np.float32(3)
    parts = [Part("weight", value.copy()), Part("number", number), Part("none", np.zeros([0, 7]))]
    made = snapshot.Snapshot(entry.config, Collectives())
    if is_prepared:
        made.prepare(snapshot.layouts(parts[:2]))
    assert made.is_prepared is is_prepared
    copies = made.copy(parts)
    parts[0].data[:] = 0
    assert made.is_prepared and [copy.name for copy in copies] == ["weight", "number", "none"]
    assert np.array_equal(copies[0].data, value) and copies[1].data == number


def test_without_memory_no_copy_is_made(entry, monkeypatch, caplog):
    def fail(*arguments):
        raise MemoryError("unable to allocate 2.0 GiB")

    part = Part("weight", np.zeros([8]))
    monkeypatch.setattr(snapshot.np, "empty", fail)
    made = snapshot.Snapshot(entry.config, Collectives())
    made.prepare(snapshot.layouts([part]))
    monkeypatch.undo()
    assert made.copy([part]) is None
    assert (
        caplog.text.count("training waits while checkpoints are written: no memory for a copy: MemoryError: unable")
        == 1
    )


def test_a_rank_is_ready_when_its_thread_is(entry):
    made = make_saver(entry)
    assert made.notices() == Notices()
    made._save = saver._Save(None, None, {}, False)
    event = threading.Event()
    made._save.run(lambda: event.wait(60))
    assert made.notices() == Notices()
    event.set()
    made._save.thread.join()
    assert made.notices() == Notices(ready=1.0)
    made._save.run(lambda: 1 / 0)
    made._save.thread.join()
    assert made.notices() == Notices(ready=1.0, failed=1.0)


LEAN = {"center_storage": "bfloat16", "momentum_storage": "int8"}


def train(ranks, folder, **settings):
    settings = {
        "model": "batch norm",
        "train_epochs": 3,
        "num_workers": 0,
        "model_save_dir": str(folder / "output"),
        "train_batch_size": 12 // ranks,
        "save_minutes": None,
        "save_keep": 50,
        **settings,
    }
    folder.mkdir(parents=True, exist_ok=True)
    launch(ranks, "train_worker.py", json.dumps(settings), log_dir=folder / "log")
    return folder / "output"


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_resuming_from_any_checkpoint_within_an_epoch_equals_never_having_stopped(ranks, tmp_path):
    """Also where the network is verified, which averages its running statistics over ranks."""
    settings = {"verify": True, "test_period": 3}
    whole = train(ranks, tmp_path / "whole", **settings)
    saved = train(ranks, tmp_path / "saved", save_steps=2, **settings)
    assert_equal(contents(saved / "2"), contents(whole / "2"))
    within = [path for path in list_checkpoints(saved) if "." in path.name]
    assert len(within) >= 3
    for path in (within[0], within[-1]):
        folder = tmp_path / path.name
        resumed = train(ranks, folder, checkpoint_dir=str(path), **settings)
        assert_equal(contents(resumed / "2"), contents(whole / "2"))


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("ranks, lean", [(1, {}), (2, LEAN), (3, LEAN)])
def test_a_checkpoint_that_is_written_without_a_copy_has_the_same_bytes(ranks, lean, tmp_path):
    """One rank alone has too little memory. A run resumed from it ends with these bytes, too."""
    settings = {"loss_type": "dist_arcface", "save_steps": 2, **lean}
    copied = train(ranks, tmp_path / "copied", async_save="on", **settings)
    direct = train(ranks, tmp_path / "direct", free=[ranks - 1, 1000], **settings)
    logs = "".join(path.read_text() for path in tmp_path.glob("direct/log/workerlog.*"))
    assert logs.count("training waits while checkpoints are written: a copy takes") == 1
    assert names(direct) == ["0.2", "0.4", "0", "1.1", "1.3", "1", "2.2", "2.4", "2"]
    both = set(names(direct)) & set(names(copied))
    assert len(both) > 3
    for name in both:
        assert bytes_of(direct / name) == bytes_of(copied / name)
    resumed = train(
        ranks,
        tmp_path / "resumed",
        not_copied=ranks - 1,
        async_save="on",
        checkpoint_dir=str(direct / "1.1"),
        **settings,
    )
    logs = "".join(path.read_text() for path in tmp_path.glob("resumed/log/workerlog.*"))
    assert logs.count("training waits while checkpoints are written: head.weight is not kept in memory") == 1
    assert bytes_of(resumed / "2") == bytes_of(direct / "2")


def bytes_of(path):
    return {file.name: file.read_bytes() for file in path.glob("*.safetensors")}


@pytest.mark.slow
@pytest.mark.ranks
def test_a_rank_that_writes_for_longer_than_the_time_limit_hangs_not(tmp_path):
    saved = train(2, tmp_path, async_save="off", train_epochs=1, slow=[1, 8.0], rank_timeout=0.1)
    assert names(saved) == ["0"]


def test_a_loader_is_not_asked_twice_for_a_batch(by_steps):
    """A run that is stopped and resumed at each step sees the batches of one that is not."""
    by_steps.set_train_steps(5)
    whole = [batch.labels.tolist() for batch in build_dataloader(by_steps.config, Topology()).epoch(0)]
    loader, seen = build_dataloader(by_steps.config, Topology()), []
    for step in range(6):
        seen.append(next(loader.epoch(0, step)).labels.tolist())
    assert seen == whole
