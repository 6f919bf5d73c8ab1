"""`plsc gallery`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from plsc.cli.gallery import _named_files
from plsc.cli.main import main
from plsc.data.sources import open_records
from plsc.errors import ConfigError, DataError
from plsc.inference.gallery import Gallery
from tests._support.ranks import run
from tests._support.servers import make_image, make_model

pytest.importorskip("faiss", reason="faiss-cpu is not installed")

IMAGES = [make_image(seed) for seed in range(5)]


@pytest.fixture
def plsc_gallery(monkeypatch, capfd):
    """`plsc gallery ...` in this process; returns its output."""

    def call(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["plsc", "gallery", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        output = "\n".join(capfd.readouterr())
        assert (end.value.code or 0) == status, output
        return output

    return call


@pytest.fixture
def faces(tmp_path):
    """faces/ann and faces/bob with two images each, and carl.png."""
    for person in ("ann", "bob"):
        (tmp_path / "faces" / person).mkdir(parents=True)
    for number, image in enumerate(IMAGES[:4]):
        (tmp_path / "faces" / ("ann" if number < 2 else "bob") / f"{number}.png").write_bytes(image)
    (tmp_path / "carl.png").write_bytes(IMAGES[4])
    return tmp_path / "faces"


def test_build_add_search_and_remove(plsc_gallery, model, faces, tmp_path):
    gallery, carl, report = tmp_path / "g", tmp_path / "carl.png", tmp_path / "report.json"
    report.write_text(json.dumps({"lfw/threshold": 0.99}))
    _, output = run([sys.executable, "-m", "plsc", "gallery", "build", model, gallery, faces])
    assert "4 entries of 2 names" in output and "enrolled ann (2), bob (2)" in output
    assert "exists and is not overwritten" in plsc_gallery("build", model, gallery, faces, status=1)
    output = plsc_gallery("add", model, gallery, carl)
    assert "enrolled carl (1)" in output and "5 entries of 3 names" in output
    output = plsc_gallery("search", model, gallery, carl, faces / "bob" / "2.png", "-k", 1, "--report", report)
    found = [json.loads(line) for line in re.findall(r"^\{.*\}$", output, re.MULTILINE)]
    assert [row["matches"][0]["name"] for row in found] == ["carl", "bob"]
    assert all(row["matches"][0]["same"] and row["threshold"] == 0.99 for row in found)
    both = plsc_gallery("search", model, gallery, carl, "--report", report, "--threshold", 0.5, status=1)
    assert "--threshold and --report both give a threshold" in both
    assert "1 entries removed, 4 left" in plsc_gallery("remove", gallery, "carl")
    (tmp_path / "empty").mkdir()
    assert "no image in it" in plsc_gallery("add", model, gallery, tmp_path / "empty", status=1)


def test_a_model_of_other_weights_is_refused(plsc_gallery, model, faces, tmp_path):
    gallery, carl = tmp_path / "g", tmp_path / "carl.png"
    plsc_gallery("build", model, gallery, faces)
    # Another export of the same weights is accepted.
    make_model(tmp_path / "baked", bake=("normalize",))
    plsc_gallery("search", tmp_path / "baked", gallery, carl)
    make_model(tmp_path / "other", seed=1)
    for command in ("add", "search"):
        assert "built with other weights" in plsc_gallery(command, tmp_path / "other", gallery, carl, status=1)
    make_model(tmp_path / "other", emb_dim=8)
    output = plsc_gallery("search", tmp_path / "other", gallery, carl, status=1)
    assert "gallery's embeddings are of 16, the model's of 8" in output


def test_a_folder_gives_every_kind_of_image_that_data_sets_may_hold(tmp_path):
    folder = tmp_path / "ann"
    folder.mkdir()
    (folder / "notes.txt").write_bytes(b"x")
    with pytest.raises(ConfigError, match="no image in it, expected files of .jpg, .jpeg, .jpe, .jfif, .png, .*.gif"):
        _named_files([folder])
    for name in ("1.JPG", "2.tif", "3.gif", "4.webp"):
        (folder / name).write_bytes(b"x")
    assert _named_files([folder]) == [("ann", folder / name) for name in ("1.JPG", "2.tif", "3.gif", "4.webp")]


def test_the_number_of_an_image_is_no_name_unless_it_is_asked_for(plsc_gallery, model, faces, tmp_path):
    gallery = tmp_path / "g"
    plsc_gallery("build", model, gallery, faces)
    image = faces / "ann" / "0.png"
    before = Gallery.open(gallery).names
    output = plsc_gallery("add", model, gallery, image, status=1)
    assert "'0' is the number of an image; choose one of --name ann, --name '{folder}'" in output
    assert Gallery.open(gallery).names == before
    for name, enrolled in (("ann", "ann"), ("{folder}", "ann"), ("{file}", "0"), ("{folder}-{file}", "ann-0")):
        assert f"enrolled {enrolled} (1)" in plsc_gallery("add", model, gallery, image, "--name", name)
        assert Gallery.open(gallery).names[-1] == enrolled
    assert "enrolled carl (1)" in plsc_gallery("add", model, gallery, faces / "bob" / ".." / ".." / "carl.png")
    found = plsc_gallery("search", model, gallery, image, "-k", 1)  # needs no name
    assert '"name": "ann' in found or '"name": "0"' in found
    assert "choose one of --name ann" in plsc_gallery("build", model, tmp_path / "other", image, status=1)


def test_folders_give_the_names_that_training_gives(faces, caplog):
    image = (faces / "ann" / "0.png").read_bytes()
    for place in (
        "ann/2020/5.png",
        ".Trash-1000/files/old.png",
        "ann/.thumbnails/0.png",
        "#recycle/0.png",
        "bob/._2.png",
    ):
        (faces / place).parent.mkdir(parents=True, exist_ok=True)
        (faces / place).write_bytes(image)
    names = [name for name, _ in _named_files([faces])]
    assert "To enroll one, rename it" in caplog.text and "label.txt" not in caplog.text
    records = open_records(faces)
    assert names == [records.class_names[label] for label in records.labels] == ["ann"] * 3 + ["bob"] * 2
    assert "ignored 4 files and folders that are hidden" in caplog.text
    (faces / "9.png").write_bytes(image)
    with pytest.raises(ConfigError, match="faces: holds images, 9.png the first, beside folders of images"):
        _named_files([faces])
    assert {name for name, _ in _named_files([faces], "x")} == {"x"}
    (faces / "9.png").unlink()
    root = faces.parent / "set"
    root.mkdir()
    faces.rename(root / "train")
    with pytest.raises(DataError, match="set: holds train, which is a part of a data set and no class: name it, as"):
        _named_files([root])


def test_a_folder_of_images_has_its_own_name_however_it_is_written(faces, monkeypatch):
    monkeypatch.chdir(faces / "ann")
    for path in (Path("."), Path("../ann"), faces / "ann", Path("../bob/../ann/")):
        assert [name for name, _ in _named_files([path])] == ["ann", "ann"]
