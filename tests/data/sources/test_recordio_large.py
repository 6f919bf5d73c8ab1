"""Large RecordIO files: indexed in seconds, read in flat memory, also where the file is larger than memory."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from plsc.data.loader import TrainLoader
from plsc.data.recordio import MAGIC, MAX_LENGTH, FrameFile, RecordIOWriter, frames, pack
from plsc.data.sources.recordio import RecordIORecords
from plsc.data.subset import SelectedRecords
from plsc.data.transforms import Transform
from plsc.errors import DataError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/status").is_file(), reason="the system does not tell anonymous memory from mapped files"
    ),
]


def memory(pid: object = "self", *kinds: str) -> int:
    """Resident bytes of a process: of the kinds given, by default all; RssAnon leaves out mapped files' pages."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.split(":")[0] in (kinds or ("VmRSS",))) << 10


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "train.rec"
    image = os.urandom(1 << 12)
    with RecordIOWriter(path) as writer:
        for key in range(200_000):
            writer.write(key, key % 1000, image=image[: 500 + key % 1500])
    return path


def test_200_000_records_are_indexed_in_seconds_and_read_in_flat_memory(large):
    start = time.perf_counter()
    indexed = RecordIORecords(large)
    with_index = time.perf_counter() - start
    start = time.perf_counter()
    offsets, damage = FrameFile(large).scan()
    scanned = time.perf_counter() - start
    assert damage is None
    assert np.array_equal(offsets, indexed._offsets)
    assert max(with_index, scanned) < 5.0

    order = np.random.default_rng(0).permutation(len(indexed))
    for index in order[:2000]:
        indexed[int(index)]
    before = memory("self", "RssAnon")
    for index in order:
        assert len(indexed[int(index)].image) == 500 + index % 1500
    assert memory("self", "RssAnon") - before < 8 << 20
    assert indexed.labels.tolist() == (np.arange(200_000) % 1000).tolist()


# A file larger than memory: records of 512 MiB that are holes, five small images before each.

SMALL, GIANT = 5, MAX_LENGTH - 7


@pytest.fixture(scope="module")
def beyond_memory(tmp_path_factory):
    path = tmp_path_factory.mktemp("beyond") / "train.rec"
    size_of_memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    giants = size_of_memory // GIANT + 2
    try:
        with open(path, "wb") as file:
            for key in range(giants * (SMALL + 1)):
                if key % (SMALL + 1) < SMALL:
                    file.write(
                        frames(
                            pack(
                                0, key, image=cv2.imencode(".png", np.full((8, 8, 3), key % 251, np.uint8))[1].tobytes()
                            )
                        )
                    )
                else:
                    file.write(struct.pack("<II", MAGIC, GIANT) + pack(1, key, image=b""))
                    file.seek(GIANT - 24 + (-GIANT) % 4, os.SEEK_CUR)
                    file.truncate()
        FrameFile(path).data.close()
    except (OSError, DataError) as error:
        path.unlink()
        pytest.skip(f"the file system or the address space is too small for a file larger than memory: {error}")
    status = path.stat()
    if status.st_blocks * 512 > size_of_memory // 8:
        path.unlink()
        pytest.skip("the file system has no sparse files")
    assert status.st_size > size_of_memory
    yield path
    path.unlink()


def test_a_file_larger_than_memory_is_walked_and_read_by_several_processes_in_flat_memory(beyond_memory):
    before = memory()
    start = time.perf_counter()
    records = RecordIORecords(beyond_memory)
    labels = records.labels
    assert time.perf_counter() - start < 10
    assert records.format == "RecordIO, plain layout, without index"
    small = np.flatnonzero(labels == 0)
    assert len(small) == SMALL * (len(records) - len(small))
    assert memory() - before < 64 << 20

    loader = TrainLoader(
        SelectedRecords(records, small), Transform((3, 8, 8)), num_classes=1, batch_size=8, num_workers=3
    )
    try:
        wanted, resident = sorted((small % 251).tolist()), []
        for epoch in range(4):
            found = np.concatenate([batch.images[:, 0, 0, 0] for batch in loader.epoch(epoch)])
            assert sorted(found[: len(small)].tolist()) == wanted
            resident.append([memory(pid) for pid in loader.worker_pids] + [memory()])
    finally:
        loader.close()
    assert np.max(resident) < before + (96 << 20)
    assert np.max(np.subtract(resident[-1], resident[1])) < 8 << 20
