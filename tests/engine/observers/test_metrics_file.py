"""metrics.jsonl: what it holds, across resumed runs, other runs and killed ones."""

from __future__ import annotations

import csv
import errno
import json
import resource
import shutil

import paddle
import pytest

from plsc.distributed.collectives import Collectives
from plsc.engine.observers import metrics_file, metrics_table
from plsc.engine.observers.metrics_file import METRICS_FILE, SUPERSEDED_FILE
from plsc.engine.observers.metrics_table import TABLE_FILE
from plsc.engine.observers.run_notes import NOTES_FILE
from plsc.engine.optimizer import NamedOptimizer
from plsc.engine.trainer import Trainer
from plsc.losses.classifier import Classifier


def read(folder, name=METRICS_FILE):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def steps(folder, event="step", name=METRICS_FILE):
    return [line["step"] for line in read(folder, name) if line["event"] == event]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "output"


@pytest.fixture
def logged(entry):
    """An entry of three steps an epoch, each of which is logged."""
    entry.set_log_period(1)
    return entry


def resume(entry, checkpoint, epochs):
    entry.set_checkpoint_dir(checkpoint)
    entry.set_train_epochs(epochs)
    return entry.train()


def test_a_line_per_logged_step_and_per_verification(logged, output):
    logged.set_calc_acc(True)
    results = logged.train()
    lines = read(output)
    assert [(line["event"], line["step"], line["epoch"]) for line in lines] == [
        ("step", 1, 0),
        ("step", 2, 0),
        ("step", 3, 0),
        ("verify", 3, 0),
    ]
    measured = {
        "images/s",
        "data_wait",
        "host_memory_gb",
        "grad_norm",
        "target_cosine",
        "feature_norm",
        "class_cosine",
        "histograms",
    }
    assert set(lines[0]) == {"event", "step", "epoch", "loss", "lr", "acc1", "acc5"} | measured
    assert lines[2]["loss"] == results["loss"] and lines[2]["acc5"] == results["acc5"]
    assert lines[3]["lfw/accuracy"] == results["lfw/accuracy"]
    assert all(line["images/s"] > 0 for line in lines[:3])
    assert not (output / SUPERSEDED_FILE).exists()


def test_steps_are_logged_at_the_period_and_at_the_end(entry, output):
    entry.set_train_epochs(3)
    entry.set_log_period(4)
    entry.train()
    assert steps(output) == [4, 8, 9]
    assert steps(output, "verify") == [3, 6, 9]


@pytest.mark.parametrize("first", [{"train_epochs": 1}, {"train_epochs": None, "train_steps": 2}])
def test_a_resumed_run_appends_and_no_step_comes_twice(logged, output, first):
    for name, value in first.items():
        setattr(logged, name, value)
    logged.train()
    logged.train_steps = None
    resume(logged, output, 3)
    assert steps(output) == list(range(1, 10))
    assert not (output / SUPERSEDED_FILE).exists()


def test_lines_of_steps_that_are_trained_again_are_kept_apart(logged, output, caplog):
    logged.set_train_epochs(2)
    logged.train()
    before = read(output)
    shutil.move(output / "1", output.parent / "moved")
    resume(logged, output / "0", 3)
    assert steps(output) == list(range(1, 10))
    assert steps(output, "verify") == [3, 6, 9]
    assert read(output)[:4] == before[:4]
    assert read(output, SUPERSEDED_FILE) == before[4:]
    assert "moved 4 lines of later steps, or damaged, to metrics.superseded.jsonl" in caplog.text


@pytest.mark.parametrize("cut", [1, 20, "newline"])
def test_a_line_cut_by_a_kill_harms_nothing(logged, output, cut):
    logged.train()
    path = output / METRICS_FILE
    text = path.read_text()
    if cut == "newline":  # the line is complete, but for its end
        path.write_text(text[:-1])
        kept = 4
    else:
        path.write_text(text + '{"event": "step", "step": 4, "epoch": 1, "loss"'[:cut])
        kept = 4
    resume(logged, output, 2)
    assert steps(output) == list(range(1, 7))
    assert [json.dumps(line) for line in read(output)[:kept]] == text.splitlines()
    assert (output / SUPERSEDED_FILE).exists() == (cut != "newline")


def test_a_killed_run_without_a_checkpoint_begins_the_file_anew_and_loses_no_line(logged, output):
    class Killed(BaseException):
        pass

    trainer = Trainer(logged.config)
    trainer._save = lambda *_: (_ for _ in ()).throw(Killed())
    with pytest.raises(Killed):
        trainer.train()
    before = read(output)
    assert steps(output) == [1, 2, 3]
    logged.train()
    assert steps(output) == [1, 2, 3]
    assert read(output, SUPERSEDED_FILE) == before


