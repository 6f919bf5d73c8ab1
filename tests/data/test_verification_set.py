"""Verification sets: every kind of `.bin` in use is read, other content is named."""

from __future__ import annotations

import os
import pickle
import struct

import cv2
import numpy as np
import pytest

from plsc.data.verification_set import VerificationSet
from plsc.errors import DataError
from tests._support.pairs import AS_ARRAYS, IMAGES, SAME, write_bin
from tests._support.sources import OMNIGLOT


def as_numpy_1(data):
    """A pickle as NumPy 1 wrote it, whose modules had other names: text opcodes only, so lengths may change."""
    return data.replace(b"numpy._core.", b"numpy.core.")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "images",
    [IMAGES, tuple(IMAGES), AS_ARRAYS, [bytearray(image) for image in IMAGES], [array.copy() for array in AS_ARRAYS]],
    ids=["bytes", "tuple", "arrays", "bytearrays", "writable arrays"],
)
@pytest.mark.parametrize(
    "flags",
    [SAME, np.array(SAME), [np.bool_(flag) for flag in SAME], [1, 0, 1]],
    ids=["list", "array", "numpy flags", "integers"],
)
def test_each_kind_of_pickle_holds_the_same(tmp_path, protocol, images, flags):
    pairs = VerificationSet.load(write_bin(tmp_path, (images, flags), protocol))
    assert pairs.images == IMAGES
    assert pairs.is_same.tolist() == SAME and pairs.is_same.dtype == np.bool_
    assert pairs.name == "lfw" and len(pairs) == 3


@pytest.mark.parametrize("protocol", [0, 2])
def test_numpy_1_module_names(tmp_path, protocol):
    data = pickle.dumps((AS_ARRAYS, [np.bool_(flag) for flag in SAME]), protocol)
    pairs = VerificationSet.load(write_bin(tmp_path, as_numpy_1(data)))
    assert pairs.images == IMAGES and pairs.is_same.tolist() == SAME


def test_python_2_str_is_bytes(tmp_path):
    parts = b"".join(b"T" + struct.pack("<i", len(image)) + image for image in IMAGES)  # BINSTRING
    data = b"\x80\x02](" + parts + b"e](\x88\x89\x88e\x86."
    assert VerificationSet.load(write_bin(tmp_path, data)).images == IMAGES


def test_pixels_keep_their_values(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, [4, 5, 7, 3], dtype=np.uint8)
    for images in (list(pixels), pixels, list(np.asfortranarray(pixels[0])[None].repeat(4, 0))):
        pairs = VerificationSet.load(write_bin(tmp_path, (images, [True, False])))
        assert all(np.array_equal(found, image) for found, image in zip(pairs.images, images))


@pytest.mark.parametrize("name, pairs", [("unseen", 6), ("unseen_numpy", 6), ("unseen_py2", 6)])
def test_files_that_other_versions_of_python_and_numpy_wrote(name, pairs):
    found = VerificationSet.load(OMNIGLOT / f"{name}.bin")
    assert len(found) == pairs and found.is_same.sum() == pairs // 2 and found.name == name
    assert all(cv2.imdecode(np.frombuffer(image, np.uint8), 1).shape == (112, 112, 3) for image in found.images)


@pytest.mark.parametrize(
    "content, found",
    [
        (([], []), "found 0 images and 0 flags"),
        ((IMAGES, SAME[:2]), "found 6 images and 2 flags, expected two images per flag"),
        ((IMAGES[:5], SAME), "found 5 images and 3 flags"),
        (([*IMAGES[:5], "text"], SAME), "image 5 is of type str, expected encoded bytes"),
        (([*IMAGES[:5], b""], SAME), r"image 5 is empty \(0 bytes\)"),
        (([*IMAGES[:5], np.zeros([4, 4], np.uint8)], SAME), r"image 5 is of type array \[4, 4\] of uint8"),
        (([*IMAGES[:5], np.zeros(4, np.int32)], SAME), r"image 5 is of type array \[4\] of int32"),
        (([*IMAGES[:5], None], SAME), "image 5 is of type NoneType"),
        (([*IMAGES[:5], np.zeros(4, object)], SAME), "image 5 is of type list, expected encoded bytes"),
        (([*IMAGES[:5], np.zeros(4, np.float32)], SAME), r"image 5 is of type array \[4\] of float32"),
        ((IMAGES, [True, "no", False]), "flag 1 is 'no' of type str, expected True or False"),
        ((IMAGES, [True, False, 2]), "flag 2 is 2 of type int, expected True or False"),
        ((IMAGES, True), r"found \(list, bool\); expected a pickle of \(list of 2P images"),
        ((IMAGES, SAME, 1), "found a tuple of 3"),
        (7, "found a int; expected a pickle"),
        ({"images": IMAGES}, "instruction SETITEM at byte"),
        (b"", r"is empty \(0 bytes\); expected a pickle"),
        (b"\xff\xd8\xff\xe0 a photograph", r"not a pickle \(it begins with b'\\xff\\xd8"),
    ],
)
def test_other_content_is_named(tmp_path, content, found):
    path = write_bin(tmp_path, content)
    with pytest.raises(DataError, match=found) as caught:
        VerificationSet.load(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"none\.bin cannot be read: No such file.*expected a pickle"):
        VerificationSet.load(tmp_path / "none.bin")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        VerificationSet.load(tmp_path)


