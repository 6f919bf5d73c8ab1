"""One command that begins a run or goes on with it, whatever state it finds."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle
import pytest

import plsc
from plsc import CheckpointError, DistributedError, StorageError
from plsc.checkpoint import Checkpoint, list_checkpoints
from plsc.engine import auto_resume, verifier
from plsc.engine.about import METRICS, About, read_metrics, saved_settings, write_metrics
from plsc.engine.observers import Observer
from plsc.engine.resume import refuse_changes, saved_objects
from plsc.engine.trainer import Trainer
from plsc.losses.margins.combined import CombinedMargin
from tests._support.manifests import edit_manifest
from tests._support.ranks import WORKERS, launch, run


@pytest.fixture
def automatic(entry):
    """An entry of two epochs of three steps each, which begins or goes on."""
    entry.set_auto_resume(True)
    entry.set_train_epochs(2)
    return entry


@pytest.fixture
def output(tmp_path):
    return tmp_path / "output"


def tensors(folder):
    saved = Checkpoint(folder)
    return {name: saved.read(name) for name in saved.names()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_the_same_script_begins_a_run_and_goes_on_with_it(automatic, output, tmp_path):
    results = automatic.train()
    whole = tensors(output)
    shutil.rmtree(output / "1")
    automatic.train()
    assert_same(tensors(output), whole)
    assert {"loss", "lr", "lfw/accuracy", "images/s"} <= results.keys()


def test_a_run_that_has_ended_says_so_and_returns_its_last_values(automatic, output, caplog):
    results = automatic.train()
    before = {path: path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}
    del results["images/s"]
    caplog.clear()
    assert automatic.train() == results
    assert "nothing is left to train after 6 steps" in caplog.text
    assert {path: path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()} == before


def test_a_resumed_run_starts_from_the_values_of_its_checkpoint(automatic, output):
    """Also from those that only a verification of its own gives."""
    automatic.train()
    shutil.rmtree(output / "1")
    automatic.set_with_test(False)
    assert automatic.train()["lfw/pairs"] == 20


def flip(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut(folder):
    path = next(folder.glob("classes-*"))
    path.write_bytes(path.read_bytes()[:-1])


def remove_a_file(folder):
    (folder / "model.safetensors").unlink()


def cut_the_manifest(folder):
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])


def change_the_manifest(folder):
    """One byte, so that it still is JSON and says that it belongs to another epoch."""
    path = folder / "manifest.json"
    data = path.read_bytes()
    assert data.count(b'"epoch": 2,') == 1
    path.write_bytes(data.replace(b'"epoch": 2,', b'"epoch": 9,'))


def empty_the_manifest(folder):
    (folder / "manifest.json").write_bytes(b"")


DAMAGES = [flip, cut, remove_a_file, cut_the_manifest, change_the_manifest, empty_the_manifest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_training_goes_on_from_the_one_before(automatic, output, damage, caplog):
    automatic.train()
    whole = tensors(output)
    damage(output / "1")
    (output / "1.damaged").mkdir()
    automatic.train()
    assert f"{output / '1'} is damaged: " in caplog.text
    assert (
        f"Training goes on from {output / '0'}; the damaged checkpoint stays as {output / '1.damaged.1'}" in caplog.text
    )
    assert names(output) == ["0", "1", "1.damaged", "1.damaged.1"]
    assert_same(tensors(output), whole)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in lines] == [("verify", 3), ("step", 6), ("verify", 6)]


def test_where_all_checkpoints_are_damaged_nothing_is_changed(automatic, output):
    automatic.train()
    flip(output / "0")
    cut(output / "1")
    with pytest.raises(CheckpointError) as error:
        automatic.train()
    assert "no checkpoint of this run is whole, and nothing was changed: 1: " in str(error.value)
    assert "; 0: " in str(error.value) and "move the folder away" in str(error.value)
    assert names(output) == ["0", "1"]


def test_a_disk_that_fails_is_no_damage(automatic, output, monkeypatch):
    automatic.train()

    def fail(saved, topology):
        with auto_resume._storage_apart(saved.path):
            try:
                raise OSError(5, "Input/output error")
            except OSError as error:
                raise CheckpointError("cannot be read") from error

    monkeypatch.setattr(auto_resume, "_verify", fail)
    with pytest.raises(StorageError, match="output/1: cannot be read: Input/output error. The checkpoint may be whole"):
        automatic.train()
    assert names(output) == ["0", "1"]


def test_a_checkpoint_of_a_newer_version_is_no_damage(automatic, output):
    automatic.train()
    edit_manifest(output / "1", lambda manifest: manifest.update(version=9))
    with pytest.raises(CheckpointError, match="output/1: a newer version of PLSC wrote it .format version 9"):
        automatic.train()
    assert names(output) == ["0", "1"]


def test_training_begins_from_a_named_checkpoint_and_goes_on_from_its_own(automatic, output, tmp_path, caplog):
    automatic.train()
    automatic.set_train_epochs(3)
    automatic.set_checkpoint_dir(output)
    automatic.set_model_save_dir(tmp_path / "other")
    automatic.train()
    assert names(tmp_path / "other") == ["2"]
    assert f"{tmp_path / 'other'} holds no checkpoint: training begins from {output}" in caplog.text
    automatic.set_train_epochs(4)
    automatic.train()
    assert names(tmp_path / "other") == ["2", "3"]
    assert f"{output} is not loaded: training goes on from {tmp_path / 'other' / '2'}" in caplog.text


def test_naming_the_folder_itself_changes_nothing(automatic, output):
    automatic.set_checkpoint_dir(output)
    automatic.train()
    automatic.set_train_epochs(3)
    automatic.train()
    assert names(output) == ["0", "1", "2"]


def test_without_it_an_empty_folder_and_a_used_one_lead_to_the_setting(entry, output):
    entry.set_checkpoint_dir(output)
    with pytest.raises(CheckpointError, match=r"to begin where there is no checkpoint.*set_auto_resume\(True\)"):
        entry.train()
    entry.set_checkpoint_dir("")
    entry.train()
    with pytest.raises(CheckpointError, match=r"later training than this run starts from; .*set_auto_resume\(True\)"):
        entry.train()


def test_the_environment_asks_for_it(entry, output, monkeypatch):
    monkeypatch.setenv("PLSC_AUTO_RESUME", "1")
    entry.train()
    entry.train()
    assert names(output) == ["0"]
    monkeypatch.setenv("PLSC_AUTO_RESUME", "0")
    with pytest.raises(CheckpointError, match="later training"):
        entry.train()
    monkeypatch.setenv("PLSC_AUTO_RESUME", "yes")
    with pytest.raises(DistributedError, match="PLSC_AUTO_RESUME is 'yes', expected 0 or 1"):
        entry.train()


# Settings that decide the result: a change of each is told with both values.
CHANGES = {
    "seed": (7, "seed was 0 and is 7"),
    "class_balanced": (True, "class_balanced was False and is True"),
    "min_images_per_class": (1, "min_images_per_class was 0 and is 1"),
    "loss_type": ("dist_cosface", "loss_type was dist_arcface and is dist_cosface"),
    "margin": (0.3, "margins was (1.0, 0.5, 0.0) and is (1.0, 0.3, 0.0)"),
    "margin1": (1.1, "margins was (1.0, 0.5, 0.0) and is (1.1, 0.5, 0.0)"),
    "margin2": (0.3, "margins was (1.0, 0.5, 0.0) and is (1.0, 0.3, 0.0)"),
    "margin3": (0.1, "margins was (1.0, 0.5, 0.0) and is (1.0, 0.5, 0.1)"),
    "scale": (32.0, "scale was 16.0 and is 32.0"),
    "sample_ratio": (0.5, "sample_ratio was 1.0 and is 0.5"),
    "subcenters": (3, "subcenters was 1 and is 3"),
    "interclass_filter": (0.4, "interclass_filter was None and is 0.4"),
    "margin_warmup": (9, "margin_warmup was 0 and is 9"),
    "label_smoothing": (0.1, "label_smoothing was 0.0 and is 0.1"),
    "class_weights": ([1, 1, 1, 1, 1, 2], "class_weights was  and is"),
    "class_counts": ([5, 5, 5, 5, 5, 6], "class_counts was  and is"),
    "center_storage": ("bfloat16", "center_storage was float32 and is bfloat16"),
    "momentum_storage": ("bfloat16", "momentum_storage was float32 and is bfloat16"),
    "lr": (0.3, "lr was 0.1 and is 0.3"),
    "lr_schedule": ("poly", "lr_schedule was step and is polynomial"),
    "lr_steps": ((5,), "lr_steps was [100000, 160000, 220000] and is [5]"),
    "lr_decay_factor": (0.2, "lr_decay_factor was 0.1 and is 0.2"),
    "warmup_epochs": (1, "warmup_epochs was 0 and is 1"),
    "warmup_steps": (1, "warmup_steps was 0 and is 1"),
    "lr_epochs": ((5,), "lr_epochs was [] and is [5]"),
    "lr_power": (1.0, "lr_power was 2.0 and is 1.0"),
    "momentum": (0.8, "momentum was 0.9 and is 0.8"),
    "weight_decay": (0.0, "weight_decay was 0.0005 and is 0.0"),
    "decay_norms": (False, "decay_norms was True and is False"),
    "head_lr_factor": (10.0, "head_lr_factor was 1.0 and is 10.0"),
    "backbone_lr_factor": (0.1, "backbone_lr_factor was 1.0 and is 0.1"),
    "frozen": (("conv*",), "frozen was [] and is ['conv*']"),
    "emb_dim": (8, "emb_dim was 16 and is 8"),
    "image_shape": ((3, 32, 32), "image_shape was [3, 16, 16] and is [3, 32, 32]"),
    "model_name": ("ResNet50", "network was plsc.models.tiny:ResNetTiny and is plsc.models.resnet:"),
    "pixel_mean": (120, "pixel_mean was [127.5, 127.5, 127.5] and is [120.0, 120.0, 120.0]"),
    "pixel_std": (64, "pixel_std was [128.0, 128.0, 128.0] and is [64.0, 64.0, 64.0]"),
    "flip": (False, "flip was True and is False"),
    "augment_crop": (0.1, "augment_crop was 0.0 and is 0.1"),
    "augment_rotate": (9.0, "augment_rotate was 0.0 and is 9.0"),
    "augment_color_jitter": (0.1, "augment_color_jitter was 0.0 and is 0.1"),
    "augment_rand_augment": (1, "augment_rand_augment was 0 and is 1"),
    "augment_rand_magnitude": (6.0, "augment_rand_magnitude was 5.0 and is 6.0"),
    "augment_gray": (0.1, "augment_gray was 0.0 and is 0.1"),
    "augment_blur": (0.1, "augment_blur was 0.0 and is 0.1"),
    "augment_erase": (0.1, "augment_erase was 0.0 and is 0.1"),
    "use_fp16": (True, "use_fp16 was False and is True"),
    "amp_dtype": ("bfloat16", "amp_dtype was float16 and is bfloat16"),
    "optimizer": (
        functools.partial(paddle.optimizer.Momentum, momentum=0.8),
        "optimizer was momentum and is paddle.optimizer.momentum.Momentum(momentum=0.8)",
    ),
    "head_optimizer": (plsc.losses.row_optimizers.Momentum(momentum=0.8), "head_optimizer was None and is plsc.losses"),
    "margin_function": (CombinedMargin(1.0, 0.2, 0.0), "margin_function was None and is plsc.losses.margins."),
    "param_attr": (paddle.ParamAttr(learning_rate=0.5), "param_attr was None and is paddle."),
    "bias_attr": (False, "bias_attr was None and is False"),
}
# A change of these leaves the result as it is, or is one of the numbers of ranks or of the end of the run.
HARMLESS = {
    "model_parallel": False,
    "head_group_size": 1,
    "logits": "recompute",
    "center_location": "disk",
    "train_batch_size": 5,
    "test_batch_size": 7,
    "num_workers": 1,
    "cpu_threads": 1,
    "worker_timeout": 9.0,
    "bad_images": "skip",
    "strict_images": True,
    "on_nonfinite": "skip",
    "max_skipped_steps": 9,
    "init_loss_scaling": 2.0,
    "incr_every_n_steps": 9,
    "decr_every_n_nan_or_inf": 9,
    "incr_ratio": 3.0,
    "decr_ratio": 0.25,
    "use_dynamic_loss_scaling": False,
    "tf32": True,
    "recompute": True,
    "deterministic": True,
    "max_last_checkpoint_num": 9,
    "with_test": False,
    "test_period": 1,
    "calc_acc": True,
    "log_period": 1,
    "training_doctor": False,
    "loggers": ("tests.engine.observers.test_loggers:Counting",),
    "train_epochs": 3,
    "save_steps": 2,
    "save_minutes": 1.0,
    "save_keep": 3,
    "async_save": "off",
    "keep_best": "lfw.accuracy",
    "keep_every": 2,
    "rank_timeout": 5.0,
    "cache_gb": 5.0,
    "val_targets": "lfw.bin",
}
# What says where data and checkpoints are, and data objects: the content is compared. `model` is the network.
ELSEWHERE = {
    *(
        "num_classes",
        "stage_dir",
        "cache_dir",
        "center_dir",
        "dataset_dir",
        "train_image_num",
        "checkpoint_dir",
        "auto_resume",
        "class_change",
        "new_classes",
        "counters",
        "pretrained",
        "pretrained_strict",
        "pretrained_bgr",
        "model_save_dir",
        "model",
        "val_dataset",
        "val_dataset_dir",
        "val_split",
        "loss_options",  # arcface has none: tests/engine/test_resume.py
    ),
    *("train_reader", "test_reader", "predict_reader", "train_dataset", "test_dataset", "train_steps", "amp_lists"),
}


def test_every_setting_has_a_place_in_these_tables():
    """A new setting belongs into `plsc.engine.resume.DECIDING_SETTINGS` and CHANGES, or into HARMLESS."""
    assert sorted([*CHANGES, *HARMLESS, *ELSEWHERE]) == sorted(type(plsc.Entry().config).model_fields)


@pytest.fixture
def going_on(entry):
    """An entry that would go on with a run of one epoch."""
    entry.set_auto_resume(True)
    entry.train()
    entry.set_train_epochs(2)
    return entry


@pytest.fixture(scope="module")
def trained():
    """The settings of a run, and what its checkpoint says of it."""
    entry = plsc.Entry()
    entry.set_class_num(6)
    entry.set_image_shape((3, 16, 16))
    entry.set_model_name("ResNetTiny")
    entry.set_emb_size(16)
    entry.set_scale(16)
    about = {
        **{"epoch": 1, "step": 3, "images_in_epoch": 0, "optimizer": "Momentum", "head_optimizer": "Momentum"},
        **{"loss_scaling": {}, "settings": saved_settings(entry.config), "objects": saved_objects(entry.config)},
        **{"network": "plsc.models.tiny:ResNetTiny", "num_images": 30, "global_batch": 10},
    }
    return entry.config, About.model_validate(json.loads(json.dumps(about)))


def refuse(trained, changes):
    config = trained[0].model_copy()
    config.assign(**changes)
    network = "plsc.models.resnet:ResNet50" if "model_name" in changes else "plsc.models.tiny:ResNetTiny"
    refuse_changes(trained[1], config, path=Path("output/0"), network=network, num_images=30)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_what_decides_the_result_is_told_with_both_values(trained, name):
    value, words = CHANGES[name]
    with pytest.raises(CheckpointError) as error:
        refuse(trained, {name: value})
    assert f"output/0: settings or data that decide the result have changed: {words}" in (str(error.value))


def test_a_loss_of_three_margins_is_told_with_them(trained):
    with pytest.raises(
        CheckpointError, match=r"loss_type was dist_arcface and is combined; margins was .* is .1.0, 0.2"
    ):
        refuse(trained, {"loss_type": "combined", "margin1": 1.0, "margin2": 0.2, "margin3": 0.0})


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_change_is_not_told(trained, name):
    refuse(trained, {name: HARMLESS[name]})


def test_sharded_and_replicated_heads_train_alike(trained):
    refuse(trained, {"loss_type": "arcface"})


def test_all_harmless_changes_together_do_not_stop(going_on):
    going_on.config.assign(**{**HARMLESS, "keep_best": None})  # which needs a verification
    assert Trainer(going_on.config).step == 3


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("seed", 7, "output/0: settings or data that decide the result have changed: seed was 0 and is 7"),
        ("loss_type", "softmax", "loss_type was dist_arcface and is softmax"),
        ("model_name", "ResNet50", "network was plsc.models.tiny:ResNetTiny and is plsc.models.resnet:"),
        ("num_classes", 8, "output/0: its class number is 6, this run's is 8"),
    ],
)
def test_a_run_stops_at_a_change(going_on, name, value, words):
    setattr(going_on, name, value)
    with pytest.raises(CheckpointError, match=words):
        Trainer(going_on.config)


def test_other_images_stop_with_both_numbers(going_on, data_dir):
    lines = (data_dir / "label.txt").read_text().splitlines(keepends=True)
    (data_dir / "label.txt").write_text("".join(lines[:25]))
    with pytest.raises(CheckpointError, match="number of training images was 30 and is 25"):
        Trainer(going_on.config)


def test_other_classes_stop_with_both_sides(going_on, data_dir):
    lines = (data_dir / "label.txt").read_text().splitlines()
    moved = [f"{path} {(int(label) + 1) % 6}" for path, label in map(str.split, lines)]
    (data_dir / "label.txt").write_text("\n".join(moved) + "\n")
    with pytest.raises(CheckpointError, match="class numbers mean other classes than when it was written"):
        Trainer(going_on.config)


def test_another_end_stops_where_the_learning_rate_depends_on_it(automatic):
    automatic.set_lr("cosine")
    automatic.train()
    automatic.set_train_epochs(3)
    with pytest.raises(CheckpointError, match="end was 2 epochs and is 3 epochs"):
        automatic.train()


def test_a_change_is_taken_where_the_checkpoint_is_named_and_kept_from_then_on(going_on, output, caplog):
    going_on.set_lr(0.3)
    with pytest.raises(CheckpointError) as error:
        going_on.train()
    assert f"set_checkpoint_dir('{output / '0'}')" in str(error.value)
    going_on.set_checkpoint_dir(output / "0")
    going_on.train()
    assert "was trained with other settings than this run: lr 0.1 -> 0.3" in caplog.text
    going_on.set_train_epochs(3)
    going_on.train()
    assert names(output) == ["0", "1", "2"]


# What is in the folder in addition to this run's checkpoints.


@pytest.mark.parametrize("is_copy", [False, True])
def test_a_folder_that_is_named_by_a_date_is_no_checkpoint_of_the_run(automatic, output, is_copy):
    automatic.train()
    if is_copy:
        shutil.copytree(output / "0", output / "20261126")
    else:
        (output / "20261126").mkdir()
    assert [path.name for path in list_checkpoints(output)] == ["0", "1"]
    automatic.set_train_epochs(4)
    automatic.set_max_last_checkpoint_num(1)
    automatic.train()
    assert names(output) == ["20261126", "3"]
    automatic.set_auto_resume(False)
    automatic.set_checkpoint_dir(output)
    automatic.set_train_epochs(5)
    automatic.train()
    assert names(output) == ["20261126", "4"]


def test_copies_alone_are_no_run_to_go_on_with(automatic, output, caplog):
    automatic.train()
    (output / "0").rename(output / "20261126")
    shutil.rmtree(output / "1")
    automatic.train()
    assert "20261126 was saved under another name, and training does not go on from it" in caplog.text
    assert names(output) == ["0", "1", "20261126"]


def test_only_checkpoints_of_the_run_itself_are_pruned(entry, output, tmp_path):
    """A run that starts from another folder is another run than the one whose checkpoints lie in its folder."""
    other = tmp_path / "other"
    entry.set_train_epochs(2)
    entry.set_model_save_dir(other)
    entry.train()
    entry.set_train_epochs(3)
    entry.set_model_save_dir(output)
    entry.train()
    shutil.rmtree(output / "0")
    entry.set_checkpoint_dir(output)
    entry.set_model_save_dir(other)
    entry.set_max_last_checkpoint_num(1)
    entry.set_train_epochs(5)
    entry.train()
    assert names(other) == ["0", "1", "4"]
    assert names(output) == ["1", "2"]
    runs = {name: About.of(Checkpoint(other / name)).run for name in names(other)}
    assert runs["0"] == runs["1"] != runs["4"]
    entry.set_checkpoint_dir("")
    entry.set_auto_resume(True)
    entry.set_train_epochs(6)
    entry.train()
    assert names(other) == ["0", "1", "5"]
    assert About.of(Checkpoint(other)).run == runs["4"]


def test_what_killed_runs_have_left_is_removed_at_the_start_and_nothing_else(automatic, output):
    automatic.train()
    before = sorted(path.relative_to(output) for path in output.rglob("*"))
    for name in (".2.plsc-partial", ".1.4.plsc-partial", ".plsc-trial", "..plsc-trial.plsc-partial"):
        (output / name).mkdir()
        (output / name / "model.safetensors").write_bytes(b"x")
    (output / "1" / f".{METRICS}.77.partial").write_bytes(b"{")
    (output / ".metrics.jsonl.77.partial").write_bytes(b"{")
    own = [".notes.plsc-partial", ".2.plsc-old"]
    for name in own:
        (output / name).mkdir()
    automatic.train()
    assert sorted(path.relative_to(output) for path in output.rglob("*")) == sorted([*before, *map(type(output), own)])


# Other batches within an epoch.


def test_within_an_epoch_a_larger_global_batch_goes_on_and_names_rise(entry, output):
    """Four steps of 5 images are three of 6, and two images come twice."""
    entry.set_auto_resume(True)
    entry.set_with_test(False)
    entry.set_train_batch_size(5)
    for steps, batch, name, images in [(4, 5, "0.4", 20), (5, 6, "0.5", 24), (6, 5, "0.6", 25), (8, 15, "1.1", 15)]:
        entry.set_train_batch_size(batch)
        entry.set_train_steps(steps)
        entry.train()
        saved = Checkpoint(output)
        about = About.of(saved)
        assert (saved.path.name, about.step, about.images_in_epoch) == (name, steps, images)
    assert names(output) == ["0", "0.6", "1.1"]  # two within an epoch are kept


def test_without_auto_resume_a_larger_global_batch_goes_on_too(entry, output):
    entry.set_train_batch_size(5)
    entry.set_train_steps(3)
    entry.train()
    entry.set_checkpoint_dir(output)
    entry.set_train_batch_size(10)
    entry.set_train_epochs(2)
    entry.train()
    assert names(output) == ["0", "0.3", "1"]


# Verification.


class Killed(BaseException):
    """Ends a run where it is raised, as a kill does, but for what `finally` does."""


def kill_at(monkeypatch, place):
    def kill(*_, **__):
        raise Killed

    monkeypatch.setattr(verifier, place, kill)


@pytest.mark.parametrize("place", ["evaluate", "write_metrics"])
@pytest.mark.parametrize("is_last", [False, True])
def test_a_checkpoint_that_was_not_verified_is_verified_when_the_run_goes_on(
    automatic, output, monkeypatch, place, is_last
):
    """Killed before the verification, and between the line of metrics.jsonl and metrics.json."""
    expected = automatic.train()
    del expected["images/s"]
    lines, whole = comparable(output), tensors(output)
    shutil.rmtree(output)
    automatic.set_train_epochs(1)
    if is_last:
        automatic.train()
        automatic.set_train_epochs(2)
    with monkeypatch.context() as patched:
        kill_at(patched, place)
        with pytest.raises(Killed):
            automatic.train()
    automatic.set_train_epochs(2)
    assert read_metrics(output / str(int(is_last))) is None
    results = automatic.train()
    results.pop("images/s", None)
    assert results == expected
    assert comparable(output) == lines
    assert_same(tensors(output), whole)
    for name in ("0", "1"):
        metrics = json.loads((output / name / METRICS).read_text())
        assert metrics["lfw/pairs"] == 20


def comparable(output):
    """The lines of metrics.jsonl without what depends on time, and without the last step of a shorter run."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    timed = dict.fromkeys(("images/s", "data_wait", "host_memory_gb"), 0)
    return [{**line, **timed} for line in lines if (line["event"], line["step"]) != ("step", 3)]


