"""Loggers by name, against the files that the real packages write, across a resumed run."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys

import pytest

from plsc import MissingDependencyError
from plsc.engine.observers import Observer
from plsc.engine.observers.loggers import make_loggers
from plsc.engine.observers.loggers.base import LOGS
from plsc.engine.observers.metrics_file import METRICS_FILE
from plsc.engine.trainer import Trainer
from plsc.errors import ConfigError, TrainingError

SECRET = "s3cr3t-t0ken"


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}")


@pytest.fixture
def output(tmp_path):
    return tmp_path / "output"


@pytest.fixture
def secrets(monkeypatch):
    """Credentials where packages look for them, and on the command line."""
    for name in ("WANDB_API_KEY", "SWANLAB_API_KEY", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setattr(sys, "argv", ["train.py", f"--model-save-dir=s3://key:{SECRET}@bucket/run"])


def train_twice(entry, output, name):
    """Three steps and a verification, then three more by a run that resumes; returns the lines of metrics.jsonl."""
    entry.set_log_period(1)
    entry.set_loggers([name])
    entry.train()
    entry.set_checkpoint_dir(output)
    entry.set_train_epochs(2)
    entry.train()
    return [json.loads(line) for line in (output / METRICS_FILE).read_text().splitlines()]


def expected(lines):
    """{(metric, step): value} of what was logged."""
    return {
        (name, line["step"]): value
        for line in lines
        for name, value in line.items()
        if name not in ("event", "step", "epoch", "histograms") and value is not None
    }


def assert_recorded(found, lines):
    """`found` is [(metric, step, value)]; each is there once."""
    assert len(found) == len({(name, step) for name, step, _ in found})
    assert {(name, step): value for name, step, value in found} == pytest.approx(expected(lines), rel=1e-5)


def assert_without_secrets(folder):
    for path in folder.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def tf_records(path):
    """The records of an event file: length, its checksum, content, its checksum."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield data[place + 12 : place + 12 + length]
        place += 16 + length


@needs("tensorboardX")
def test_tensorboard_shows_every_number_once_across_a_resumed_run(entry, output, secrets):
    from tensorboardX.proto.event_pb2 import Event

    lines = train_twice(entry, output, "tensorboard")
    folder = output / LOGS / "tensorboard"
    files = sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) == 2
    found, histograms, starts = [], {}, []
    for path in files:
        for record in tf_records(path):
            event = Event.FromString(record)
            if event.HasField("session_log"):
                starts.append(event.step)
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found.append((value.tag, event.step, value.simple_value))
                elif value.WhichOneof("value") == "histo":
                    histograms[value.tag, event.step] = value.histo
    assert_recorded(found, lines)
    assert starts == [4]  # TensorBoard leaves out what earlier files have from this step on
    assert histograms["target_cosine_histogram", 6].num == 10
    assert sum(histograms["feature_norm_histogram", 1].bucket) == 10
    assert_without_secrets(output)


@needs("tensorboardX")
def test_another_run_in_the_folder_begins_another_record(entry, output):
    entry.set_loggers("tensorboard")
    entry.train()
    (output / "0").rename(output.parent / "away")
    entry.train()
    folder = output / LOGS / "tensorboard"
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1 and len(list(folder.glob("superseded.*"))) == 1
    assert not any("tfevents" in path.name for path in folder.glob("superseded.*"))  # TensorBoard reads by this word


@needs("mlflow")
def test_mlflow_has_every_number_once_across_a_resumed_run(entry, output, secrets, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    lines = train_twice(entry, output, "mlflow")
    client = MlflowClient(tracking_uri=(output / LOGS / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("plsc").experiment_id])
    found = [
        (name, point.step, point.value)
        for name in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, name)
    ]
    assert_recorded(found, lines)
    assert run.info.status == "FINISHED" and run.data.params["model_name"] == "ResNetTiny"
    assert_without_secrets(output)


def wandb_records(path):
    """The records of a file of Weights & Biases: blocks of 32 KiB with parts of records, after a header."""
    data, place, part = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield part
            part = b""


