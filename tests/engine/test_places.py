"""Runs whose data, checkpoints and exports lie in remote folders."""

from __future__ import annotations

import json
import shutil
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest

import plsc
from plsc.checkpoint import Checkpoint
from plsc.engine.uploads import list_remote_checkpoints
from plsc.errors import CheckpointError, DataError, ExportError, StorageError
from plsc.remote.folder import RemoteFolder
from tests._support.ranks import launch, run
from tests._support.s3 import KEY, SECRET, fill, names


@pytest.fixture
def root(request, monkeypatch, tmp_path):
    """The URL of an empty remote folder, of fsspec's memory unless `on_both` says otherwise."""
    if getattr(request, "param", "memory") == "s3":
        return request.getfixturevalue("s3").url + "/folder"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"memory://{uuid.uuid4().hex}"


on_both = pytest.mark.parametrize("root", ["memory", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)


@pytest.fixture
def another_machine(monkeypatch, tmp_path):
    """A function that gives the process the empty cache of another machine."""

    def change():
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / uuid.uuid4().hex))

    return change


def copy_up(folder, url):
    fill(url, {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()})


def tensors(saved):
    return {name: saved.read(name) for name in saved.names("")}


@on_both
def test_a_run_on_remote_data_equals_one_on_local_data(entry, data_dir, root, tmp_path):
    local = entry.train()
    copy_up(data_dir, f"{root}/faces")
    entry.set_dataset_dir(f"{root}/faces")
    entry.set_model_save_dir(f"{root}/run")
    remote = entry.train()
    assert remote["lfw/accuracy"] == local["lfw/accuracy"]
    assert remote["loss"] == local["loss"]
    entry.set_checkpoint_dir(f"{root}/run")
    assert entry.test()["lfw/accuracy"] == local["lfw/accuracy"]
    assert entry.predict([data_dir / "images" / "00000000.png"]).shape == (1, 16)
    assert "metrics.jsonl" in names(f"{root}/run")


@on_both
def test_a_run_resumes_on_another_machine_as_if_it_had_not_stopped(entry, root, another_machine, tmp_path):
    entry.set_with_test(False)
    entry.set_train_epochs(3)
    entry.train()
    whole = tensors(Checkpoint(tmp_path / "output"))

    entry.set_model_save_dir(f"{root}/run")
    entry.set_train_epochs(2)
    entry.train()
    another_machine()
    entry.set_train_epochs(3)
    entry.set_checkpoint_dir(f"{root}/run")
    entry.train()
    another_machine()
    assert list_remote_checkpoints(RemoteFolder(f"{root}/run")) == ["0", "1", "2"]
    resumed = Checkpoint(_fetched(f"{root}/run", tmp_path))
    assert {name: value.tobytes() for name, value in tensors(resumed).items()} == {
        name: value.tobytes() for name, value in whole.items()
    }
    lines = [json.loads(line) for line in RemoteFolder(f"{root}/run").read("metrics.jsonl").splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]  # the last step of each run
    assert resumed.about["settings"]["model_save_dir"] == f"{root}/run"


def _fetched(url, tmp_path):
    from plsc.engine.uploads import fetch_checkpoint
    from plsc.remote.cache import Cache

    return fetch_checkpoint(url, Cache(tmp_path / "looked at"))


def test_the_same_command_begins_and_goes_on(entry, root, another_machine):
    entry.set_auto_resume(True)
    entry.set_model_save_dir(f"{root}/run")
    for epochs in (1, 2):
        entry.set_train_epochs(epochs)
        entry.train()
        another_machine()
    folder = RemoteFolder(f"{root}/run")
    assert list_remote_checkpoints(folder) == ["0", "1"]
    assert "lfw/accuracy" in json.loads(folder.read("0/metrics.json"))
    assert "lfw/accuracy" in json.loads(folder.read("1/metrics.json"))
    entry.set_checkpoint_dir(f"{root}/new")
    entry.set_model_save_dir(f"{root}/new")
    entry.train()
    assert list_remote_checkpoints(RemoteFolder(f"{root}/new")) == ["0", "1"]


