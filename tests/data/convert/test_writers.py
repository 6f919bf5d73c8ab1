"""Writers: what each format can hold, and how it continues after an interruption."""

from __future__ import annotations

import tarfile

import cv2
import numpy as np
import pytest

from plsc.data.convert.conversion import convert
from plsc.data.convert.writers import WRITERS, Writer, register_writer
from plsc.data.records import Record
from plsc.data.sources import open_records
from plsc.data.sources.arrays import ArrayRecords
from plsc.errors import DataError
from plsc.utils.files import open_output, sync
from tests._support.conversion import PIXELS, Images, content
from tests._support.sources import IMAGES, LABELS, make_list


def test_class_names_make_the_folders_and_are_kept_beside(tmp_path):
    names = ["ada", "bo", "cy", "dee", "zoë"]
    convert(Images(class_names=names), tmp_path / "new", to="folders")
    assert open_records(tmp_path / "new").class_names == names
    assert (tmp_path / "new" / "classes.txt").read_text(encoding="utf-8").split() == names
    convert(Images(class_names=["b", "a", "c/d", "..", "e"]), tmp_path / "odd", to="folders")
    assert sorted(path.name for path in (tmp_path / "odd").iterdir() if path.is_dir()) == list("01234")
    assert open_records(tmp_path / "odd").class_names == ["b", "a", "c/d", "..", "e"]
    assert content(open_records(tmp_path / "odd")) == content(Images())


def test_what_a_format_cannot_hold_is_refused_first(tmp_path):
    source = Images()
    source.num_classes = 7
    with pytest.raises(DataError, match="no image in 2 of 7 classes, which class folders cannot hold"):
        convert(source, tmp_path / "new", to="folders")
    labels = Images().labels
    mixed = ArrayRecords(PIXELS, labels)
    mixed.__class__ = type(
        "Mixed",
        (ArrayRecords,),
        {"__getitem__": lambda self, n: Record(PIXELS[n][: 6 - n % 2], int(labels[n]))},
    )
    with pytest.raises(DataError, match=r"the image is \[5, 7, 3\], the first was \[6, 7, 3\]"):
        convert(mixed, tmp_path / "new", to="npy")


def test_labels_too_large_for_recordio_stop_before_the_work(tmp_path):
    folder = make_list(tmp_path / "set")
    (folder / "label.txt").write_text("images/0.png 0\nimages/1.png 20000000\n")
    with pytest.raises(DataError, match="images/1.png.*label 20000000 is beyond 16777216"):
        convert(open_records(folder), tmp_path / "out", to="rec", skip_bad_images=True)
    assert not (tmp_path / "out.partial").exists()


