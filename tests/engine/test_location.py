"""Runs whose class centers lie in mapped files or in host memory: ranks, checkpoints, kills."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from plsc import ConfigError
from plsc.checkpoint import Checkpoint
from plsc.engine.trainer import Trainer
from tests._support.checkpoints import assert_equal, contents, names
from tests._support.ranks import WORKERS, launch, run

LEAN = {"center_storage": "bfloat16", "momentum_storage": "int8"}
MODES = {
    "float32": {},
    "bfloat16 sampled": {"center_storage": "bfloat16", "momentum_storage": "bfloat16", "sample_ratio": 0.5},
    "int8 sampled, sub-centers": {**LEAN, "sample_ratio": 0.5, "subcenters": 2},
    "adamw sampled": {"optimizer": "adamw", "sample_ratio": 0.5},
}


def train(entry, folder, *, epochs, where="device", **settings):
    entry.set_with_test(False)
    entry.set_model_save_dir(folder)
    entry.set_train_epochs(epochs)
    entry.set_max_last_checkpoint_num(10)
    entry.set_center_location(where)
    for name, value in settings.items():
        setattr(entry, name, value)
    entry.train()


@pytest.mark.parametrize(
    "mode, before, after",
    [
        *((mode, *places) for mode in MODES for places in (("disk", "device"), ("device", "disk"))),
        *(("bfloat16 sampled", *places) for places in (("disk", "disk"), ("host", "disk"))),
    ],
)
def test_a_run_that_goes_on_elsewhere_is_the_unbroken_one_to_the_bit(entry, mode, before, after, tmp_path):
    train(entry, tmp_path / "whole", epochs=2, **MODES[mode])
    train(entry, tmp_path / "broken", epochs=1, where=before)
    entry.set_auto_resume(True)
    train(entry, tmp_path / "broken", epochs=2, where=after)
    assert names(tmp_path / "broken") == names(tmp_path / "whole") == ["0", "1"]
    for name in ("0", "1"):
        assert_equal(contents(tmp_path / "broken" / name), contents(tmp_path / "whole" / name))
    Checkpoint(tmp_path / "broken").verify()
    assert {path.name for path in (tmp_path / "broken").iterdir()} - {"findings.jsonl"} == {
        "0",
        "1",
        "metrics.csv",
        "metrics.jsonl",
        "run.json",
    }


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_a_save_takes_no_copy_of_what_lies_on_a_disk(entry, mode, tmp_path, caplog):
    entry.set_async_save(mode == "on")
    entry.config.async_save = mode
    entry.set_center_location("disk")
    entry.set_center_dir(tmp_path / "scratch")
    with caplog.at_level(logging.INFO, "plsc"):
        trainer = Trainer(entry.config)
        trainer.train()
    assert "training waits while checkpoints are written: head.weight is not kept in memory" in caplog.text
    assert not trainer._saver._snapshot._arrays
    assert not list((tmp_path / "scratch").iterdir())
    Checkpoint(tmp_path / "output").verify()


def test_a_disk_without_space_is_told_before_the_first_step(entry, tmp_path, monkeypatch):
    def refuse(number, first, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("plsc.losses.location.os.posix_fallocate", refuse)
    entry.set_center_location("disk")
    entry.set_center_dir(tmp_path / "scratch")
    with pytest.raises(
        ConfigError, match=r"a file for \[6, 16\] of float32 takes 384 bytes, and .*/scratch does not give"
    ):
        entry.train()
    assert not list((tmp_path / "scratch").iterdir()) and names(tmp_path / "output") == []


# Several ranks, and kills


def settings_of(folder, ranks=1, **settings):
    given = {"model": "plain", "train_batch_size": 12 // ranks, "train_epochs": 2, **settings}
    return {**given, "model_save_dir": str(folder / "output"), "center_dir": str(folder / "scratch")}


def work(folder, ranks, *, killed=0, **settings):
    """The exit status and the output of a training."""
    arguments = json.dumps(settings_of(folder, ranks, **settings)), str(killed)
    if ranks == 1:
        return run([sys.executable, WORKERS / "killed_update_worker.py", *arguments], check=not killed)
    return launch(ranks, "killed_update_worker.py", *arguments, log_dir=folder / "log", check=not killed)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("ranks, settings", [(2, {**LEAN, "sample_ratio": 0.5, "subcenters": 2}), (3, LEAN)])
def test_several_ranks_train_to_the_same_bits_anywhere(ranks, settings, tmp_path):
    for where in ("device", "disk"):
        (tmp_path / where).mkdir()
        work(tmp_path / where, ranks, center_location=where, **settings)
    assert_equal(contents(tmp_path / "disk" / "output"), contents(tmp_path / "device" / "output"))
    assert not list((tmp_path / "disk" / "scratch").iterdir())


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("ranks, ratio", [(1, 1.0), (2, 0.5)])
def test_a_kill_in_the_middle_of_an_update_leaves_the_last_checkpoint_whole(ranks, ratio, tmp_path):
    settings = {"center_location": "disk", "sample_ratio": ratio, "save_steps": 2, "auto_resume": True, **LEAN}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    work(tmp_path / "whole", ranks, **settings)
    killed = tmp_path / "killed"
    status, output = work(killed, ranks, killed=7, **settings)
    assert status and "KILLED 7" in output
    # It was killed within the update of step 7 of 10; the last checkpoint is that after step 6, the first of epoch 1.
    assert names(killed / "output")[-1] == "1.1", output
    Checkpoint(killed / "output").verify()
    assert not list((killed / "scratch").iterdir())
    work(killed, ranks, **settings)
    assert_equal(contents(killed / "output"), contents(tmp_path / "whole" / "output"))
    assert not list((killed / "scratch").iterdir())