def test_saved_sets_read_back_the_same_and_need_no_numpy_class(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, [2, 9, 8, 3], dtype=np.uint8)
    path = tmp_path / "new.bin"
    VerificationSet("mixed", [*pixels, *AS_ARRAYS[:4]], is_same=SAME).save(path)
    images, flags = pickle.loads(path.read_bytes())
    assert flags == SAME and {type(image) for image in images} == {bytes}
    assert images[2:] == IMAGES[:4]
    for image, original in zip(images, pixels):
        decoded = cv2.cvtColor(cv2.imdecode(np.frombuffer(image, np.uint8), 1), cv2.COLOR_BGR2RGB)
        assert np.array_equal(decoded, original)
    assert VerificationSet.load(path).images == images
    assert [file.name for file in tmp_path.iterdir()] == ["new.bin"]


def test_save_overwrites_nothing_by_default(tmp_path):
    path = tmp_path / "lfw.bin"
    path.write_bytes(b"mine")
    pairs = VerificationSet("lfw", IMAGES, is_same=SAME)
    with pytest.raises(DataError, match=r"lfw\.bin exists and is not overwritten; .*overwrite=True"):
        pairs.save(path)
    assert path.read_bytes() == b"mine"
    pairs.save(path, overwrite=True)
    assert len(VerificationSet.load(path)) == 3


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "lfw.bin"
    path.write_bytes(b"mine")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DataError, match=r"lfw\.bin cannot be written: No space left"):
        VerificationSet("lfw", IMAGES, is_same=SAME).save(path, overwrite=True)
    assert path.read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    with pytest.raises(DataError, match="cannot be written: No such file"):
        VerificationSet("lfw", IMAGES, is_same=SAME).save(tmp_path / "none" / "lfw.bin")


def test_pair_list(tmp_path):
    for index, image in enumerate(IMAGES):
        (tmp_path / f"bild {index} ü.png").write_bytes(image)
        (tmp_path / f"{index}.png").write_bytes(image)
    text = f"0.png  1.png 1\n\nbild 2 ü.png\tbild 3 ü.png\t0\n{tmp_path / '4.png'} 5.png 1\n"
    (tmp_path / "pairs.txt").write_text(text, encoding="utf-8")
    pairs = VerificationSet.from_pair_list(tmp_path / "pairs.txt", tmp_path)
    assert pairs.images == IMAGES and pairs.is_same.tolist() == SAME and pairs.name == "pairs"


@pytest.mark.parametrize(
    "line, found",
    [
        ("a.png b.png", "line 2: got 'a.png b.png', expected two image paths and 1 or 0"),
        ("a.png b.png 2", "line 2: got 'a.png b.png 2'"),
        ("a.png b.png c.png 1", "line 2: got"),
        ("a.png none.png 1", r"line 2: .*none\.png: the image cannot be read"),
    ],
)
def test_pair_list_names_the_line(tmp_path, line, found):
    (tmp_path / "a.png").write_bytes(IMAGES[0])
    (tmp_path / "pairs.txt").write_text(f"a.png a.png 1\n{line}\n")
    with pytest.raises(DataError, match=found):
        VerificationSet.from_pair_list(tmp_path / "pairs.txt", tmp_path)


def test_pair_list_that_is_no_text_or_not_there(tmp_path):
    (tmp_path / "pairs.txt").write_bytes(b"a \xff 1")
    with pytest.raises(DataError, match=r"pairs\.txt: the pair list is not UTF-8 text \(byte 2\)"):
        VerificationSet.from_pair_list(tmp_path / "pairs.txt", tmp_path)
    with pytest.raises(DataError, match=r"none\.txt: the pair list cannot be read: No such file"):
        VerificationSet.from_pair_list(tmp_path / "none.txt", tmp_path)
