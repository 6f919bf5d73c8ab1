"""What a path is that was given in place of another."""

from __future__ import annotations

import json
import os

import pytest

from plsc import CheckpointError, DataError, ServingError, load_inference_model, open_records
from plsc.checkpoint import Checkpoint
from plsc.utils.artifacts import recognize
from plsc.utils.hints import command_line

MANIFESTS = {
    "output/3/manifest.json": "plsc-checkpoint",
    "model/plsc_model.json": "plsc-inference-model",
    "gallery/gallery.json": "plsc-gallery",
    "other/manifest.json": "anything",
}
FILES = [
    "output/3/model.safetensors",
    "output/run.yaml",
    "model/model.json",
    "own.pdparams",
    "paddle/a.pdparams",
    "a.pth",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, kind in MANIFESTS.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(json.dumps({"format": kind, "names": ["x"] * 9}, indent=1))
    (tmp_path / "paddle").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "dist@arcface@rank@00000.w").touch()
    for name in FILES:
        (tmp_path / name).write_bytes(b"\x80")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "path, what",
    [
        ("output/3", "a checkpoint"),
        ("output", "a folder of checkpoints"),
        ("output/3/manifest.json", "a file of a checkpoint"),
        ("output/3/model.safetensors", "a file of a checkpoint"),
        ("model", "an exported model"),
        ("model/model.json", "a file of an exported model"),
        ("gallery", "a gallery"),
        ("own.pdparams", "a file of parameters that Paddle wrote"),
        ("paddle", "a folder of parameters that Paddle or PLSC 0.x wrote"),
        ("old", "a folder of parameters that Paddle or PLSC 0.x wrote"),
        ("a.pth", "a file of parameters that is not PLSC's"),
        ("output/run.yaml", "a file of settings"),
        ("other", None),
        ("other/manifest.json", None),
        ("none", None),
        ("own.pdparams/none", None),
    ],
)
def test_what_a_path_is(folder, path, what):
    found = recognize(path)
    assert (found.what if found else None) == what


@pytest.mark.parametrize(
    "path, words",
    [
        ("own.pdparams", "is a file of parameters that Paddle wrote; expected a folder with manifest.json"),
        ("own.pdparams", "set_pretrained begins a run with such weights, and plsc checkpoint import"),
        ("old", "is a folder of parameters that Paddle or PLSC 0.x wrote"),
        ("model", "is an exported model"),
        ("model", "plsc.load_inference_model takes it"),
        ("output/3/manifest.json", "set_checkpoint_dir('output/3') takes it"),
        ("output/7", "does not exist; expected a folder with manifest.json"),
        ("output/7", "output holds the checkpoints 3; name another folder with set_checkpoint_dir"),
        ("gallery", "is a gallery; expected"),
        ("other/manifest.json", "is a file; expected"),
    ],
)
def test_another_thing_in_place_of_a_checkpoint(folder, path, words):
    with pytest.raises(CheckpointError) as error:
        Checkpoint(path)
    assert words in str(error.value)


def test_a_file_of_a_checkpoint_leads_to_its_folder(folder):
    with pytest.raises(CheckpointError, match=r"; set_checkpoint_dir\('output/3'\) takes it$"):
        Checkpoint("output/3/model.safetensors")
    with (
        command_line(["--checkpoint-dir"]),
        pytest.raises(CheckpointError, match="; --checkpoint-dir output/3 takes it$"),
    ):
        Checkpoint("output/3/model.safetensors")


@pytest.mark.parametrize(
    "path, what",
    [
        ("output", "a folder of checkpoints"),
        ("output/3", "a checkpoint"),
        ("model", "an exported model"),
        ("own.pdparams", "a file of parameters that Paddle wrote"),
        ("output/run.yaml", "a file of settings"),
    ],
)
def test_another_thing_in_place_of_training_data(folder, path, what):
    with pytest.raises(DataError, match=f"; {path} is {what}; "):
        open_records(path)


@pytest.mark.parametrize("path", ["output", "output/3", "output/3/manifest.json"])
def test_a_checkpoint_in_place_of_a_model(folder, path):
    with pytest.raises(ServingError, match="no exported model there.*checkpoint.*convert_for_prediction"):
        load_inference_model(path)
    root = os.path.dirname(path) if path.endswith("json") else path
    with command_line(["--output"]), pytest.raises(ServingError, match=f"plsc export --checkpoint-dir {root} makes a"):
        load_inference_model(path)


@pytest.mark.parametrize(
    "path, reason",
    [
        ("nowhere", "(the folder does not exist); make one"),
        ("own.pdparams/model", "(the folder does not exist); make one"),
        ("dangling", "(the folder does not exist); make one"),
        ("old", "is missing); it is a folder of parameters"),
        ("plain", "is missing); make one"),
        ("file", "(it is a file); make one"),
        ("x" * 300, " can be read there: File name too long"),
        ("a\0b", " can be read there: "),
    ],
)
def test_what_is_no_model_and_no_gallery_is_said_to_be_what_it_is(folder, path, reason):
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    from plsc.inference.gallery import Gallery

    (folder / "dangling").symlink_to("gone")
    (folder / "plain").mkdir()
    (folder / "file").touch()
    for kind, file, read in (
        ("exported model", "plsc_model.json", load_inference_model),
        ("gallery", "gallery.json", Gallery.open),
    ):
        with pytest.raises(ServingError) as raised:
            read(path)
        assert str(raised.value).startswith(f"{path}: no {kind} ") and reason in str(raised.value)
        assert ("is missing" in str(raised.value)) == (f"{file} is missing" in str(raised.value))
