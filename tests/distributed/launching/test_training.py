"""A training under `plsc launch`."""

from __future__ import annotations

import json

import pytest

from plsc.distributed.launching.reports import read_endings, read_position
from tests._support.launching import Launch

pytestmark = [pytest.mark.ranks, pytest.mark.slow]


def test_the_first_cause_of_a_training_is_the_last_line_and_its_position_is_known(tmp_path, data_dir):
    launch = Launch(
        tmp_path,
        f"""
        from plsc import Entry
        from plsc.engine.observers import Observer

        class Fails(Observer):
            every_rank = True

            def on_step(self, step):
                if rank == 1 and step.epoch == 1:
                    raise ValueError("the cause")

        entry = Entry()
        entry.set_dataset_dir({str(data_dir)!r})
        entry.set_image_shape((3, 16, 16))
        entry.set_model_name("ResNetTiny")
        entry.set_emb_size(16)
        entry.set_train_batch_size(5)
        entry.set_train_epochs(3)
        entry.set_num_workers(0)
        entry.add_observer(Fails())
        entry.train()
        """,
        *("--restarts", 0),
    )
    status, output = launch.finish(seconds=200)
    assert status == 1
    error = "TrainingError: observer __main__.Fails: on_step raised ValueError: the cause; "
    assert output.splitlines()[-1].startswith(f"plsc launch: rank 1: {error}")
    (logs,) = (tmp_path / "log").iterdir()
    assert read_endings(logs / "reports")[0].rank == 1
    steps = [json.loads(line)["step"] for line in (tmp_path / "output" / "metrics.jsonl").read_text().splitlines()]
    assert (tmp_path / "output" / "0").is_dir()
    assert read_position(logs / "reports") == max(steps) == 3
