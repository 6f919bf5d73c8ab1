"""Runs that resume, and what a run is checked for before its first step."""

from __future__ import annotations

import functools
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest

from plsc import CheckpointError
from plsc.engine.trainer import Trainer
from plsc.losses.margins.combined import CombinedMargin
from tests._support.resuming import train_and_resume


def test_resume_goes_on_after_the_last_epoch(entry, tmp_path):
    entry.train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(3)
    entry.train()
    assert sorted(path.name for path in (tmp_path / "output").iterdir() if path.is_dir()) == ["0", "1", "2"]


def test_a_run_that_resumes_with_another_global_batch_keeps_its_schedule_and_logs_its_last_step(entry, tmp_path):
    entry.set_lr("cosine")
    entry.set_train_batch_size(5)
    entry.set_train_epochs(2)
    entry.train()  # 12 steps
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_batch_size(10)
    entry.set_train_epochs(3)
    results = entry.train()  # 3 steps: 13 to 15
    line = json.loads((tmp_path / "output" / "metrics.jsonl").read_text().splitlines()[-2])
    assert (line["event"], line["step"]) == ("step", 15)
    assert results["lr"] == pytest.approx(0.1 * 10 / 1024 * (1 + np.cos(np.pi * 14 / 15)) / 2)


def test_missing_checkpoint(entry, tmp_path):
    entry.set_checkpoint_dir(tmp_path / "none")
    with pytest.raises(CheckpointError, match="does not exist; expected a folder with manifest.json"):
        entry.train()


def test_a_new_run_refuses_a_folder_of_older_checkpoints(entry):
    entry.train()
    with pytest.raises(CheckpointError, match=r"output/0 is a checkpoint of later training.*set_auto_resume\(True\)"):
        entry.train()


def test_a_folder_that_checkpoints_cannot_be_written_to_is_found_before_the_first_step(entry, tmp_path):
    (tmp_path / "file").write_text("")
    entry.set_model_save_dir(str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="file: checkpoints cannot be written there: File exists"):
        entry.train()


def foreign_file(path):
    path.write_text("notes")


def broken_link(path):
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [Path.mkdir, foreign_file, broken_link])
@pytest.mark.parametrize("name", ["0", "1"])
def test_what_stands_where_a_checkpoint_will_be_saved_is_found_before_the_first_step(entry, tmp_path, make, name):
    entry.set_train_epochs(2)
    (tmp_path / "output").mkdir()
    make(tmp_path / "output" / name)
    with pytest.raises(
        CheckpointError, match=f"output/{name} exists and is no checkpoint, .*move it away, or choose an"
    ):
        Trainer(entry.config)


@pytest.mark.parametrize("name", ["1", "0.3", "2.1"])
def test_within_an_epoch_the_name_of_the_last_checkpoint_is_looked_at_too(entry, tmp_path, name):
    """Seven steps of three per epoch: 0, 1 and 2.1."""
    entry.set_train_steps(7)
    (tmp_path / "output" / name).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=f"output/{name} exists and is no checkpoint"):
        Trainer(entry.config)


def test_a_run_that_resumes_looks_at_the_names_that_it_will_need(entry, tmp_path):
    entry.train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(3)
    output = tmp_path / "output"
    for name in ("3", "2024", "notes", ".hidden"):
        (output / name).mkdir()  # of no epoch of this run
    Trainer(entry.config)
    (output / "1").mkdir()
    with pytest.raises(CheckpointError, match="output/1 exists and is no checkpoint"):
        Trainer(entry.config)
    shutil.copytree(output / "0", output / "1", dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match="output/1 exists and is a checkpoint that was saved under another name"):
        Trainer(entry.config)
    shutil.rmtree(output / "1")
    entry.train()
    entry.set_checkpoint_dir(output / "0")
    with pytest.raises(CheckpointError, match="output/2 is a checkpoint of later training than this run starts from"):
        Trainer(entry.config)