def test_a_checkpoint_of_another_remote_folder_is_resumed_from_the_cache(entry, root):
    entry.set_with_test(False)
    entry.set_model_save_dir(f"{root}/first")
    entry.train()
    entry.set_checkpoint_dir(f"{root}/first/0")
    entry.set_model_save_dir(f"{root}/second")
    entry.set_train_epochs(2)
    entry.train()
    assert list_remote_checkpoints(RemoteFolder(f"{root}/first")) == ["0"]
    assert list_remote_checkpoints(RemoteFolder(f"{root}/second")) == ["1"]


@on_both
def test_the_oldest_checkpoints_are_deleted_there_too(entry, root):
    entry.set_with_test(False)
    entry.set_max_last_checkpoint_num(2)
    entry.set_train_epochs(4)
    entry.set_model_save_dir(f"{root}/run")
    entry.train()
    assert list_remote_checkpoints(RemoteFolder(f"{root}/run")) == ["2", "3"]
    assert {name.partition("/")[0] for name in names(f"{root}/run")} == {
        "2",
        "3",
        "metrics.csv",
        "metrics.jsonl",
        "run.json",
    }


def test_the_same_command_again_is_refused_as_with_a_local_folder(entry, root, another_machine):
    entry.set_with_test(False)
    entry.set_model_save_dir(f"{root}/run")
    entry.train()
    another_machine()
    with pytest.raises(CheckpointError, match=r"run/0 is a checkpoint of later training.*set_checkpoint_dir"):
        entry.train()


def test_the_default_stage_is_removed_and_a_chosen_one_stays(entry, root, tmp_path):
    entry.set_with_test(False)
    entry.set_model_save_dir(f"{root}/run")
    entry.train()
    assert not list((tmp_path / "cache").rglob("manifest.json"))
    # Where nothing is left to train, the checkpoint is copied here and goes again.
    entry.set_checkpoint_dir(f"{root}/run")
    entry.train()
    assert not list((tmp_path / "cache").rglob("manifest.json"))
    entry.set_checkpoint_dir("")
    entry.set_stage_dir(tmp_path / "stage")
    entry.set_model_save_dir(f"{root}/other")
    entry.train()
    assert Checkpoint(tmp_path / "stage").path.name == "0"


def test_verification_sets_are_copied_alone(entry, data_dir, root, tmp_path):
    copy_up(data_dir, f"{root}/faces")
    entry.train()
    entry.set_dataset_dir(f"{root}/faces")
    entry.test()
    held = [path.name for path in (tmp_path / "cache").rglob("files/**/*") if path.is_file()]
    assert held == ["lfw.bin"]
    entry.set_dataset_dir(data_dir)
    entry.set_val_targets(f"{root}/faces/lfw")
    assert "lfw/accuracy" in entry.test()
    entry.set_val_targets(f"{root}/faces/agedb.bin")
    with pytest.raises(DataError, match=r"agedb.bin does not exist; .*/faces holds lfw.bin"):
        entry.test()


def test_validation_data_in_a_remote_folder(entry, data_dir, root, tmp_path):
    entry.set_val_dataset(data_dir)
    local = entry.train()
    copy_up(data_dir, f"{root}/faces")
    entry.set_model_save_dir(tmp_path / "again")
    entry.set_val_dataset(f"{root}/faces")
    remote = entry.train()
    for results in (local, remote):
        results.pop("images/s")
    assert remote == local and local["val/images"] == 30
    assert entry.test()["val/top1"] == local["val/top1"]
    # A part that is held out of remote data.
    entry.set_val_dataset(None)
    entry.set_dataset_dir(f"{root}/faces")
    entry.set_val_split(0.2)
    entry.set_model_save_dir(tmp_path / "split")
    results = entry.train()
    assert results["val/images"] == 6 and entry.test()["val/top1"] == results["val/top1"]


