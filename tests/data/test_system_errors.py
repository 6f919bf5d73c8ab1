"""Errors of the system: none is taken for a bad image, and the number of open files is bounded."""

from __future__ import annotations

import base64
import errno
import os
import pickle
import sys

import pytest

from plsc.data import records as records_module
from plsc.data.convert.conversion import convert
from plsc.data.convert.inspection import inspect
from plsc.data.loader import TrainLoader
from plsc.data.records import DatasetRecords
from plsc.data.sources import open_records
from plsc.data.transforms import Transform
from plsc.errors import StorageError
from plsc.utils import files
from tests._support.ranks import run
from tests._support.sources import (
    IMAGES,
    LABELS,
    make_base64,
    make_csv,
    make_folders,
    make_list,
    make_rec,
    make_tar,
    pack_tar,
)

FAULTS = [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN]


def loader(records, num_workers=0):
    return TrainLoader(
        records, Transform((3, 8, 8)), num_classes=3, batch_size=2, num_workers=num_workers, skip_bad_images=True
    )


@pytest.fixture
def failing(monkeypatch):
    """Make reading of images/3.png fail with an error of the system."""
    real = os.open

    def fail(number):
        def open_or_fail(path, *arguments, **options):
            if str(path).endswith("3.png"):
                raise OSError(number, os.strerror(number))
            return real(path, *arguments, **options)

        monkeypatch.setattr(records_module.os, "open", open_or_fail)

    return fail


@pytest.mark.parametrize("number", FAULTS, ids=errno.errorcode.get)
def test_an_error_of_the_system_is_no_bad_image(tmp_path, failing, number):
    records = open_records(make_list(tmp_path / "set"))
    failing(number)
    message = f"images/3.png: the image cannot be read: {os.strerror(number)}. The system fails, not the data"
    for read in (lambda: list(loader(records).epoch(0)), lambda: inspect(records), lambda: records[3]):
        with pytest.raises(StorageError, match=message):
            read()
    with pytest.raises(StorageError, match=f"{message}.* done so far: 3 images, in .*: run the same command again"):
        convert(records, tmp_path / "out", to="rec", skip_bad_images=True)


def test_an_error_of_the_system_in_a_reader_process_stops_as_itself(tmp_path, failing):
    records = open_records(make_list(tmp_path / "set"))
    failing(errno.EMFILE)
    reading = loader(records, num_workers=2)
    with pytest.raises(StorageError, match="3.png: .* Too many open files. .* raise the limit of open files"):
        list(reading.epoch(0))
    assert not reading.worker_pids


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENAMETOOLONG])
def test_a_file_that_is_missing_or_unreadable_itself_is_a_bad_image(tmp_path, failing, number):
    records = open_records(make_list(tmp_path / "set"))
    failing(number)
    reading = loader(records)
    assert len(list(reading.epoch(0))) == 3 and reading.skipped == 1
    assert inspect(records).num_damaged == 1


def test_an_image_of_pillow_that_the_system_cannot_read_is_no_bad_image():
    class Lazy:
        mode = "RGB"

        def convert(self, mode):
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(StorageError, match="Input/output error"):
        list(loader(DatasetRecords([(Lazy(), 0)] * 4)).epoch(0))


# Opens each set twice: with the limit, and before, so that no module is left to import.
NO_FILES_LEFT = """
import gc, resource, sys
from plsc.data.sources import open_records
from plsc.errors import StorageError

for path in sys.argv[1:]:
    open_records(path)
resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))
held = []
for path in sys.argv[1:]:
    gc.collect()
    try:
        while True:
            held.append(open("/dev/null"))
    except OSError:
        pass
    try:
        open_records(path)
    except StorageError as error:
        assert "Too many open files" in str(error), error
        print("told of", path)
"""


