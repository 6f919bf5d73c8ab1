"""`plsc train --resume`: the settings of a run from its checkpoints."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest

from plsc import CheckpointError, ConfigError
from plsc.checkpoint import Checkpoint
from plsc.engine.saved_run import resumed_settings
from plsc.utils import logging as module
from tests._support.command_line import in_process


@pytest.fixture
def trained(entry):
    """The save folder of a run of two steps of four."""
    entry.set_train_steps(2)
    entry.lr = 0.2
    entry.set_with_test(False)
    entry.train()
    return entry.model_save_dir


@pytest.fixture
def call(monkeypatch, capfd):
    return in_process(monkeypatch, capfd, "train")


def parts(path):
    saved = Checkpoint(path)
    return {name: saved.read(name) for name in saved.names()}


def test_a_run_goes_on_with_the_settings_of_its_checkpoint_bit_for_bit(entry, trained, call, tmp_path):
    _, errors = call("--resume", trained, "--train-steps", 4)
    assert "settings that decide" not in errors
    entry.set_model_save_dir(tmp_path / "whole")
    entry.set_train_steps(4)
    entry.train()
    resumed, whole = parts(trained), parts(tmp_path / "whole")
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_the_folder_may_be_the_default_or_that_of_a_flag(trained, call, monkeypatch, tmp_path):
    for arguments in (["--resume", "--model-save-dir", trained], ["--model-save-dir", trained, "--resume"]):
        assert "lr: 0.2" in call(*arguments, "--dump-config")[0]
    shutil.copytree(trained, tmp_path / "here" / "output")
    monkeypatch.chdir(tmp_path / "here")
    output = call("--resume", "--dump-config")[0]
    assert "lr: 0.2" in output and "auto_resume: true" in output and "model_save_dir: output" in output


def test_what_is_given_goes_before_what_is_stored(trained, entry):
    values = resumed_settings(trained, {"train_epochs": "3", "log_period": "7"})
    assert values["train_epochs"] == "3" and "train_steps" not in values and values["log_period"] == "7"
    assert values["auto_resume"] is True and values["model_save_dir"] == trained
    assert values["lr"] == 0.2 and values["emb_dim"] == entry.emb_dim and values["dataset_dir"] == entry.dataset_dir
    assert "scale" in values and "seed" not in values  # a default is not given


def test_a_setting_that_decides_the_result_is_refused_from_a_folder_and_taken_from_a_checkpoint(trained, call, caplog):
    _, errors = call("--resume", trained, "--lr", 0.3, "--train-steps", 3, status=1)
    assert "lr was 0.2 and is 0.3" in errors
    checkpoint = f"{trained}/0.2"
    call("--resume", checkpoint, "--lr", 0.3, "--train-steps", 3)
    assert "lr 0.2 -> 0.3" in caplog.text and f"resumed from {checkpoint}" in caplog.text
    assert Checkpoint(trained).about["step"] == 3


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda about: about["settings"].pop("dataset_dir"), "holds no settings of the run"),
        (lambda about: about["settings"].pop("model_name"), "a script with a network of its own"),
        (lambda about: about["settings"].update(novel=1), "does not know: novel"),
        (lambda about: about["settings"].update(lr_schedule="my_rates"), "lr_schedule: got 'my_rates'"),
    ],
    ids=["older", "own network", "newer", "an object"],
)
def test_a_checkpoint_without_settings_for_the_command_line_says_so(trained, monkeypatch, edit, message):
    about = Checkpoint(trained).about
    edit(about)
    monkeypatch.setattr("plsc.engine.saved_run.Checkpoint", lambda path: type("", (), {"about": about, "path": path})())
    with pytest.raises(CheckpointError, match=message):
        resumed_settings(trained, {})


def test_places_without_a_checkpoint_are_errors(trained, tmp_path):
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointError, match="there is no checkpoint to go on from"):
            resumed_settings(str(place), {})
    with pytest.raises(CheckpointError, match="local checkpoints only"):
        resumed_settings("s3://bucket/output", {})


def test_a_relative_path_that_is_not_here_names_the_folder_and_the_cure(trained, monkeypatch, tmp_path):
    saved = Checkpoint(trained)
    saved.about["settings"]["dataset_dir"] = "data/faces"
    monkeypatch.setattr("plsc.engine.saved_run.Checkpoint", lambda path: saved)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="'data/faces' of .* is relative to the folder in which the run was started"):
        resumed_settings(trained, {})
    assert resumed_settings(trained, {"dataset_dir": "elsewhere"})["dataset_dir"] == "elsewhere"


def test_quiet_prints_nothing(trained, call, monkeypatch):
    monkeypatch.setattr(module, "_is_quiet", False)
    logger = logging.getLogger("plsc")
    monkeypatch.setattr(logger, "handlers", [])
    level, propagate = logger.level, logger.propagate
    try:
        assert call("--resume", trained, "--train-steps", 3, "--quiet") == ("", "")
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