def test_sub_centers_are_dropped_of_a_remote_checkpoint_by_remote_data(entry, data_dir, root, tmp_path):
    copy_up(data_dir, f"{root}/faces")
    entry.set_dataset_dir(f"{root}/faces")
    entry.set_model_save_dir(f"{root}/run")
    entry.set_with_test(False)
    entry.set_subcenters(2)
    entry.train()
    found = plsc.Entry()
    found.set_checkpoint_dir(f"{root}/run")
    for target, csv in ((f"{root}/one", None), (tmp_path / "one", f"{root}/far.csv")):
        with pytest.raises(plsc.ConfigError, match="is a remote place, expected a local one"):
            found.drop_subcenters(target, csv=csv)
    assert found.drop_subcenters(tmp_path / "one").images == 30
    assert Checkpoint(tmp_path / "one").about["settings"]["subcenters"] == 1


@on_both
def test_an_export_is_written_to_a_remote_folder_and_loaded_from_it(entry, data_dir, root, tmp_path):
    entry.set_with_test(False)
    entry.set_model_save_dir(f"{root}/run")
    entry.train()
    assert entry.convert_for_prediction() == f"{root}/run/inference_model"
    image = data_dir / "images" / "00000000.png"
    expected = entry.predict([image])
    for location in (f"{root}/run", Path(f"{root}/run/inference_model")):  # at the command line it is a Path
        np.testing.assert_allclose(plsc.load_inference_model(location).embed([image]), expected, atol=1e-5)
    # Again, over the earlier one; a file that the user added stays, and so do those of a stage.
    (tmp_path / "stage" / "export").mkdir(parents=True)
    (tmp_path / "stage" / "export" / "mine").write_text("mine")
    entry.set_stage_dir(tmp_path / "stage")
    fill(f"{root}/run/inference_model", {"notes.txt": b"mine"})
    entry.convert_for_prediction(f"{root}/run/inference_model")
    assert (tmp_path / "stage" / "export" / "mine").exists()
    folder = RemoteFolder(f"{root}/run/inference_model")
    assert folder.read("notes.txt") == b"mine"
    assert json.loads(folder.read("plsc_model.json"))["checkpoint"] == f"{root}/run/0"
    fill(f"{root}/mine", {"notes.txt": b"mine"})
    with pytest.raises(ExportError, match="is not empty and holds no exported model"):
        entry.convert_for_prediction(f"{root}/mine")
    assert names(f"{root}/mine") == ["notes.txt"]


def test_what_does_not_exist_is_named(entry, root):
    entry.set_dataset_dir(f"{root}/nothing")
    with pytest.raises(DataError, match=r"/nothing: there is no such folder or file"):
        entry.train()
    entry.set_checkpoint_dir(f"{root}/nothing")
    with pytest.raises(CheckpointError, match=r"/nothing holds no whole checkpoint; .*set_checkpoint_dir"):
        entry.train()


def test_data_beyond_the_limit_is_refused(entry, data_dir, root):
    copy_up(data_dir, f"{root}/faces")
    entry.set_dataset_dir(f"{root}/faces")
    entry.set_cache_gb(1e-6)
    with pytest.raises(StorageError, match=r"more than the limit of the cache, 1e-06 GB; raise it: set_cache_gb\(1\)"):
        entry.train()


def test_set_hdfs_info_names_remote_folders_in_any_order(entry, root, tmp_path, another_machine):
    entry.set_with_test(False)
    entry.set_hdfs_info(root, "user,secret", fs_dir_for_save="/run")
    entry.set_model_save_dir(tmp_path / "local")
    entry.train()
    assert list_remote_checkpoints(RemoteFolder(f"{root}/run")) == ["0"]
    assert Checkpoint(tmp_path / "local").path.name == "0"
    shutil.rmtree(tmp_path / "local")
    entry.set_hdfs_info(root, "user,secret", fs_dir_for_save="/run", fs_checkpoint_dir="run")
    entry.set_train_epochs(2)
    entry.train()
    assert list_remote_checkpoints(RemoteFolder(f"{root}/run")) == ["0", "1"]
    assert entry.model_save_dir == str(tmp_path / "local")


