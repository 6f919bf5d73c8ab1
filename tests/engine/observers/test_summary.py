"""What a run logs of itself at its start and at its end."""

from __future__ import annotations

import logging

import pytest

from plsc import TrainingError
from plsc.data.records import Records
from plsc.engine.observers.summary import describe_data
from plsc.utils import logging as logging_module


class Labels(Records):
    """Records of which only the labels matter."""

    def __init__(self, labels):
        self._known = labels

    def __len__(self):
        return len(self._known)

    def __getitem__(self, index):
        raise AssertionError("a summary reads no image")


def test_images_per_class_are_told_without_reading_an_image():
    records = Labels([0, 0, 0, 3, 3, 4])
    assert describe_data(records) == "training data: 6 images"
    records.num_classes = 5
    assert describe_data(records) == "training data: 6 images of 5 classes"
    records.labels = records._known  # as of a source that knows them; no image has class 1 or 2
    assert describe_data(records) == "training data: 6 images of 3 classes, 1 to 3 of each, median 2"
    records.labels = [0, 0, 1, 1]
    assert describe_data(records).endswith(" of 2 classes, 2 of each")


@pytest.fixture
def told(entry, caplog):
    """What a training logs; the setting of an entry may be changed before."""

    def train(**settings):
        caplog.set_level(logging.INFO)
        entry.config.assign(num_workers=0, **settings)
        caplog.clear()
        entry.train()
        return caplog.messages

    return train


def test_a_run_tells_what_it_is_and_where_its_results_are(told, entry):
    messages = told(train_epochs=None, train_steps=2)
    text = "\n".join(messages)
    start = next(message for message in messages if message.startswith("training from step"))
    assert start.startswith("training from step 1 to 2: ") and start.endswith("ranks 1 (CPU)")
    network = next(message for message in messages if message.startswith("network: "))
    assert network.startswith("network: ResNetTiny, ") and f"embedding size {entry.emb_dim}" in network
    assert " parameters" in network and "training data: " in text
    root = entry.model_save_dir
    at_end = messages[-3:]
    assert at_end[0].startswith("best lfw/accuracy ") and at_end[0].endswith(", after step 2")
    assert at_end[1].startswith(f"checkpoints: {root}, the newest 0.2; measurements: {root}/metrics.jsonl")
    assert at_end[2] == f"next: plsc report {root}, or plsc export --checkpoint-dir {root} --to model"
    # What has nothing left to train says neither.
    entry.auto_resume = True
    again = "\n".join(told())
    assert "nothing is left to train" in again and "network: " not in again and "next: " not in again


def test_a_run_that_fails_names_no_next_command(told, monkeypatch, caplog):
    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr("plsc.engine.observers.metrics_file.MetricsFile.on_save", fail, raising=False)
    with pytest.raises(TrainingError, match="no space"):
        told(train_epochs=None, train_steps=2)
    assert "training from step" in caplog.text and "next: " not in caplog.text


def test_quiet_leaves_warnings_and_errors(monkeypatch):
    logger = logging.getLogger("plsc")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    before = logger.level
    monkeypatch.setattr(logging_module, "_is_quiet", False)
    try:
        logging_module.be_quiet()
        logging_module.show_log(is_main=True)
        assert logger.level == logging.WARNING and not logging_module.shows_bars()
    finally:
        logger.setLevel(before)
