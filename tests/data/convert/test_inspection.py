"""Inspection: counts, damaged images and pictures."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from plsc.cli.data import app
from plsc.data.convert.inspection import inspect, plot
from plsc.data.sources import open_records
from plsc.errors import DataError
from tests._support.conversion import Images
from tests._support.images import damaged_jpeg
from tests._support.sources import (
    make_list,
    make_rec,
    run,
)


def test_an_inspection_counts_and_names_what_is_damaged():
    source = Images(broken={3: b"no image", 7: b""})
    source.num_classes = 6
    found = inspect(source)
    assert (found.images, found.classes, found.empty_classes, found.num_damaged) == (23, 6, 1, 2)
    assert found.images_per_class == (4, 5.0, 4.6, 5)
    assert found.encodings == {"png": 21}
    assert found.sizes == [(7, 6, 21)]
    assert found.damaged[1] == "image 7: the image is empty (0 bytes)"
    assert "classes           6, 1 of them without an image" in str(found)
    assert inspect(source, limit=5).looked_at == 5


def test_an_inspection_tells_labels_beyond_the_stated_classes():
    source = Images()
    source.num_classes = 4
    found = inspect(source)
    assert found.damage == "5 labels beyond the 4 classes that the set states, the first 4 at image 4"
    assert found.empty_classes == 0


def test_plots_are_saved_and_overwrite_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    paths = plot(Images(broken={3: b""}), tmp_path / "set")
    assert [cv2.imread(str(path)) is not None for path in paths] == [True, True]
    with pytest.raises(DataError, match="set-classes.png exists already"):
        plot(Images(), tmp_path / "set")


def test_a_plot_into_no_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        plot(open_records(make_list(tmp_path / "set")), tmp_path / "none" / "p")


def test_inspect_says_once_what_is_wrong_and_what_kind_images_are(tmp_path):
    result = run("inspect", tmp_path / "nosuch.rec")
    assert "nosuch.rec' does not exist" in str(result.exception) and not result.output
    source = make_list(tmp_path / "set")
    (source / "images" / "0.png").write_bytes(cv2.imencode(".hdr", np.full((8, 8, 3), 9, np.uint8))[1].tobytes())
    (source / "images" / "1.png").write_bytes(b"P6 1 1 255\n\1\2\3")
    assert inspect(open_records(source)).encodings == {"other": 1, "ppm": 1, "png": 4}


def test_pictures_that_cannot_be_written_are_an_error_of_ours(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    records = open_records(make_list(tmp_path / "set"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match="cannot be written to"):
        plot(records, tmp_path / "p")
    monkeypatch.undo()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(DataError, match="the pictures cannot be written: No space left"):
        plot(records, tmp_path / "p")


def test_inspect_tells_of_a_damaged_frame_and_of_another_sets_index(tmp_path):
    rec = make_rec(tmp_path / "rec")
    whole, index = (rec / "train.rec").read_bytes(), (rec / "train.idx").read_text().splitlines()
    offset = int(index[3].split("\t")[1])
    (rec / "train.rec").write_bytes(whole[:offset] + b"x" + whole[offset + 1 :])
    found = CliRunner().invoke(app, ["inspect", str(rec)])
    assert found.exit_code == 1 and "images            3" in found.stdout and f"offset {offset}" in found.stdout
    (rec / "train.rec").write_bytes(whole)
    (rec / "train.idx").write_text("\n".join(index[:-1]) + "\n")
    found = CliRunner().invoke(app, ["inspect", str(rec)])
    assert found.exit_code == 1 and "images            6" in found.stdout


def test_images_that_can_be_decoded_in_part_are_damaged_and_not_unreadable(tmp_path, capfd):
    source = make_list(tmp_path / "set")
    (source / "images" / "0.png").write_bytes(damaged_jpeg())
    (source / "images" / "1.png").write_bytes(b"no image")
    found = inspect(open_records(source))
    assert (found.num_damaged, found.num_unreadable, found.encodings) == (2, 1, {"jpg": 1, "png": 4})
    assert "0.png" in found.damaged[0] and "decoded in part: Corrupt JPEG data" in found.damaged[0]
    assert "damaged images    2, 1 of them unreadable" in str(found)
    (source / "images" / "1.png").write_bytes((source / "images" / "2.png").read_bytes())
    assert CliRunner().invoke(app, ["inspect", str(source)]).exit_code == 1
    assert capfd.readouterr().err == ""


def test_a_damaged_png_is_named_and_its_decoders_message_is_not_printed(tmp_path, capfd):
    source = make_list(tmp_path / "set")
    damaged = bytearray((source / "images" / "0.png").read_bytes())
    damaged[-24:-16] = bytes(8)  # the end of the pixels and their checksum
    (source / "images" / "0.png").write_bytes(damaged)
    assert inspect(open_records(source)).num_unreadable == 1
    assert capfd.readouterr().err == ""
    cv2.imdecode(np.frombuffer(damaged, np.uint8), cv2.IMREAD_COLOR)
    assert "libpng" in capfd.readouterr().err  # what OpenCV alone prints