RUN = """
import sys
import plsc

def entry_of(faces, save, checkpoint="", epochs=1):
    entry = plsc.Entry()
    entry.set_dataset_dir(faces)
    entry.set_model_save_dir(save)
    entry.set_checkpoint_dir(checkpoint)
    entry.set_train_epochs(epochs)
    entry.set_image_shape((3, 16, 16))
    entry.set_model_name("ResNetTiny")
    entry.set_emb_size(16)
    entry.set_train_batch_size(10)
    entry.set_num_workers(1)
    entry.set_scale(16)
    print(entry, entry.config)
    return entry
"""
RANKS = (
    RUN
    + """
entry_of(*sys.argv[1:-1], int(sys.argv[-1])).train()
"""
)
SECRETS = (
    RUN
    + """
root = sys.argv[1]
entry = entry_of(root + "/faces", root + "/run")
entry.set_val_targets(root + "/faces/lfw.bin")
entry.train()
faults = [
    lambda: entry_of(root + "/faces", root + "/run").train(),  # there are later checkpoints
    lambda: entry_of(root + "/faces", root + "/run", root + "/missing").train(),
    lambda: entry_of(root + "/nothing", root + "/other").train(),
    lambda: entry_of(root + "wrong/faces", root + "/other").train(),
    lambda: entry_of(root + "wrong/faces", root + "wrong/run").convert_for_prediction(),
]
for fault in faults:
    try:
        fault()
    except plsc.PLSCError as error:
        print(type(error).__name__, error)
    else:
        sys.exit("no error")
entry = entry_of(root + "/faces", root + "/run", root + "/run", 2)
entry.train()
print(entry.convert_for_prediction(root + "/model"))
"""
)


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_train_on_remote_data_and_resume(s3, data_dir, tmp_path, another_machine):
    copy_up(data_dir, f"{s3.url}/faces")
    script = tmp_path / "train.py"
    script.write_text(RANKS)
    places = [f"{s3.url}/faces", f"{s3.url}/run"]
    launch(2, script, *places, "", 1, log_dir=tmp_path / "logs")
    another_machine()
    launch(2, script, *places, f"{s3.url}/run", 2, log_dir=tmp_path / "logs")
    assert list_remote_checkpoints(RemoteFolder(f"{s3.url}/run")) == ["0", "1"]


@pytest.mark.slow
def test_credentials_of_urls_are_used_and_reach_nothing_that_is_written(s3, data_dir, tmp_path, monkeypatch):
    copy_up(data_dir, f"{s3.url}/faces")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    script, secret = tmp_path / "train.py", s3.url.replace("://", f"://{KEY}:{SECRET}@")
    script.write_text(SECRETS)
    output = run([sys.executable, script, secret], cwd=tmp_path)[1]
    for expected in (
        "is a checkpoint of later training",
        "holds no whole checkpoint",
        "no such folder",
        "wrong' does not",
    ):
        assert expected in output
    command = [sys.executable, "-m", "plsc", "train", "--dataset-dir", f"{secret}wrong/faces", "--lr", "wrong"]
    status, message = run(command, cwd=tmp_path, check=False)
    assert status == 1
    everything = (output + message).encode()
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != script]
    everything += b"".join(path.read_bytes() for path in files)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    folder = RemoteFolder(s3.url)
    everything += b"".join(folder.read(name) for name in names(s3.url))
    assert s3.url.encode() in everything
    assert SECRET.encode() not in everything
    assert KEY.encode() not in everything


def test_the_parts_of_a_url_without_credentials():
    entry = plsc.Entry()
    entry.set_model_save_dir("s3://key:se/cr+et@bucket/run")
    entry.set_checkpoint_dir(Path("s3://bucket/run"))  # which Path collapses
    entry.dataset_dir = "hdfs://me:word@host:9000/faces"
    assert (entry.model_save_dir, entry.checkpoint_dir) == ("s3://bucket/run", "s3://bucket/run")
    assert entry.dataset_dir == "hdfs://host:9000/faces"
    for text in (repr(entry), entry.config.model_dump_json()):
        assert not any(secret in text for secret in ("key", "se/cr", "word"))
