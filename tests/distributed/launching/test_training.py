"""A training under `plsc launch`."""

from __future__ import annotations

import signal

import pytest

from plsc.distributed.launching.reports import read_endings, read_position
from tests._support.launching import Launch

pytestmark = [pytest.mark.ranks, pytest.mark.slow]


# Both ranks note their first step; on rank 1 something may fail.
TRAINS = """
from plsc import Entry
from plsc.engine.observers import Observer

class Watches(Observer):
    every_rank = True

    def on_step(self, step):
        if step.number == 1:
            note("step")
        if rank == 1 and {fails}:
            raise ValueError("the cause")

entry = Entry()
entry.set_dataset_dir({data!r})
entry.set_image_shape((3, 16, 16))
entry.set_model_name("ResNetTiny")
entry.set_emb_size(16)
entry.set_train_batch_size(5)
entry.set_train_epochs({epochs})
entry.set_with_test(False)
entry.set_num_workers(0)
entry.add_observer(Watches())
entry.train()
"""


def test_the_first_cause_of_a_training_is_the_last_line_and_its_position_is_known(tmp_path, data_dir):
    launch = Launch(
        tmp_path,
        TRAINS.format(data=str(data_dir), fails="step.epoch == 2", epochs=4),
        *("--restarts", 0),
    )
    status, output = launch.finish(seconds=200)
    assert status == 1
    error = "TrainingError: observer __main__.Watches: on_step raised ValueError: the cause; "
    assert output.splitlines()[-1].startswith(f"plsc launch: rank 1: {error}")
    (logs,) = (tmp_path / "log").iterdir()
    assert read_endings(logs / "reports")[0].rank == 1
    assert (tmp_path / "output" / "0").is_dir()
    assert read_position(logs / "reports") in (3, 6)  # three steps per epoch; the second save may be under way


def test_a_signal_saves_the_training_and_the_same_command_is_to_be_run_again(tmp_path, data_dir):
    launch = Launch(tmp_path, TRAINS.format(data=str(data_dir), fails="False", epochs=100_000))
    launch.wait_for("step")
    launch.process.send_signal(signal.SIGTERM)
    status, output = launch.finish(seconds=200)
    assert status == 75, output
    assert output.splitlines()[-1] == "plsc launch: stopped; the same command goes on"
    (logs,) = (tmp_path / "log").iterdir()
    endings = read_endings(logs / "reports")
    assert sorted((ending.rank, ending.status) for ending in endings) == [(0, 75), (1, 75)]
    assert all("Interrupted: stopped by SIGTERM" in ending.message for ending in endings)
    assert read_position(logs / "reports") > 0


def test_a_training_that_fails_is_started_again_and_finishes(tmp_path, data_dir):
    fails = "step.epoch == 2 and 'PLSC_AUTO_RESUME' not in os.environ"
    launch = Launch(tmp_path, TRAINS.format(data=str(data_dir), fails=fails, epochs=4), *("--backoff", 0.1))
    status, output = launch.finish(seconds=200)
    assert status == 0, output
    assert "restart 1 of 3 from step" in output
    assert (tmp_path / "output" / "3").is_dir()
    assert len(list((tmp_path / "log").iterdir())) == 2