def test_the_lines_of_another_run_in_the_folder_are_kept_apart(logged, output, tmp_path):
    """A run that starts from a checkpoint of elsewhere is no continuation of this folder's."""
    logged.train()
    logged.set_model_save_dir(tmp_path / "other")
    logged.train()
    before = read(tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "0")
    resume(logged, output, 2)
    assert steps(tmp_path / "other") == [4, 5, 6]
    assert read(tmp_path / "other", SUPERSEDED_FILE) == before
    assert steps(output) == [1, 2, 3]


def test_a_run_without_a_step_left_leaves_the_file_as_it_is(logged, output):
    logged.set_train_epochs(2)
    logged.train()
    before = (output / METRICS_FILE).read_bytes()
    resume(logged, output / "0", 1)
    assert (output / METRICS_FILE).read_bytes() == before
    assert sorted(path.name for path in output.iterdir()) == ["0", "1", TABLE_FILE, METRICS_FILE, NOTES_FILE]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_null(logged, output, number):
    class Overflowing(Classifier):
        def forward(self, features, labels, *, step=0, count_above=False):
            loss = super().forward(features, labels, step=step, count_above=count_above)
            return paddle.full_like(loss, number) if step == 1 else loss

    config = logged.config
    config.assign(with_test=False, on_nonfinite="skip")
    head = Overflowing(config, Collectives(), make_optimizer=lambda named: NamedOptimizer(config, named))
    Trainer(config, head=head).train()
    text = (output / METRICS_FILE).read_text()
    assert "Infinity" not in text and "NaN" not in text
    assert [line["loss"] is None for line in read(output) if line["event"] == "step"] == [False, True, False]


def test_a_head_may_name_its_metrics_as_it_likes(logged, output):
    class Named(Classifier):
        def accuracy(self):
            return {"step": 77.0, "event": 77.0, "acc1": 0.5}

    config = logged.config
    config.assign(with_test=False, calc_acc=True)
    head = Named(config, Collectives(), make_optimizer=lambda named: NamedOptimizer(config, named))
    Trainer(config, head=head).train()
    assert steps(output) == [1, 2, 3] and read(output)[0]["acc1"] == 0.5


def test_lines_wait_until_the_disk_takes_them(logged, output, monkeypatch, caplog):
    append, calls = metrics_file.append, []

    def fail_twice(path, data):
        calls.append(data)
        if len(calls) in (2, 3):
            raise OSError(errno.ENOSPC, "No space left on device")
        append(path, data)

    monkeypatch.setattr(metrics_file, "append", fail_twice)
    logged.train()
    assert [(line["event"], line["step"]) for line in read(output)] == [
        ("step", 1),
        ("step", 2),
        ("step", 3),
        ("verify", 3),
    ]
    assert len(calls) == 4
    assert caplog.text.count("metrics.jsonl: cannot be written: No space left on device; training goes on") == 1


def test_lines_that_the_disk_never_takes_are_counted(logged, output, monkeypatch, caplog):
    def fail(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics_file, "append", fail)
    logged.train()
    assert read(output) == []
    assert "metrics.jsonl: 4 lines could not be written" in caplog.text


def test_of_a_line_that_does_not_fit_nothing_is_left(tmp_path):
    """The file may grow by five bytes."""
    path = tmp_path / METRICS_FILE
    metrics_file.append(path, b"first line\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        with pytest.raises(OSError):
            metrics_file.append(path, b"second line\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"first line\n"


def table(folder):
    with open(folder / TABLE_FILE, newline="") as file:
        return list(csv.DictReader(file))


def as_cells(lines):
    names = dict.fromkeys(name for line in lines for name in line if name != "histograms")
    return [{name: "" if line.get(name) is None else str(line[name]) for name in names} for line in lines]


def test_the_table_has_the_numbers_of_every_line_across_resumed_runs(logged, output):
    logged.set_train_epochs(2)
    logged.train()
    assert table(output) == as_cells(read(output))
    shutil.move(output / "1", output.parent / "moved")
    resume(logged, output / "0", 3)
    rows = table(output)
    assert rows == as_cells(read(output))
    assert [row["step"] for row in rows if row["event"] == "step"] == [str(number) for number in range(1, 10)]
    assert rows[0]["lfw/accuracy"] == "" and rows[3]["loss"] == "" and float(rows[3]["lfw/pairs"]) == 20


def test_the_table_of_a_run_that_had_none_is_made_when_it_resumes(logged, output):
    logged.train()
    (output / TABLE_FILE).unlink()
    resume(logged, output, 2)
    assert table(output) == as_cells(read(output))


def test_a_table_that_the_disk_does_not_take_is_made_anew(logged, output, monkeypatch, caplog):
    append, calls = metrics_table.append, []

    def fail_once(path, data):
        calls.append(data)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(path, data)

    monkeypatch.setattr(metrics_table, "append", fail_once)
    logged.set_train_epochs(2)
    logged.train()
    assert calls and table(output) == as_cells(read(output))
    assert caplog.text.count("metrics.csv: cannot be written: No space left on device") == 1