def test_an_array_is_cut_to_the_images_that_could_be_read(tmp_path):
    folder = make_list(tmp_path / "set")
    image = cv2.imencode(".png", np.full((5, 5, 3), 7, np.uint8))[1].tobytes()
    for n in range(6):
        (folder / "images" / f"{n}.png").write_bytes(b"no image" if n in (1, 5) else image)
    done = convert(open_records(folder), tmp_path / "out", to="npy", skip_bad_images=True)
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

    monkeypatch.setattr("plsc.data.convert.resumable.ResumableFolder.finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(open_records(folder), tmp_path / "out", to="npy", skip_bad_images=True, every=4)
    monkeypatch.undo()
    (folder / "images" / "4.png").write_bytes(image)
    assert convert(open_records(folder), tmp_path / "out", to="npy", skip_bad_images=True).images == 6
    assert open_records(tmp_path / "out").labels.tolist() == LABELS


def test_class_folders_that_would_lack_a_class_are_refused(tmp_path):
    folder = make_list(tmp_path / "set")
    for n in (2, 3):
        (folder / "images" / f"{n}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="no image could be read of 1 class,"):
        convert(open_records(folder), tmp_path / "out", to="folders", skip_bad_images=True)


def test_folders_go_on_without_what_came_after_the_last_note(tmp_path, monkeypatch):
    records = open_records(make_list(tmp_path / "set"))
    real = type(records).__getitem__

    def read(self, index):
        if index == 5:
            raise KeyboardInterrupt
        return real(self, index)

    monkeypatch.setattr(type(records), "__getitem__", read)
    with pytest.raises(KeyboardInterrupt):
        convert(records, tmp_path / "out", to="folders", every=2)
    monkeypatch.undo()
    assert (tmp_path / "out.partial" / "2" / "00000004.png").exists()
    (tmp_path / "out.partial" / "0" / ".DS_Store").touch()
    (tmp_path / "set" / "images" / "4.png").write_bytes(b"a flaky disk")
    done = convert(records, tmp_path / "out", to="folders", skip_bad_images=True)
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
        convert(records, tmp_path / "out", to="folders", every=1)
    monkeypatch.undo()
    note = tmp_path / "out.partial" / ".progress.json"
    note.write_text(
        note.read_text()
        .replace('"index": 2, "written": 2', '"index": 1, "written": 1')
        .replace('"position": 2', '"position": 1')
    )
    (tmp_path / "set" / "1.png").write_bytes(b"gone bad")
    with pytest.raises(DataError, match="no image could be read of 1 class,"):
        convert(records, tmp_path / "out", to="folders", skip_bad_images=True)


def test_a_note_of_an_older_version_is_refused(tmp_path, monkeypatch):
    source = make_list(tmp_path / "set")
    monkeypatch.setattr("plsc.data.convert.writers.FolderWriter.position", lambda self: True)
    monkeypatch.setattr("plsc.data.convert.resumable.ResumableFolder.finish", lambda *_: None)
    convert(open_records(source), tmp_path / "out", to="folders", every=2)
    monkeypatch.undo()
    with pytest.raises(DataError, match="was begun by an older version; remove it"):
        convert(open_records(source), tmp_path / "out", to="folders")
    assert len(list((tmp_path / "out.partial").glob("*/*.png"))) == 6


def test_parquet_is_written_a_few_images_at_a_time(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "set"
    (folder / "0").mkdir(parents=True)
    for n in range(150):
        (folder / "0" / f"{n:03d}.png").write_bytes(IMAGES[n % 6])
    convert(open_records(folder), tmp_path / "out", to="parquet")
    file = parquet.ParquetFile(tmp_path / "out" / "part-00000.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [64, 64, 22]
    records = open_records(tmp_path / "out")
    assert [records[n].image for n in range(150)] == [IMAGES[n % 6] for n in range(150)]


def test_a_format_is_added_by_one_class(tmp_path, monkeypatch):
    monkeypatch.setitem(WRITERS, "labels", None)  # removed after the test

    @register_writer("labels")
    class LabelWriter(Writer):
        def __init__(self, folder, plan, *, position=None):
            self._file = open_output(folder / "labels.txt", position)

        def write(self, number, record):
            self._file.write(b"%d\n" % record.label)

        def position(self):
            sync(self._file)
            return self._file.tell()

        def close(self):
            sync(self._file)
            self._file.close()

    with pytest.raises(KeyboardInterrupt):
        convert(Images(stop_at=8), tmp_path / "out", to="labels", every=3)
    assert convert(Images(), tmp_path / "out", to="labels").images == 23
    assert (tmp_path / "out" / "labels.txt").read_text().split() == [str(label) for label in Images().labels]


def test_tar_files_are_read_by_tarfile(tmp_path):
    convert(Images(), tmp_path / "out", to="tar", parts=2)
    for part, numbers in (("train-000000.tar", range(12)), ("train-000001.tar", range(12, 23))):
        assert (tmp_path / "out" / part).stat().st_size % tarfile.RECORDSIZE == 0
        with tarfile.open(tmp_path / "out" / part) as tar:
            assert tar.getnames() == [f"{n:08d}.{suffix}" for n in numbers for suffix in ("png", "cls")]
            assert tar.extractfile(f"{numbers[0]:08d}.png").read() == Images().images[numbers[0]]
