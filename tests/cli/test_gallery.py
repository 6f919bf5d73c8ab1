"""`plsc gallery`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from plsc.cli.gallery import _named_files
from plsc.data.sources import open_records
from plsc.errors import ConfigError, DataError
from plsc.inference.gallery import Gallery
from plsc.inference.model import InferenceModel, load_inference_model
from tests._support.command_line import in_process
from tests._support.ranks import run
from tests._support.servers import make_image, make_model

GBK_NAME = os.fsdecode("张三".encode("gbk"))

pytest.importorskip("faiss", reason="faiss-cpu is not installed")

IMAGES = [make_image(seed) for seed in range(5)]


@pytest.fixture
def plsc_gallery(monkeypatch, capfd):
    """`plsc gallery ...` in this process; returns its output."""

    call = in_process(monkeypatch, capfd, "gallery")
    return lambda *arguments, status=0: "\n".join(call(*arguments, status=status))


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
    alone = plsc_gallery("search", model, gallery, carl, "--report-set", "lfw", status=1)
    assert "--report-set lfw names a set of a report; give the report too, with --report" in alone
    assert "1 entry removed, 4 left" in plsc_gallery("remove", gallery, "carl")
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
    assert "gallery's embeddings are of 16, those of the model in" in output


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
    for name, part in (("{Folder}", "{Folder}"), ("{}", "{}"), ("{file", "{file"), ("{folder}-{name}", "{name}")):
        output = plsc_gallery("add", model, gallery, image, "--name", name, status=1)
        assert f"--name {name}: got {part}, expected {{folder}} for the name of an image's folder" in output


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "gbk"])
def test_the_result_of_a_search_is_json_on_a_terminal_of_any_encoding(model, faces, tmp_path, encoding):
    gallery, files = tmp_path / "g", [tmp_path / "é 中 \U0001f600.png", tmp_path / os.fsdecode(b"\xd5\xd5.png")]
    made = Gallery(load_inference_model(model).emb_dim)
    made.add(["ann"], load_inference_model(model).embed(IMAGES[0]))
    made.save(gallery)
    for file in files:
        file.write_bytes(IMAGES[0])
    done = subprocess.run(
        [sys.executable, "-m", "plsc", "gallery", "search", model, gallery, *files],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    )
    lines = done.stdout.decode(encoding).splitlines()
    assert [json.loads(line)["image"] for line in lines] == [str(file) for file in files]


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
    assert "ignored 4 paths, hidden" in caplog.text
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


def touch(root, *places):
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(b"x")
    return root


def named(*paths, name=None):
    return {str(file.relative_to(paths[0])): found for found, file in _named_files(list(paths), name)}


def test_a_folder_of_one_file_per_person_needs_a_name(plsc_gallery, model, tmp_path):
    flat = touch(tmp_path / "faces", "ann.jpg", "bob.jpg")
    with pytest.raises(ConfigError, match="holds images and no folders, ann.jpg the first.*--name faces or --name '{f"):
        _named_files([flat])
    assert named(flat, name="{file}") == {"ann.jpg": "ann", "bob.jpg": "bob"}
    assert set(named(flat, name="{folder}").values()) == {"faces"}
    for alone in ("ann.jpg", "e1001.jpg"):  # the only image, or a number with a letter
        with pytest.raises(ConfigError, match="cannot be told"):
            _named_files([touch(tmp_path / alone / "faces", alone)])
    # Files that are numbered belong to the folder's name, as in training.
    for numbered in ("0.jpg", "2024-01-31 (2).jpg", "Ann_Lee_0001.jpg", "IMG_1234.jpg", "ann_lee.jpg"):
        folder = touch(tmp_path / numbered / "Ann_Lee", numbered)
        assert named(folder) == {numbered: "Ann_Lee"}
    with pytest.raises(ConfigError, match="bob.jpg the first"):
        _named_files([touch(tmp_path / "mixed", "1.jpg", "bob.jpg")])
    assert "cannot be told" in plsc_gallery("build", model, tmp_path / "g", flat, status=1)
    assert not (tmp_path / "g").exists()


def test_a_part_of_a_data_set_and_an_unknown_word_in_braces_are_no_names(plsc_gallery, model, faces, tmp_path):
    faces.joinpath("ann").rename(tmp_path / "images")
    output = plsc_gallery("build", model, tmp_path / "g", tmp_path / "images", status=1)
    assert (
        "'images' is the name of a part of a data set and of no class: choose --name NAME, or --name '{file}'" in output
    )
    output = plsc_gallery("build", model, tmp_path / "g", tmp_path / "images", "--name", "{name}", status=1)
    assert "--name {name}: got {name}, expected {folder} for" in output
    assert not (tmp_path / "g").exists()
    assert "enrolled images (2)" in plsc_gallery(
        "build", model, tmp_path / "g", tmp_path / "images", "--name", "{folder}"
    )


def test_folders_inside_a_persons_folder_belong_to_that_person(tmp_path):
    root = touch(tmp_path / "faces", "ann/2024/1.jpg", "ann/2.jpg", "bob/2024/1.jpg", "a/john/1.jpg", "b/john/1.jpg")
    assert named(root) == {
        "a/john/1.jpg": "a",
        "ann/2.jpg": "ann",
        "ann/2024/1.jpg": "ann",
        "b/john/1.jpg": "b",
        "bob/2024/1.jpg": "bob",
    }


def test_two_folders_of_one_name_are_not_enrolled_as_one(tmp_path):
    touch(tmp_path, "a/john/1.jpg", "b/john/1.jpg", "a/mary/1.jpg", "c/john.jpg", "d/john.jpg")
    for paths in (("a", "b"), ("a/john", "b/john"), ("a", "c/john.jpg"), ("c/john.jpg", "d/john.jpg")):
        with pytest.raises(ConfigError, match="'john' is the name of .*john.* and of .*john.*, and the images of both"):
            _named_files([tmp_path / path for path in paths])
    found = _named_files([tmp_path / "a", tmp_path / "b"], "{folder}")
    assert [name for name, _ in found] == ["john", "mary", "john"]
    # A folder that is given twice, or once by a link, is the same one; an image that is given twice counts once.
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert len(_named_files([tmp_path / "a", tmp_path / "a", tmp_path / "a" / "john"])) == 2
    assert len(_named_files([tmp_path / "a", tmp_path / "link"])) == 4


def test_names_of_folders_above_and_linked_folders(tmp_path, monkeypatch):
    touch(tmp_path, "ann/sub/.keep", "ann/1.jpg", "store/bob/1.jpg", "faces/carl/1.jpg")
    (tmp_path / "faces" / "bob").symlink_to(tmp_path / "store" / "bob")
    (tmp_path / "linked").symlink_to(tmp_path / "faces")
    (tmp_path / "faces" / "carl" / "loop").symlink_to(tmp_path / "faces")
    assert [name for name, _ in _named_files([tmp_path / "linked"])] == ["bob", "carl"]
    monkeypatch.chdir(tmp_path / "ann" / "sub")
    assert [name for name, _ in _named_files([Path("..")])] == ["ann"]
    monkeypatch.chdir(tmp_path / "ann")
    assert [name for name, _ in _named_files([Path(".")])] == ["ann"]
    with pytest.raises(ConfigError, match="a name is empty.*or give a --name"):
        _named_files([Path("1.jpg")], "")


def test_leftovers_are_no_people(tmp_path, caplog):
    root = touch(
        tmp_path / "faces",
        "ann/1.png",
        "ann/._1.png",
        "ann/@eaDir/1.png",
        "ann/.ipynb_checkpoints/1.png",
        ".ipynb_checkpoints/1.png",
        "@eaDir/ann/1.png",
        "__MACOSX/ann/1.png",
    )
    assert named(root) == {"ann/1.png": "ann"} and named(root / "ann") == {"1.png": "ann"}
    assert "ignored 6 paths, hidden" in caplog.text


def test_a_name_in_bytes_that_are_not_utf8_is_refused_before_anything_is_embedded(plsc_gallery, model, faces, tmp_path):
    image, gallery = (faces / "ann" / "0.png").read_bytes(), tmp_path / GBK_NAME / "g"
    (tmp_path / GBK_NAME).mkdir()
    plsc_gallery("build", model, gallery, faces)  # the gallery's own place may have any name
    for place in (faces / GBK_NAME / "1.png", tmp_path / f"{GBK_NAME}.png"):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(image)
    (faces / "ann" / "0.png").write_bytes(b"no image")  # would be the first error of embedding
    for path in (faces, tmp_path / f"{GBK_NAME}.png"):
        for command in (("build", model, tmp_path / "other"), ("add", model, gallery)):
            output = plsc_gallery(*command, path, status=1)
            assert "is not UTF-8 (in GBK it is '张三'), expected text; rename the folder or the file, or give" in output
    assert not (tmp_path / "other").exists()
    assert "enrolled zhang (1)" in plsc_gallery("add", model, gallery, tmp_path / f"{GBK_NAME}.png", "--name", "zhang")
    found = plsc_gallery("search", model, gallery, tmp_path / f"{GBK_NAME}.png", "-k", 5)
    assert '"zhang"' in found and "1 entry removed" in plsc_gallery("remove", gallery, "zhang")


def test_images_of_every_kind_are_enrolled(plsc_gallery, model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    for name in ("gif", "tif", "jfif", "webp", "bmp", "ppm"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        path = tmp_path / "faces" / name / f"1.{name}"
        if name == "gif":
            Image.fromarray(pixels).save(path)
        else:
            path.write_bytes(cv2.imencode(".jpg" if name == "jfif" else f".{name}", pixels)[1].tobytes())
    output = plsc_gallery("build", model, tmp_path / "g", tmp_path / "faces", "--index", "sq8")
    assert "enrolled bmp (1), gif (1), jfif (1), ppm (1), tif (1), webp (1)" in output
    assert Gallery.open(tmp_path / "g").index == "sq8"


def test_a_place_that_cannot_be_written_is_told_before_anything_is_embedded(plsc_gallery, model, faces, tmp_path):
    (faces / "ann" / "0.png").write_bytes(b"no image")  # would be the first error of embedding
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for place, message in (
        (tmp_path / "carl.png" / "g", "g: cannot be written: Not a directory"),
        (tmp_path / ("x" * 300), "cannot be written: File name too long"),
        (tmp_path / "dangling", "exists and is not overwritten"),
    ):
        assert message in plsc_gallery("build", model, place, faces, status=1)
    assert "0.png" in plsc_gallery("build", model, tmp_path / "g", faces, status=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["carl.png", "dangling", "faces"]


def test_a_killed_replacement_is_restored_by_every_command(plsc_gallery, model, faces, tmp_path):
    gallery = tmp_path / "g"
    plsc_gallery("build", model, gallery, faces)
    for command in (
        ("search", model, gallery, tmp_path / "carl.png"),
        ("remove", gallery, "bob"),
        ("add", model, gallery, tmp_path / "carl.png"),
    ):
        gallery.rename(tmp_path / ".g.plsc-old")  # what an earlier version left when it was killed
        plsc_gallery(*command)
    gallery.rename(tmp_path / ".g.plsc-old")
    assert "exists and is not overwritten" in plsc_gallery("build", model, gallery, faces, status=1)
    assert Gallery.open(gallery).names == ["ann", "ann", "carl"]


def test_what_another_command_does_meanwhile_lasts(plsc_gallery, model, faces, tmp_path, monkeypatch):
    gallery, embed, enrolled = tmp_path / "g", InferenceModel.embed, []
    plsc_gallery("build", model, gallery, faces)

    def slow_embed(self, images, **options):
        embeddings = embed(self, images, **options)
        with Gallery.editing(gallery) as other:  # another command, which began later and is done earlier
            other.remove("ann")
            other.add("dora", embeddings[:1])
        enrolled.append(other)
        return embeddings

    monkeypatch.setattr(InferenceModel, "embed", slow_embed)
    assert "4 entries of 3 names" in plsc_gallery("add", model, gallery, tmp_path / "carl.png")
    assert enrolled and Gallery.open(gallery).names == ["bob", "bob", "dora", "carl"]