def test_a_folder_that_refuses_a_file_is_found_before_the_first_step(entry, tmp_path):
    """No file may grow beyond 10 bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(
            CheckpointError, match="output: checkpoints cannot be written there: .*choose another folder"
        ):
            Trainer(entry.config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "output").iterdir()) == []
    Trainer(entry.config)._lock.release()
    assert list((tmp_path / "output").iterdir()) == []


def test_a_run_that_is_done_needs_no_folder_to_write_to(entry, tmp_path):
    entry.train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_model_save_dir("/proc/none")
    entry.train()


def within_an_epoch(entry, data_dir):
    entry.set_with_test(False)
    entry.set_train_steps(2)
    entry.train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_steps(4)
    return data_dir / "label.txt"


def test_an_epoch_resumes_without_a_warning_where_nothing_was_changed(entry, data_dir, caplog):
    within_an_epoch(entry, data_dir)
    entry.train()
    assert "was started with different settings" not in caplog.text


def test_an_epoch_that_resumes_with_other_images_or_settings_is_warned_of(entry, data_dir, tmp_path, caplog):
    listed = within_an_epoch(entry, data_dir)
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[:25]))
    entry.set_seed(5)
    entry.set_train_batch_size(8)
    entry.train()
    assert (
        "epoch 0 was started with different settings (images 30 -> 25; seed 0 -> 5; global batch 8, which does not "
        "divide the 20 images done)"
    ) in caplog.text


def test_an_epoch_that_resumes_on_classes_in_another_order_is_warned_of(entry, data_dir, caplog):
    (data_dir / "classes.txt").write_text("a\nb\nc\nd\ne\nf\n")
    within_an_epoch(entry, data_dir)
    (data_dir / "classes.txt").write_text("b\na\nc\nd\ne\nf\n")
    entry.set_class_change("by_name")
    entry.train()
    assert "epoch 0 was started with different settings (other classes, or in another order)" in caplog.text


def test_an_epoch_without_images_left_is_complete(entry, data_dir, tmp_path, caplog):
    listed = within_an_epoch(entry, data_dir)
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[:12]))
    entry.train()
    assert "images 30 -> 12" in caplog.text
    assert sorted(path.name for path in (tmp_path / "output").iterdir() if path.is_dir()) == ["0.2", "1"]


def test_a_reader_resumes_whatever_its_batches_are(entry, tmp_path, caplog):
    def reader():
        for start in range(0, 30, 5):
            yield [(np.full((3, 16, 16), n / 30, np.float32), n % 6) for n in range(start, start + 5)]

    entry.train_reader = reader
    entry.set_train_image_num(30)
    entry.set_with_test(False)
    entry.set_train_steps(4)
    entry.train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_seed(3)
    entry.set_train_steps(6)
    entry.train()
    assert "was started with different settings" not in caplog.text
    assert sorted(path.name for path in (tmp_path / "output").iterdir() if path.is_dir()) == ["0.4", "0.6"]


def test_another_loss_margin_learning_rate_or_optimizer_than_before_is_told_with_both_values(entry, caplog):
    train_and_resume(entry).set_loss_type("dist_cosface")
    entry.set_lr(0.3)
    entry.set_scale(32)
    entry.set_train_batch_size(5)
    entry.set_optimizer(functools.partial(paddle.optimizer.Momentum, momentum=0.8))
    entry.train()
    assert (
        "output/0 was trained with other settings than this run: loss_type dist_arcface -> dist_cosface; margins (1.0, "
        "0.5, 0.0) -> (1.0, 0.0, 0.35); scale 16.0 -> 32.0; lr 0.1 -> 0.3; optimizer momentum -> "
        "paddle.optimizer.momentum.Momentum(momentum=0.8); global batch 10 -> 5"
    ) in caplog.text


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda entry: entry.set_margin(0.3), "margins (1.0, 0.5, 0.0) -> (1.0, 0.3, 0.0)"),
        (lambda entry: entry.set_lr("cosine"), "lr_schedule step -> cosine"),
        (lambda entry: entry.set_label_smoothing(0.1), "label_smoothing 0.0 -> 0.1"),
        (lambda entry: entry.set_margin_warmup(9), "margin_warmup 0 -> 9"),
        (lambda entry: entry.set_class_weights([2.0] * entry.num_classes), "class_weights  -> 6 numbers ("),
        (lambda entry: entry.set_lr(Constant(0.1)), "lr_schedule step -> Constant"),
        (
            lambda entry: entry.set_pixel_normalization(120, 60),
            "pixel_mean [127.5, 127.5, 127.5] -> [120.0, 120.0, 120.0]",
        ),
        (
            lambda entry: entry.set_loss_type(CombinedMargin(1.0, 0.2, 0.0)),
            "margin_function None -> plsc.losses.margins.",
        ),
    ],
)
def test_each_setting_that_decides_a_step_is_compared(entry, caplog, change, words):
    change(train_and_resume(entry))
    entry.train()
    assert words in caplog.text


def test_the_parameters_of_a_loss_are_compared(entry, caplog):
    entry.set_loss_type("dist_adaface")
    entry.set_loss_options(h=0.333)
    entry = train_and_resume(entry)
    entry.set_loss_options()  # the same, by default
    entry.train()
    assert "other settings" not in caplog.text
    entry.set_loss_options(h=0.5)
    entry.set_train_epochs(3)
    entry.train()
    expected = "loss_options {'m': 0.4, 'h': 0.333, 'average': 0.01} -> {'m': 0.4, 'h': 0.5, 'average': 0.01}"
    assert expected in caplog.text


class Constant:
    def __init__(self, value):
        self.value = value

    def __call__(self, step):
        return self.value


def test_what_does_not_decide_a_step_is_not_compared(entry, caplog):
    train_and_resume(entry).set_loss_type("dist_arcface", margin2=0.5)  # the default, written out
    entry.set_num_workers(1)
    entry.set_log_period(1)
    entry.train()
    assert "other settings" not in caplog.text


def test_another_end_of_a_schedule_that_depends_on_it_is_told(entry, caplog):
    entry.set_lr("cosine")
    train_and_resume(entry).train()
    assert "than this run: end 1 epoch -> 2 epochs" in caplog.text