def test_a_verification_that_failed_is_repeated(automatic, output, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(verifier, "evaluate", lambda *_, **__: (_ for _ in ()).throw(plsc.DataError("no disk")))
        for _ in range(2):
            with pytest.raises(plsc.DataError, match=f"no disk; training up to here is saved in {output / '0'}"):
                automatic.train()
    automatic.train()
    assert names(output) == ["0", "1"]
    assert [line["step"] for line in comparable(output) if line["event"] == "verify"] == [3, 6]


def test_what_was_verified_is_not_verified_again(automatic, output, monkeypatch):
    automatic.train()
    shutil.rmtree(output / "1")
    verified = []
    real = verifier.evaluate
    monkeypatch.setattr(verifier, "evaluate", lambda *a, **k: verified.append(1) or real(*a, **k))
    automatic.train()
    assert len(verified) == 1


def test_a_checkpoint_of_an_earlier_version_is_not_verified_again(automatic, output, monkeypatch):
    automatic.train()
    (output / "1" / METRICS).unlink()
    edit_manifest(output / "1", lambda manifest: manifest["about"].pop("verified"))
    kill_at(monkeypatch, "evaluate")
    automatic.train()


def test_metrics_that_are_not_finite_are_null_and_read_as_nan(tmp_path):
    write_metrics(tmp_path, {"a/b": float("nan"), "c": 1.0})
    assert json.loads((tmp_path / METRICS).read_text()) == {"a/b": None, "c": 1.0}
    found = read_metrics(tmp_path)
    assert np.isnan(found["a/b"]) and found["c"] == 1.0
    (tmp_path / METRICS).write_text("[1]")
    assert read_metrics(tmp_path) is None


class Stop(Observer):
    """Ends the run after a step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, step):
        if step.number == self.step:
            raise Killed


@pytest.mark.parametrize("step", [1, 2, 4, 5])
def test_a_run_that_is_ended_at_any_step_goes_on_to_the_same_result(automatic, output, step):
    results = automatic.train()
    whole, lines = tensors(output), comparable(output)
    shutil.rmtree(output)
    with pytest.raises(Killed):
        Trainer(automatic.config, observers=[Stop(step)]).train()
    again = automatic.train()
    assert_same(tensors(output), whole)
    assert comparable(output) == lines
    assert {**again, "images/s": 0} == {**results, "images/s": 0}


# Processes that are killed.


def launched(ranks, folder, **settings):
    """Train with the same command, until it ends with status 0."""
    settings = {
        **{"model": "batch norm", "train_epochs": 2, "test_period": 2, "num_workers": 1, "verify": True},
        **{
            "auto_resume": True,
            "async_save": "off",
            "train_batch_size": 12 // ranks,
            "model_save_dir": str(folder / "output"),
        },
        **settings,
    }
    folder.mkdir(parents=True, exist_ok=True)
    status, output = launch(ranks, "train_worker.py", json.dumps(settings), log_dir=folder / "log", check=False)
    return status, output


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A function that trains without a stop, once per number of ranks."""
    runs = {}

    def train(ranks):
        if ranks not in runs:
            folder = tmp_path_factory.mktemp("unbroken")
            status, output = launched(ranks, folder)
            assert status == 0, output[-4000:]
            runs[ranks] = tensors(folder / "output"), verifications(folder / "output")
        return runs[ranks]

    return train


def verifications(output):
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == "verify"]


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_each_place_the_same_command_gives_the_same_run_bit_for_bit(ranks, unbroken, tmp_path):
    """Five steps per epoch, verified at steps 2, 4, 5, 6, 8 and 10; statistics are averaged at each of them."""
    for die in (["on_step", 4], ["evaluate", 5], ["on_verify", 5], ["on_verify", 10]):
        status, output = launched(ranks, tmp_path, die=die)
        assert status != 0, output[-4000:]
        assert sorted(path.name for path in (tmp_path / "output").iterdir() if path.is_dir()) in (
            [[], ["0"], ["0", "1"]][(die[1] >= 5) + (die[1] >= 10)],
        )
    status, output = launched(ranks, tmp_path)
    assert status == 0, output[-4000:]
    whole, lines = unbroken(ranks)
    assert_same(tensors(tmp_path / "output"), whole)
    assert verifications(tmp_path / "output") == lines
    assert not [path for path in (tmp_path / "output").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.ranks
def test_a_verification_that_was_stopped_within_an_epoch_is_made_up_for(unbroken, tmp_path):
    """It averages running statistics, which training goes on with."""
    status, output = launched(2, tmp_path, fail=2)
    assert status != 0 and "training up to here is saved in" in output
    status, output = launched(2, tmp_path)
    assert status == 0, output[-4000:]
    whole, lines = unbroken(2)
    assert_same(tensors(tmp_path / "output"), whole)
    assert verifications(tmp_path / "output") == lines


@pytest.mark.slow
@pytest.mark.ranks
def test_a_checkpoint_within_an_epoch_that_was_verified_later_goes_on_with_the_average(unbroken, tmp_path):
    """It holds the running statistics of each rank, which the verification after it has averaged."""
    status, output = launched(2, tmp_path, save_steps=2, async_save="off", die=["on_step", 4])
    assert status != 0 and names(tmp_path / "output") == ["0.2"], output[-4000:]
    assert (tmp_path / "output" / "0.2" / METRICS).is_file()
    status, output = launched(2, tmp_path)
    assert status == 0, output[-4000:]
    assert_same(tensors(tmp_path / "output"), unbroken(2)[0])


@pytest.mark.slow
@pytest.mark.ranks
def test_on_two_ranks_a_checkpoint_that_one_of_them_finds_damaged_is_set_aside(unbroken, tmp_path):
    assert launched(2, tmp_path)[0] == 0
    shards = sorted((tmp_path / "output" / "1").glob("classes-*"))
    data = bytearray(shards[1].read_bytes())
    data[-3] ^= 4
    shards[1].write_bytes(data)
    status, output = launched(2, tmp_path)
    assert status == 0, output[-4000:]
    assert "is damaged: rank 1: " in output and "the damaged checkpoint stays as" in output
    assert names(tmp_path / "output") == ["0", "1", "1.damaged"]
    assert_same(tensors(tmp_path / "output"), unbroken(2)[0])


@pytest.mark.slow
@pytest.mark.ranks
def test_on_two_ranks_a_changed_setting_and_a_finished_run(tmp_path):
    assert launched(2, tmp_path)[0] == 0
    status, output = launched(2, tmp_path)
    assert status == 0 and output.count("nothing is left to train") >= 1
    assert launched(1, tmp_path)[0] == 0  # the number of ranks is harmless
    status, output = launched(2, tmp_path, seed=3)
    assert status != 0 and "seed was 0 and is 3" in output


@pytest.mark.slow
def test_of_two_runs_in_one_folder_at_the_same_moment_one_trains(tmp_path):
    """Ten pairs. Without auto_resume the second is refused; with it, it waits and finds the run complete."""
    for pair in range(10):
        folder, automatic = tmp_path / str(pair), pair % 2 == 1
        with ThreadPoolExecutor(2) as pool:
            settings = {"auto_resume": automatic, "train_epochs": 1, "num_workers": 0}
            runs = [pool.submit(run_alone, folder, **settings) for _ in range(2)]
            done = [run.result() for run in runs]
        statuses = sorted(status for status, _ in done)
        assert statuses == ([0, 0] if automatic else [0, 1]), done
        refused = [output for status, output in done if status]
        assert all("another run saves into" in text or "is a checkpoint of later training" in text for text in refused)
        Checkpoint(folder / "output" / "0").verify()
        assert {path.name for path in (folder / "output").iterdir()} == {
            "0",
            "findings.jsonl",
            "metrics.csv",
            "metrics.jsonl",
            "run.json",
        }


def run_alone(folder, **settings):
    """Run the worker in a process of its own, without a launcher."""
    settings = {"model": "plain", "train_batch_size": 12, "model_save_dir": str(folder / "output"), **settings}
    return run([sys.executable, WORKERS / "train_worker.py", json.dumps(settings)], check=False)
