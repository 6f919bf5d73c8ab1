"""NumPy arrays as training data, in memory and in files."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from plsc.data.sources import open_records
from plsc.data.sources.arrays import ArrayRecords
from plsc.errors import DataError
from tests._support.sources import (
    LABELS,
)


def test_another_array_file_is_not_taken_for_images_npy(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((2, 4, 4, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.arange(2))
    np.save(tmp_path / "val_images.npy", np.ones((2, 4, 4, 3), np.uint8))
    with pytest.raises(DataError, match="val_images.npy: expected images.npy"):
        open_records(tmp_path / "val_images.npy")
    assert len(open_records(tmp_path / "labels.npy")) == 2


def test_damaged_array_files_raise_data_error(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((3, 4, 4, 3), np.uint8), labels=np.arange(3))
    whole, rng = (tmp_path / "a.npz").read_bytes(), np.random.default_rng(0)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(DataError, match="one.npz: holds one array"):
        ArrayRecords.load(tmp_path / "one.npz")
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        (tmp_path / "c.npz").write_bytes(damaged)
        try:
            ArrayRecords.load(tmp_path / "c.npz")
        except DataError:
            refused += 1
    assert refused > 20


def test_labels_too_large_for_any_class_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4, 3), np.uint8), labels=np.array([0, 2**63], np.uint64))
    with pytest.raises(DataError, match="label 1 is 9223372036854775808, expected 0 or more"):
        open_records(tmp_path / "a.npz")


def test_arrays_are_read_by_memory_map(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    np.save(tmp_path / "labels.npy", np.array(LABELS, np.int32))
    np.savez(tmp_path / "set.npz", images=pixels, labels=LABELS)
    for path in (tmp_path, tmp_path / "images.npy", tmp_path / "set.npz"):
        records = open_records(path)
        copy = pickle.loads(pickle.dumps(records))
        for n in range(6):
            assert np.array_equal(copy[n].image, pixels[n])
            assert copy[n].label == records[n].label == LABELS[n]
    assert len(pickle.dumps(open_records(tmp_path))) < pixels.nbytes + 1000


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (np.zeros((2, 4, 4), np.uint8), [0, 1], r"the images are \[2, 4, 4\] of uint8, expected \[n, H, W, 3\]"),
        (np.zeros((2, 4, 4, 3), np.float32), [0, 1], "of float32, expected"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0], "2 images and 1 label, expected"),
        (np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, np.int64), "0 images and 0 labels"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0.5, 1], "the labels are .* of float64, expected"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, -1], "label 1 is -1, expected 0 or more"),
    ],
)
def test_arrays_of_another_shape_are_named(images, labels, message):
    with pytest.raises(DataError, match=message):
        ArrayRecords(images, np.asarray(labels))


def test_array_files_that_are_none_are_named(tmp_path):
    with pytest.raises(DataError, match="images.npy: cannot be read"):
        ArrayRecords.load(tmp_path)
    np.save(tmp_path / "images.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="images.npy: no NumPy file of numbers"):
        ArrayRecords.load(tmp_path)
    np.savez(tmp_path / "a.npz", images=np.zeros(3))
    with pytest.raises(DataError, match=r"holds \['images'\], expected 'images' and 'labels'"):
        open_records(tmp_path / "a.npz")