@needs("wandb")
def test_wandb_has_every_number_once_across_a_resumed_run(entry, output, secrets, monkeypatch):
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.delenv("WANDB_MODE", raising=False)
    lines = train_twice(entry, output, "wandb")
    files = sorted((output / LOGS / "wandb").rglob("*.wandb"))
    assert len(files) == 2 and len({path.name for path in files}) == 1  # one identifier
    found, names = {}, set()
    for path in files:
        for data in wandb_records(path):
            record = Record.FromString(data)
            step = record.history.step.num
            for item in record.history.item:
                key, value = item.key or "/".join(item.nested_key), json.loads(item.value_json)
                names.add(key)
                if not key.startswith("_") and isinstance(value, (int, float)):
                    found.setdefault((key, step), []).append(value)
    assert all(len(values) == 1 for values in found.values())
    assert {place: values[0] for place, values in found.items()} == pytest.approx(expected(lines), rel=1e-5)
    assert any("target_cosine_histogram" in name for name in names)
    assert_without_secrets(output)


def swanlab_scalars(files):
    """[(metric, step, value)] of files of SwanLab."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    found = []
    for path in files:
        reader = DataStoreReader()
        reader.open(path)
        for data in reader:
            record = Record.FromString(data)
            if record.HasField("scalar"):
                found.append((record.scalar.key, record.scalar.step, record.scalar.value.number))
        reader.close()
    return found


@needs("swanlab")
def test_swanlab_has_every_number_once_across_a_resumed_run(entry, output, secrets, monkeypatch):
    monkeypatch.delenv("SWANLAB_MODE", raising=False)
    lines = train_twice(entry, output, "swanlab")
    files = sorted((output / LOGS / "swanlab").rglob("*.swanlab"))
    assert len(files) == 2 and len({path.name for path in files}) == 1
    assert_recorded(swanlab_scalars(files), lines)
    assert_without_secrets(output)


class Counting(Observer):
    """Counts logged steps; made by its name."""

    made: list = []

    def __init__(self):
        self.steps = 0
        self.made.append(self)

    def on_step(self, step):
        self.steps += 1


def test_an_observer_of_a_users_module_is_made_by_its_name(entry):
    Counting.made.clear()
    entry.set_loggers([f"{__name__}:Counting"])
    Trainer(entry.config).train()
    made = sys.modules[__name__].Counting.made
    assert [one.steps for one in made] == [3]


def test_without_its_package_a_logger_names_the_package(entry, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    entry.set_loggers(["tensorboard"])
    with pytest.raises(MissingDependencyError, match=r"needs tensorboardX, which is not installed: pip install t"):
        Trainer(entry.config)


def test_only_rank_0_makes_the_loggers(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert make_loggers(["tensorboard"], is_main=False) == []


def test_unknown_names_are_errors(entry):
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        entry.set_loggers(["tensorbord"])
    for name in ("no.such.module:Class", "json:nothing", "json:JSONDecoder"):
        with pytest.raises(ConfigError, match="loggers"):
            make_loggers([name], is_main=True)
    entry.set_loggers("wandb")
    assert entry.loggers == ("wandb",)


@needs("tensorboardX")
def test_a_logger_that_fails_ends_nothing_and_its_error_has_no_credentials(entry, monkeypatch, caplog):
    from plsc.engine.observers.loggers.tensorboard_logger import TensorBoard

    def fail(*_):
        raise RuntimeError(f"no route to https://key:{SECRET}@host/x")

    monkeypatch.setattr(TensorBoard, "write", fail)
    entry.set_log_period(1)
    entry.set_loggers(["tensorboard"])
    entry.train()
    text = "logger tensorboard: RuntimeError: no route to https://host/x; training goes on without it"
    assert caplog.text.count(text) == 1 and SECRET not in caplog.text


@needs("tensorboardX")
def test_a_logger_that_cannot_begin_is_an_error(entry, output):
    output.mkdir()
    (output / LOGS).write_text("a file in the place of the folder")
    entry.set_log_period(1)
    entry.set_loggers(["tensorboard"])
    with pytest.raises(TrainingError, match="TensorBoard: on_step raised"):
        entry.train()
