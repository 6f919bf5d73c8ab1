"""Checkpoints in remote folders: which count, what an upload leaves when it fails or is killed, and what is deleted."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid

import numpy as np
import pytest

from plsc import Config
from plsc.checkpoint import MANIFEST, Checkpoint, Part, save_checkpoint
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.engine import uploads as uploads_module
from plsc.engine.about import METRICS
from plsc.engine.uploads import Uploader, _is_log, fetch_checkpoint, list_remote_checkpoints
from plsc.errors import CheckpointError, StorageError
from plsc.remote import retrying
from plsc.remote.cache import Cache
from plsc.remote.folder import RemoteFolder
from tests._support.ranks import ROOT
from tests._support.s3 import fill, names


@pytest.fixture
def url():
    return f"memory://{uuid.uuid4().hex}/run"


@pytest.fixture
def stage(tmp_path):
    return tmp_path / "stage"


@pytest.fixture
def save(stage):
    """A function that writes a checkpoint to the stage."""

    def write(name, run=""):
        data = np.full([100, 3], sum(map(ord, name)), np.float32)
        parts = [Part("weight", data, offset=0, rows=100), Part("scalar", np.array(1))]
        return save_checkpoint(
            stage, name, parts=parts, about={"name": name, "run": run}, collectives=Collectives(Topology())
        )

    return write


@pytest.fixture
def few_attempts(monkeypatch):
    monkeypatch.setattr(retrying, "ATTEMPTS", 2)
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.01)


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_is_uploaded_is_what_was_saved(url, stage, save, tmp_path):
    with Uploader(url, stage, config=Config(max_last_checkpoint_num=5)) as uploads:
        for name in ("0", "1.20", "1"):
            uploads.on_complete(save(name))
    assert list_remote_checkpoints(RemoteFolder(url)) == ["0", "1.20", "1"]
    found = Checkpoint(fetch_checkpoint(url, Cache(tmp_path / "cache")))
    assert found.about["name"] == "1"
    assert (found.read("weight") == ord("1")).all()
    assert fetch_checkpoint(f"{url}/0", Cache(tmp_path / "cache")).name == "0"


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest", "no file", "half a file"])
def test_a_checkpoint_that_is_not_whole_does_not_count(url, stage, save, tmp_path, damage):
    with Uploader(url, stage, config=Config(max_last_checkpoint_num=5)) as uploads:
        uploads.on_complete(save("0"))
        uploads.on_complete(save("1"))
    folder = RemoteFolder(url)
    file = MANIFEST if "manifest" in damage else "model.safetensors"
    content = folder.read(f"1/{file}")
    if damage.startswith("no"):
        folder.delete([f"1/{file}"])
    else:
        fill(url, {f"1/{file}": content[: len(content) // 2]})
    assert list_remote_checkpoints(folder) == ["0"]
    assert fetch_checkpoint(url, Cache(tmp_path / "cache")).name == "0"
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        fetch_checkpoint(f"{url}/1", Cache(tmp_path / "cache"))


def test_where_no_checkpoint_is_whole_the_error_names_those_begun(url, tmp_path):
    fill(url, {"3/model.safetensors": b"x"})
    with pytest.raises(CheckpointError, match="holds no whole checkpoint; 3 is not whole: an upload was cut off; name"):
        fetch_checkpoint(url, Cache(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["busy", "reset"])
def test_an_upload_is_tried_again_while_the_service_fails(s3, stage, save, kind):
    s3.fail(kind, 5)
    with Uploader(s3.url, stage, config=Config(max_last_checkpoint_num=5)) as uploads:
        uploads.on_complete(save("0"))
    assert s3.failed() == 5
    assert list_remote_checkpoints(RemoteFolder(s3.url)) == ["0"]


def test_a_failed_upload_is_made_up_for_with_the_next_checkpoint(s3, stage, save, few_attempts, caplog):
    s3.fail("busy", 10**6)
    uploads = Uploader(s3.url, stage, config=Config(max_last_checkpoint_num=5))
    uploads.on_complete(save("0"))
    wait_until(lambda: "the upload is tried again" in caplog.text)
    s3.fail("busy", 0)
    uploads.on_complete(save("1"))
    uploads.finish()
    assert list_remote_checkpoints(RemoteFolder(s3.url)) == ["0", "1"]


def test_a_failed_upload_is_tried_again_after_a_while(s3, stage, save, few_attempts, caplog, monkeypatch):
    monkeypatch.setattr(uploads_module, "RETRY_SECONDS", 0.05)
    s3.fail("busy", 10**6)
    uploads = Uploader(s3.url, stage, config=Config(max_last_checkpoint_num=5))
    uploads.on_complete(save("0"))
    wait_until(lambda: "the upload is tried again" in caplog.text)
    s3.fail("busy", 0)
    wait_until(lambda: list_remote_checkpoints(RemoteFolder(s3.url)) == ["0"])
    uploads.finish()


def test_an_upload_that_fails_to_the_end_is_an_error_and_loses_nothing(s3, stage, save, few_attempts):
    uploads = Uploader(s3.url, stage, config=Config(max_last_checkpoint_num=5), is_temporary=True)
    s3.fail("busy", 10**6)
    uploads.on_complete(save("0"))
    with pytest.raises(CheckpointError, match=r"not uploaded: 0: .*Nothing is lost: .*/stage holds it"):
        uploads.finish()
    assert Checkpoint(stage).path.name == "0"
    s3.fail("busy", 0)
    # The next run finds it, and uploads it.
    later = Uploader(s3.url, stage, config=Config(max_last_checkpoint_num=5))
    assert later.open_newest() == stage / "0"
    later.check((1, 0))
    later.finish()
    assert list_remote_checkpoints(RemoteFolder(s3.url)) == ["0"]


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_upload(s3, stage, save, few_attempts, caplog):
    with pytest.raises(ZeroDivisionError), Uploader(s3.url, stage, config=Config(max_last_checkpoint_num=5)) as uploads:
        s3.fail("busy", 10**6)
        uploads.on_complete(save("0"))
        raise ZeroDivisionError
    assert "not uploaded: 0" in caplog.text


UPLOAD = """
import sys
from pathlib import Path
from plsc import Config
from plsc.engine.uploads import Uploader
uploads = Uploader(sys.argv[1], Path(sys.argv[2]), config=Config(max_last_checkpoint_num=5))
uploads.on_complete(Path(sys.argv[2]) / "1")
uploads.finish()
"""


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.safetensors", "classes-000000000.safetensors", MANIFEST])
def test_an_upload_that_is_killed_leaves_nothing_that_counts(s3, stage, save, file):
    with Uploader(s3.url, stage, config=Config(max_last_checkpoint_num=5)) as uploads:
        uploads.on_complete(save("0"))
    save("1")
    s3.fail("stall", 1, methods=["PUT"], match=f"/1/{file}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", UPLOAD, s3.url, str(stage)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        wait_until(s3.failed, 60)
        process.send_signal(signal.SIGKILL)
    assert list_remote_checkpoints(RemoteFolder(s3.url)) == ["0"]
    later = Uploader(s3.url, stage.with_name("another machine"), config=Config(max_last_checkpoint_num=5))
    assert later.open_newest().name == "0"
    # On this machine the checkpoint is whole, and the next run uploads it over what the killed one left.
    again = Uploader(s3.url, stage, config=Config(max_last_checkpoint_num=5))
    assert again.open_newest().name == "1"
    again.check((2, 0))
    again.finish()
    assert list_remote_checkpoints(RemoteFolder(s3.url)) == ["0", "1"]


def test_a_checkpoint_is_deleted_there_only_after_newer_ones_are_whole(url, stage, save, monkeypatch):
    may_go, upload = threading.Event(), RemoteFolder.upload

    def slow(self, source, name):
        if self.url.endswith("/1"):
            assert may_go.wait(30)
        upload(self, source, name)

    monkeypatch.setattr(RemoteFolder, "upload", slow)
    with Uploader(url, stage, config=Config(max_last_checkpoint_num=1)) as uploads:
        uploads.on_complete(save("0"))
        wait_until(lambda: list_remote_checkpoints(RemoteFolder(url)) == ["0"])
        uploads.on_complete(save("1"))
        uploads.on_prune(stage / "0")
        time.sleep(0.2)
        assert list_remote_checkpoints(RemoteFolder(url)) == ["0"]
        may_go.set()
    assert names(url) == [name for name in names(url) if name.startswith("1/")] != []


def test_a_checkpoint_that_is_pruned_while_it_is_uploaded_is_uploaded_to_the_end(url, stage, save, monkeypatch):
    may_go, begun, upload, done = threading.Event(), threading.Event(), RemoteFolder.upload, []

    def slow(self, source, name):
        begun.set()
        assert may_go.wait(30)
        upload(self, source, name)
        done.append(f"{self.url[-1]}/{name}")

    monkeypatch.setattr(RemoteFolder, "upload", slow)
    with Uploader(url, stage, config=Config(max_last_checkpoint_num=1)) as uploads:
        uploads.on_complete(save("0"))
        assert begun.wait(30)
        for name in "123":  # slower than training: those between are never begun
            uploads.on_complete(save(name))
            pruned = stage / str(int(name) - 1)
            pruned.rename(stage / "gone")
            shutil.rmtree(stage / "gone")
            uploads.on_prune(pruned)
        may_go.set()
    assert [name for name in done if name.endswith(MANIFEST)] == [f"0/{MANIFEST}", f"3/{MANIFEST}"]
    assert list_remote_checkpoints(RemoteFolder(url)) == ["3"]


def test_checkpoints_of_earlier_runs_count_among_those_kept(url, stage, save, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with Uploader(url, stage, config=Config(max_last_checkpoint_num=5)) as uploads:
        for name in "0123":
            uploads.on_complete(save(name))
    other = tmp_path / "another machine"
    with Uploader(url, other, config=Config(max_last_checkpoint_num=2)) as uploads:
        assert uploads.open_newest() == other / "3"
        (stage / "3").rename(other / "4")
        uploads.on_complete(other / "4", prunes=False)
        wait_until(lambda: f"uploaded {url}/4" in caplog.text)
        assert list_remote_checkpoints(RemoteFolder(url)) == ["0", "1", "2", "3", "4"]
        uploads.on_complete(other / "4")
    assert list_remote_checkpoints(RemoteFolder(url)) == ["3", "4"]


def test_checkpoints_of_another_run_are_not_deleted(url, stage, save):
    with Uploader(url, stage, config=Config()) as uploads:
        uploads.on_complete(save("0", run="another"))
        uploads.on_complete(save("1", run="this"))
        uploads.on_complete(save("2", run="this"))
    shutil.rmtree(stage)
    with Uploader(url, stage, config=Config(max_last_checkpoint_num=1)) as uploads:
        uploads.on_complete(save("3", run="this"))
    assert list_remote_checkpoints(RemoteFolder(url)) == ["0", "3"]


def test_the_best_checkpoint_of_earlier_runs_stays(url, stage, save, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = Config(max_last_checkpoint_num=1, keep_best="lfw/accuracy")
    with Uploader(url, stage, config=Config()) as uploads:
        for name, accuracy in (("0", 0.8), ("1", 0.9), ("2", 0.7)):
            saved = save(name)
            uploads.on_complete(saved)
            (saved / METRICS).write_text(json.dumps({"lfw/accuracy": accuracy}))
            uploads.on_added(saved / METRICS)
    assert f"1/{METRICS}" in names(url)
    other = tmp_path / "another machine"
    with Uploader(url, other, config=config) as uploads:
        assert (uploads.open_newest() / METRICS).exists()
        (stage / "2").rename(other / "3")
        uploads.on_complete(other / "3")
        shutil.rmtree(other / "2")
        uploads.on_prune(other / "2")
    assert list_remote_checkpoints(RemoteFolder(url)) == ["1", "3"]


def test_a_run_that_starts_before_what_is_there_is_refused(url, stage, save, tmp_path):
    with Uploader(url, stage, config=Config(max_last_checkpoint_num=5)) as uploads:
        uploads.on_complete(save("7"))
    with pytest.raises(CheckpointError, match=r"run/7 is a checkpoint of later training .*set_checkpoint_dir\('memory"):
        Uploader(url, tmp_path / "other", config=Config(max_last_checkpoint_num=5)).check((0, 0))


def test_a_folder_that_cannot_be_written_is_found_at_the_start(s3, stage):
    with pytest.raises(StorageError, match="the bucket 'no-such-bucket' does not exist"):
        Uploader("s3://no-such-bucket/run", stage, config=Config(max_last_checkpoint_num=5)).check((0, 0))


def test_the_metrics_are_uploaded_and_come_back(url, stage, save, tmp_path):
    with Uploader(url, stage, config=Config(max_last_checkpoint_num=5)) as uploads:
        saved = save("0")
        (stage / "metrics.jsonl").write_text('{"step": 1}\n')
        uploads.on_complete(saved)
        wait_until(lambda: "0/manifest.json" in names(url) and "metrics.jsonl" in names(url))
        (stage / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    other = tmp_path / "another machine"
    Uploader(url, other, config=Config(max_last_checkpoint_num=5)).open_newest()
    assert [json.loads(line)["step"] for line in (other / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_the_files_of_loggers_are_uploaded_where_they_changed_and_come_back(url, stage, save, tmp_path, monkeypatch):
    uploaded = []
    with Uploader(url, stage, config=Config(max_last_checkpoint_num=5)) as uploads:
        upload = uploads.remote.upload
        monkeypatch.setattr(uploads.remote, "upload", lambda path, name: uploaded.append(name) or upload(path, name))
        saved = save("0")
        folder = stage / "logs" / "tensorboard"
        folder.mkdir(parents=True)
        (folder / "same").write_text("1")
        (folder / "grows").write_text("1")
        uploads.on_complete(saved)
        wait_until(lambda: {"0/manifest.json", "logs/tensorboard/same", "logs/tensorboard/grows"} <= set(names(url)))
        (folder / "grows").write_text("12")
    assert uploaded.count("logs/tensorboard/same") == 1 and uploaded.count("logs/tensorboard/grows") == 2
    other = tmp_path / "another machine"
    Uploader(url, other, config=Config(max_last_checkpoint_num=5)).open_newest()
    assert (other / "logs/tensorboard/grows").read_text() == "12"
    assert _is_log("logs/tensorboard/same") and not _is_log("logs/../escaped") and not _is_log("0/logs/x")


def test_a_temporary_stage_is_removed_once_all_is_uploaded(url, stage, save):
    with Uploader(url, stage, config=Config(max_last_checkpoint_num=5), is_temporary=True) as uploads:
        uploads.on_complete(save("0"))
    assert not stage.exists()
    assert list_remote_checkpoints(RemoteFolder(url)) == ["0"]
