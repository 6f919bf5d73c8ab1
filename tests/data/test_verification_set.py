"""Verification sets: every kind of `.bin` in use is read, other content is named."""

from __future__ import annotations

import io
import os
import pickle
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from plsc.data.verification_set import VerificationSet, find_bin
from plsc.errors import DataError
from plsc.metrics.pairs import make_folds
from tests._support.pairs import AS_ARRAYS, IMAGES, SAME, write_bin
from tests._support.sources import OMNIGLOT


def as_numpy_1(data):
    """A pickle as NumPy 1 wrote it, whose modules had other names: text opcodes only, so lengths may change."""
    return data.replace(b"numpy._core.", b"numpy.core.")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "images",
    [
        IMAGES,
        tuple(IMAGES),
        AS_ARRAYS,
        [bytearray(image) for image in IMAGES],
        [array.copy() for array in AS_ARRAYS],
        np.array([*IMAGES, None], object)[:-1],
        np.array([*AS_ARRAYS, None], object)[:-1],
    ],
    ids=["bytes", "tuple", "arrays", "bytearrays", "writable arrays", "array of bytes", "array of arrays"],
)
@pytest.mark.parametrize(
    "flags",
    [
        SAME,
        np.array(SAME),
        [np.bool_(flag) for flag in SAME],
        [1, 0, 1],
        [1.0, 0.0, 1.0],
        np.array([1, 0, 1], np.float32),
        [np.float64(flag) for flag in SAME],
        np.array(SAME, object),
        [np.array(flag) for flag in SAME],
    ],
    ids=[
        "list",
        "array",
        "numpy flags",
        "integers",
        "floats",
        "array of floats",
        "numpy floats",
        "array of objects",
        "list of arrays",
    ],
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
        (([*IMAGES[:5], "text"], SAME), "image 5 is of type str, expected encoded bytes.*; give the content of a file"),
        (([*IMAGES[:5], b""], SAME), r"image 5 is empty \(0 bytes\)"),
        (([*IMAGES[:5], np.zeros([4, 4, 2], np.uint8)], SAME), r"image 5 is of type array \[4, 4, 2\] of uint8"),
        (([*IMAGES[:5], np.zeros(4, np.int32)], SAME), r"image 5 is of type array \[4\] of int32"),
        (([*IMAGES[:5], None], SAME), "image 5 is of type NoneType"),
        (([*IMAGES[:5], np.zeros(4, object)], SAME), "image 5 is of type list, expected encoded bytes"),
        (([*IMAGES[:5], np.zeros(4, np.float32)], SAME), r"image 5 is of type array \[4\] of float32"),
        ((IMAGES, [True, "no", False]), "flag 1 is 'no' of type str, expected True or False"),
        ((IMAGES, [1, -1, 1]), "flag 1 is -1 of type int, expected True or False"),
        ((IMAGES, ["1", "0", "1"]), "flag 0 is '1' of type str"),
        ((IMAGES, [1.0, float("nan"), 1.0]), "flag 1 is nan of type float"),
        ((IMAGES, np.array([1.0, 0.5, 1.0])), "flag 1 is 0.5 of type float"),
        ((np.zeros((2, 2), object), SAME), "holds an array of 4 objects that states another shape"),
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
    with pytest.raises(DataError, match="cannot be read: embedded null byte"):
        VerificationSet.load("a\0.bin")


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


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("name", ["a", "a\x85b", "a\u2028b", "a\xa0b", "a\x0cb", "\u3000a"], ids=ascii)
def test_pair_lists_of_other_editors_and_unusual_names(tmp_path, name, end, mark):
    (tmp_path / f"{name}.png").write_bytes(IMAGES[0])
    (tmp_path / "b.png").write_bytes(IMAGES[1])
    lines = [
        f"{name}.png b.png 1",
        f"  {name}.png\t\tb.png\t 0 \t",
        f"{name}.png\tb.png\t1",
        f"{name}.png b.png\t1  ",
        "",
    ]
    (tmp_path / "pairs.txt").write_bytes((mark + end.join(lines)).encode())
    pairs = VerificationSet.from_pair_list(tmp_path / "pairs.txt", tmp_path)
    assert pairs.images == IMAGES[:2] * 4 and pairs.is_same.tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    "line, hint",
    [
        ("10 300", "; LFW's own pairs.txt gives names and numbers: write the paths of the files instead"),
        ("Abel_Pacheco 1 4", "; LFW's own pairs.txt"),
        ("Abel_Pacheco 4 1", "; LFW's own pairs.txt"),
        ("Abdel_Madi 5 Dean_Barkley 1", "; LFW's own pairs.txt"),
        ("a.png,a.png,1", "; separate the fields by tabs or blanks, without commas and quotation marks"),
        ('"my a.png" a.png 1', "without commas and quotation marks$"),
        (
            '"a.png" "a.png" 1',
            "the image cannot be read: No such file or directory; the quotes are read .*: leave them out$",
        ),
        (
            "x\\a.png x\\a.png 1",
            "the image cannot be read: No such file or directory; the path has backslashes: [^;]*$",
        ),
        ("1 a.png a.png", "; the flag comes after the paths$"),
        ("my photos/a.png a.png 1", "; where a path has blanks, separate the fields by tabs"),
        ("a.png a.png True", "as 'a/1.jpg a/2.jpg 1'$"),
        ("a\0.png a.png 1", "the image cannot be read: embedded null byte$"),
    ],
)
def test_usual_mistakes_of_pair_lists_get_a_hint(tmp_path, line, hint):
    (tmp_path / "a.png").write_bytes(IMAGES[0])
    (tmp_path / "pairs.txt").write_text(f"a.png a.png 1\n{line}\n")
    with pytest.raises(DataError, match=rf"pairs\.txt, line 2: .*{hint}"):
        VerificationSet.from_pair_list(tmp_path / "pairs.txt", tmp_path)


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
    with pytest.raises(DataError, match=r"pairs\.txt, line 1: found b'a \\xff 1', which is not UTF-8 text"):
        VerificationSet.from_pair_list(tmp_path / "pairs.txt", tmp_path)
    with pytest.raises(DataError, match=r"none\.txt: the pair list cannot be read: No such file"):
        VerificationSet.from_pair_list(tmp_path / "none.txt", tmp_path)
    with pytest.raises(DataError, match="the pair list cannot be read: embedded null byte"):
        VerificationSet.from_pair_list("a\0.txt", tmp_path)


