"""`plsc gallery`."""

from __future__ import annotations

import json
import re
import sys

import pytest

from plsc.cli.gallery import _named_files
from plsc.cli.main import main
from plsc.errors import ConfigError
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
    assert "4 entries of 2 names" in output
    assert "exists and is not overwritten" in plsc_gallery("build", model, gallery, faces, status=1)
    assert "5 entries of 3 names" in plsc_gallery("add", model, gallery, carl)
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
