"""Conversions that could lose samples, or work: refused before it begins, or taken up where it stopped."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from plsc.data.convert.conversion import convert
from plsc.data.sources import open_records
from plsc.errors import DataError
from tests._support.sources import IMAGES, LABELS, make_folders, make_list, run


def test_a_target_within_class_folders_is_refused(tmp_path):
    root = make_folders(tmp_path / "set")
    for command in (("convert",), ("split", "--held-out", "1"), ("shuffle",)):
        result = run(command[0], root, root / "out", *command[1:])
        assert isinstance(result.exception, DataError) and "lies within the class folders" in str(result.exception)
    assert sorted(path.name for path in root.iterdir()) == ["a", "b", "c"]


def test_a_target_that_comes_into_being_meanwhile_leaves_the_work_to_go_on(tmp_path, monkeypatch):
    records, target = open_records(make_list(tmp_path / "set")), tmp_path / "out"
    real = type(records).__getitem__

    def read(self, index):
        target.mkdir(exist_ok=True)
        return real(self, index)

    monkeypatch.setattr(type(records), "__getitem__", read)
    with pytest.raises(DataError, match="has come into being meanwhile"):
        convert(records, target, "rec")
    monkeypatch.undo()
    target.rmdir()
    assert convert(records, target, "rec").images == 6


def test_labels_too_large_for_recordio_stop_before_the_work(tmp_path):
    folder = make_list(tmp_path / "set")
    (folder / "label.txt").write_text("images/0.png 0\nimages/1.png 20000000\n")
    with pytest.raises(DataError, match="images/1.png.*label 20000000 is beyond 16777216"):
        convert(open_records(folder), tmp_path / "out", "rec", skip_bad_images=True)
    assert not (tmp_path / "out.partial").exists()


def test_an_array_is_cut_to_the_images_that_could_be_read(tmp_path):
    folder = make_list(tmp_path / "set")
    image = cv2.imencode(".png", np.full((5, 5, 3), 7, np.uint8))[1].tobytes()
    for n in range(6):
        (folder / "images" / f"{n}.png").write_bytes(b"no image" if n in (1, 5) else image)
    done = convert(open_records(folder), tmp_path / "out", "npy", skip_bad_images=True)
    assert (done.images, done.skipped) == (4, 2)
    found = np.load(tmp_path / "out" / "images.npy"), np.load(tmp_path / "out" / "labels.npy")
    assert found[0].shape == (4, 5, 5, 3) and (found[0] == 7).all()
    assert found[1].tolist() == [LABELS[n] for n in (0, 2, 3, 4)]
    assert len(open_records(tmp_path / "out")) == 4


def test_an_array_that_was_cut_before_its_work_was_interrupted_goes_on(tmp_path, monkeypatch):
    folder = make_list(tmp_path / "set")
    image = cv2.imencode(".png", np.full((5, 5, 3), 7, np.uint8))[1].tobytes()
    for n in range(6):
        (folder / "images" / f"{n}.png").write_bytes(b"no image" if n == 4 else image)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("plsc.data.convert.conversion.finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(open_records(folder), tmp_path / "out", "npy", skip_bad_images=True, every=4)
    monkeypatch.undo()
    (folder / "images" / "4.png").write_bytes(image)
    assert convert(open_records(folder), tmp_path / "out", "npy", skip_bad_images=True).images == 6
    assert open_records(tmp_path / "out").labels.tolist() == LABELS


def test_class_folders_that_would_lack_a_class_are_refused(tmp_path):
    folder = make_list(tmp_path / "set")
    for n in (2, 3):
        (folder / "images" / f"{n}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="1 classes have no image that could be read"):
        convert(open_records(folder), tmp_path / "out", "folders", skip_bad_images=True)


def test_folders_go_on_without_what_came_after_the_last_note(tmp_path, monkeypatch):
    records = open_records(make_list(tmp_path / "set"))
    real = type(records).__getitem__

    def read(self, index):
        if index == 5:
            raise KeyboardInterrupt
        return real(self, index)

    monkeypatch.setattr(type(records), "__getitem__", read)
    with pytest.raises(KeyboardInterrupt):
        convert(records, tmp_path / "out", "folders", every=2)
    monkeypatch.undo()
    assert (tmp_path / "out.partial" / "2" / "00000004.png").exists()
    (tmp_path / "out.partial" / "0" / ".DS_Store").touch()
    (tmp_path / "set" / "images" / "4.png").write_bytes(b"a flaky disk")
    done = convert(records, tmp_path / "out", "folders", skip_bad_images=True)
    assert (done.images, done.skipped, len(open_records(tmp_path / "out"))) == (5, 1, 5)


def test_a_folder_that_is_emptied_is_no_class(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    for n in range(3):
        (tmp_path / "set" / f"{n}.png").write_bytes(IMAGES[n])
    (tmp_path / "set" / "label.txt").write_text("0.png 0\n1.png 1\n2.png 2\n")
    records = open_records(tmp_path / "set")
    real = type(records).__getitem__
    monkeypatch.setattr(type(records), "__getitem__", lambda self, n: real(self, n) if n < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(records, tmp_path / "out", "folders", every=1)
    monkeypatch.undo()
    note = tmp_path / "out.partial" / ".progress.json"
    note.write_text(
        note.read_text()
        .replace('"index": 2, "written": 2', '"index": 1, "written": 1')
        .replace('"position": 2', '"position": 1')
    )
    (tmp_path / "set" / "1.png").write_bytes(b"gone bad")
    with pytest.raises(DataError, match="1 classes have no image"):
        convert(records, tmp_path / "out", "folders", skip_bad_images=True)


def test_a_note_of_an_older_version_is_refused(tmp_path, monkeypatch):
    source = make_list(tmp_path / "set")
    monkeypatch.setattr("plsc.data.convert.writers.FolderSink.position", lambda self: True)
    monkeypatch.setattr("plsc.data.convert.conversion.finish", lambda *_: None)
    convert(open_records(source), tmp_path / "out", "folders", every=2)
    monkeypatch.undo()
    with pytest.raises(DataError, match="was begun by an older version; remove it"):
        convert(open_records(source), tmp_path / "out", "folders")
    assert len(list((tmp_path / "out.partial").glob("*/*.png"))) == 6


@pytest.mark.parametrize("name", ["a\x85b", "a\u2028b", "a\x0bb"])
def test_names_with_odd_breaks_are_kept(tmp_path, name):
    records = open_records(make_list(tmp_path / "set"))
    records.class_names = [name, "b", "c"]
    convert(records, tmp_path / "out", "rec")
    assert open_records(tmp_path / "out").class_names == [name, "b", "c"]
    records.class_names = ["a\rb", "b", "c"]
    with pytest.raises(DataError, match="holds a line break"):
        convert(records, tmp_path / "again", "rec")


def test_parquet_is_written_a_few_images_at_a_time(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "set"
    (folder / "0").mkdir(parents=True)
    for n in range(150):
        (folder / "0" / f"{n:03d}.png").write_bytes(IMAGES[n % 6])
    convert(open_records(folder), tmp_path / "out", "parquet")
    file = parquet.ParquetFile(tmp_path / "out" / "part-00000.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [64, 64, 22]
    records = open_records(tmp_path / "out")
    assert [records[n].image for n in range(150)] == [IMAGES[n % 6] for n in range(150)]


def test_what_has_no_effect_is_refused(tmp_path):
    source = make_list(tmp_path / "set")
    for arguments, message in (
        (("convert", source, tmp_path / "out", "--quality", "60"), "--quality needs"),
        (
            ("convert", source, tmp_path / "out", "--quality", "60", "--size", "9", "--encoding", "png"),
            "--quality needs",
        ),
        (("shuffle", source, tmp_path / "out", "--to", "folders"), "have no order"),
        (("pairs", source, tmp_path / "lfw"), "ends in .bin"),
        (("pairs", source, tmp_path / "no" / "lfw.bin"), "existing folder"),
    ):
        result = run(*arguments)
        assert isinstance(result.exception, DataError) and message in str(result.exception)


@pytest.mark.parametrize("command", [("shuffle",), ("split", "--held-out", "1")])
def test_bad_images_can_be_left_out_wherever_it_is_advised(tmp_path, command):
    source = make_list(tmp_path / "set")
    (source / "images" / "0.png").write_bytes(b"no image")
    stopped = run(command[0], source, tmp_path / "out", *command[1:])
    assert "--skip-bad-images" in str(stopped.exception)
    assert run(command[0], source, tmp_path / "out", *command[1:], "--skip-bad-images").exit_code == 0