# Folds.


def four_pairs(folds=None):
    return VerificationSet("own", [*IMAGES, *IMAGES[:2]], is_same=[True, False, True, False], folds=folds)


def test_folds_are_kept_in_the_file_and_other_readers_read_it_as_before(tmp_path):
    path = tmp_path / "own.bin"
    four_pairs([1, 1, 0, 0]).save(path)
    loaded = VerificationSet.load(path)
    assert loaded.folds.tolist() == [1, 1, 0, 0] and loaded.folds.dtype == np.int64 and loaded.has_own_folds
    with open(path, "rb") as file:
        readings = [pickle.load(file), pickle.loads(path.read_bytes()), np.load(path, allow_pickle=True)]
        readings.append(pickle.load(io.BytesIO(path.read_bytes()), encoding="bytes"))
    for images, flags in readings:
        assert images == loaded.images and flags == [True, False, True, False]
    loaded.save(tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == path.read_bytes()


def test_a_set_without_folds_of_its_own_is_a_pickle_and_no_more(tmp_path, caplog):
    path = tmp_path / "own.bin"
    four_pairs().save(path)
    file = io.BytesIO(path.read_bytes())
    pickle.load(file)
    assert not file.read()
    loaded = VerificationSet.load(path)
    assert not loaded.has_own_folds and loaded.folds.tolist() == make_folds(loaded.is_same, 4).tolist()
    assert not caplog.records


@pytest.mark.parametrize("name", ["lfw", "glyphs"])
def test_the_folds_of_sets_by_the_protocol_are_contiguous(name):
    same = np.tile(np.repeat([True, False], 300), 10)
    if name == "glyphs":  # alternating, as other libraries write their sets
        same = np.arange(6000) % 2 == 0
    pairs = VerificationSet(name, [IMAGES[0]] * 12000, is_same=same)
    assert pairs.folds.tolist() == np.repeat(np.arange(10), 600).tolist() and not pairs.shortcomings()
    assert pairs.summary() == ("6000 pairs, 3000 of them same, in 10 contiguous folds; TAR at FAR 0.1, 0.01, 0.001")


def test_a_description_that_is_cut_off_or_damaged_is_refused(tmp_path):
    path = tmp_path / "own.bin"
    four_pairs([1, 1, 0, 0]).save(path)
    whole = path.read_bytes()
    start = whole.index(b'"folds"')
    for content in (
        *(whole[:end] for end in range(start, len(whole) - 2)),
        whole[:start] + b'"folds": "1100"}',
        whole[:start] + b'"folds": [1, true, 0, 0]}',
        whole[:start] + b'"folds": [1, 1, 0, NaN]}',
        whole[:start] + b'"folds": ' + b"[" * 100_000,
        whole[:start] + b'"others": [1, 1, 0, 0]}',
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"own\.bin: the description of its folds is cut off or damaged"):
            VerificationSet.load(path)
    for content in (b"[1, 1, 0]}", b"[1, 1, 0, -1]}", b"[1, 1, 0, 99999999999999999999]}", b"[]}"):
        path.write_bytes(whole[:start] + b'"folds": ' + content)
        with pytest.raises(DataError, match=r"own\.bin: own: folds: got "):
            VerificationSet.load(path)


@pytest.mark.parametrize("folds", [[0, 1, 0], 2, "0110", [0, 1, 0.5, 1], [[0], [1], [0], [1]], [[0], [1, 2], [3], [4]]])
def test_folds_that_do_not_fit_are_refused(folds):
    with pytest.raises(DataError, match="^own: "):
        four_pairs(folds)


# What the pairs do not give.


def test_sets_that_give_no_accuracy_or_a_coarse_one_say_so():
    images = IMAGES[:2] * 20
    same_only = VerificationSet("own", images, is_same=[True] * 20)
    assert same_only.shortcomings() == ["no accuracy: found 20 same and 0 different pairs, expected both kinds"]
    assert same_only.summary() == "20 pairs, 20 of them same, in 10 contiguous folds; too few different pairs for a TAR"
    assert VerificationSet("own", IMAGES[:2], is_same=[False]).shortcomings() == [
        "no accuracy: found 0 same and 1 different pair, expected both kinds"
    ]
    few = VerificationSet("own", images, is_same=[True] * 3 + [False] * 17)
    assert few.shortcomings() == [
        "too few for a sound accuracy: 20 pairs, 3 of one kind, expected 10 of each kind or more, and better "
        "1,000; each pair weighs 5.0 %"
    ]
    assert few.summary().startswith("20 pairs, 3 of them same, in 10 stratified folds; TAR at FAR 0.1")
    by_kind = VerificationSet("own", images, is_same=[True] * 10 + [False] * 10, folds=[0] * 10 + [1] * 10)
    assert by_kind.shortcomings()[0].startswith("no accuracy: the folds other than fold 0 hold different pairs only")
    assert not VerificationSet("own", images, is_same=[True] * 10 + [False] * 10).shortcomings()


# Sets by name.


def test_a_set_is_found_by_its_name_its_file_or_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    for name in ("my.bin", "old.BIN", "both.bin", "both.bin.bin", "sub/my.bin", "../other.bin", "a b.bin"):
        (folder / name).write_bytes(b"x")
    for name, file, found in (
        ("my", "data/my.bin", "my"),
        ("my.bin", "data/my.bin", "my"),
        ("old.BIN", "data/old.BIN", "old"),
        ("both", "data/both.bin", "both"),
        ("both.bin", "data/both.bin.bin", "both.bin"),
        ("a b", "data/a b.bin", "a b"),
        ("sub/my", "data/sub/my.bin", "sub/my"),
        ("sub/my.bin", "data/sub/my.bin", "my"),
        ("data/my.bin", "data/my.bin", "my"),
        ("other.bin", "other.bin", "other"),
        (str(tmp_path / "other.bin"), "other.bin", "other"),
    ):
        assert find_bin(name, Path("data")) == (Path(file) if not Path(name).is_absolute() else Path(name), found), name


def test_a_set_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    for name in ("lfw.bin", "cfp_fp.BIN", "lfw.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"'LFW' of val_targets: .*/LFW\.bin does not exist; .* holds cfp_fp.BIN, lfw.bin$"
    ):
        find_bin("LFW", tmp_path)
    with pytest.raises(DataError, match=r"'my\.bin' of names: .*/my\.bin does not exist; .* holds cfp_fp"):
        find_bin("my.bin", tmp_path, setting="names")
    with pytest.raises(DataError, match="; commas separate the names of several sets$"):
        find_bin("lfw cfp_fp", tmp_path)
    with pytest.raises(DataError, match="holds no .bin file$"):
        find_bin("lfw", tmp_path / "none")
