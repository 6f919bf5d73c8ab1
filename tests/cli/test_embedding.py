"""`plsc embed` on files, folders and lists."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from plsc import load_inference_model
from tests._support.command_line import in_process
from tests._support.servers import make_image

IMAGES = [make_image(seed) for seed in range(4)]


@pytest.fixture
def plsc_embed(monkeypatch, capfd, tmp_path):
    """`plsc embed ...` in this process, in a folder with photos/ann/0.png, 1.png and photos/b.png; its output."""
    monkeypatch.chdir(tmp_path)
    for number, place in enumerate(("photos/ann/0.png", "photos/ann/1.png", "photos/b.png", "single é.png")):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(IMAGES[number])

    call = in_process(monkeypatch, capfd, "embed")
    return lambda *arguments, status=0: "\n".join(call(*arguments, status=status))


def rows_of(file):
    with open(file, encoding="utf-8", newline="") as lines:
        return list(csv.reader(lines))


def test_folders_and_lists_are_embedded_with_the_names_of_their_files(plsc_embed, model, tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "l.txt").write_text("../photos/ann/1.png\n\n../photos\n", encoding="utf-8")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    plsc_embed(model, "single é.png", "photos", "--list", "lists/l.txt", "--output", "e.npy")
    folder = ["photos/ann/0.png", "photos/ann/1.png", "photos/b.png"]
    listed = [f"lists/../{file}" for file in ("photos/ann/1.png", *folder)]
    files = ["single é.png", *folder, *listed]
    assert rows_of("e.csv") == [["row", "image"], *([str(row), file] for row, file in enumerate(files))]
    np.testing.assert_array_equal(np.load("e.npy"), load_inference_model(model).embed(files))


def test_nothing_is_overwritten_unless_asked(plsc_embed, model, tmp_path):
    for name in ("e.npy", "e.csv"):
        (tmp_path / name).write_text("mine")
        assert f"{name} exists and is not overwritten" in plsc_embed(model, "photos", "--output", "e.npy", status=1)
        assert sorted(file.name for file in tmp_path.glob("e.*")) == [name]
        plsc_embed(model, "photos", "--output", "e.npy", "--force")
        assert np.load("e.npy").shape[0] == len(rows_of("e.csv")) - 1 == 3
        for made in tmp_path.glob("e.*"):
            made.unlink()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "no image is given; name files or folders, or a list of paths with --list FILE"),
        (["empty"], "empty: no image in it, expected files of .jpg"),
        (["--list", "none.txt"], "none.txt: the list cannot be read"),
        (["--list", "list.txt"], "photos/none.png"),
        (["photos", "--output", "e.csv"], "e.csv: the paths of the images are written there"),
    ],
)
def test_mistakes(plsc_embed, model, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("photos/none.png\n")
    assert message in plsc_embed(model, *arguments, status=1)
    assert not list(tmp_path.glob("e*.npy"))