def test_a_source_that_the_system_cannot_open_is_not_called_damaged(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    makers = (make_list, make_folders, make_rec, make_base64, make_tar, make_csv)
    folders = [make(tmp_path / make.__name__) for make in makers]
    parquet.write_table(pyarrow.table({"image": IMAGES, "label": LABELS}), tmp_path / "a.parquet")
    names = ["make_list/label.txt", "make_rec/train.rec", "make_base64/part-0", "make_tar/train-000.tar"]
    paths = [*folders, *(tmp_path / name for name in [*names, "make_csv/train.csv", "a.parquet"])]
    _, output = run([sys.executable, "-c", NO_FILES_LEFT, *paths])
    assert [line for line in output.splitlines() if line.startswith("told of")] == [f"told of {path}" for path in paths]


def test_a_shard_that_vanished_is_no_bad_image(tmp_path):
    for make, name in ((make_tar, "train-000.tar"), (make_base64, "part-0")):
        folder = make(tmp_path / make.__name__)
        records = open_records(folder)
        (folder / name).unlink()
        with pytest.raises(StorageError, match=f"{name}: .*No such file.* could be read when the data set was opened"):
            list(loader(records).epoch(0))


# 150 files and a bound of 25. Reader processes are forked after the files were opened.
BOUNDED = """
import os, pickle, random, resource, sys
import numpy as np
from plsc.data.loader import TrainLoader
from plsc.data.sources import open_records
from plsc.data.transforms import Transform
from plsc.utils.threads import thread_map

resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
for path in sys.argv[1:]:
    records = open_records(path)
    order = random.Random(0).sample(range(300), 300)
    expected = {index: (records[index].image, records.labels[index]) for index in order}
    assert len(os.listdir("/proc/self/fd")) < 60, os.listdir("/proc/self/fd")
    copy = pickle.loads(pickle.dumps(records))
    found = thread_map(lambda index: (copy[index].image, copy.labels[index]), order * 3, threads=8)
    assert list(found) == [expected[index] for index in order] * 3
    loader = TrainLoader(records, Transform((3, 8, 8)), num_classes=2, batch_size=10, num_workers=2)
    labels = np.concatenate([batch.labels for batch in loader.epoch(0)])
    assert len(labels) == 300 and labels.sum() == 150, labels
    loader.close()
    print(records.format)
"""


def test_open_files_are_bounded_whatever_the_number_of_shards(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folders = [tmp_path / name for name in ("tar", "text", "parquet")]
    for folder in folders:
        folder.mkdir()
    for shard in range(150):
        images = [IMAGES[shard % 6], IMAGES[(shard + 1) % 6]]
        pack_tar(
            folders[0] / f"{shard:03d}.tar",
            [file for n, image in enumerate(images) for file in ((f"{n}.png", image), (f"{n}.cls", b"%d" % n))],
        )
        (folders[1] / f"part-{shard}").write_text(
            "".join(f"{base64.b64encode(image).decode()}\t{n}\n" for n, image in enumerate(images))
        )
        parquet.write_table(pyarrow.table({"image": images, "label": [0, 1]}), folders[2] / f"{shard:03d}.parquet")
    (folders[1] / "file_list.txt").write_text("".join(f"part-{shard}\n" for shard in range(150)))
    _, output = run([sys.executable, "-c", BOUNDED, *folders])
    assert "150 shards" in output and "150 part files" in output and "Parquet, 150 files" in output


def test_a_file_stays_usable_after_others_were_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_most_open", lambda: 8)
    for number in range(20):
        (tmp_path / str(number)).write_bytes(b"%d" % number)
    opened = files.OpenFiles([tmp_path / str(number) for number in range(20)], files.map_file)
    first = opened[0]
    assert [opened[number][:] for number in range(20)] == [b"%d" % number for number in range(20)]
    assert first[:] == b"0" and len(opened._opened) == 8 and 0 not in opened._opened
    assert opened[0][:] == b"0"
    other = files.OpenFiles([tmp_path / "7"], files.map_file)
    assert other[0][:] == b"7" and len(opened._opened) == 7  # the bound is one of all
    assert pickle.loads(pickle.dumps(opened))[3][:] == b"3"


def test_the_bound_is_a_share_of_what_the_system_allows(monkeypatch):
    for allowed, most in ((1024, 256), (20, 8), (10**6, 4096), (files.resource.RLIM_INFINITY, 4096)):
        monkeypatch.setattr(files.resource, "getrlimit", lambda _, allowed=allowed: (allowed, allowed))
        assert files._most_open() == most
