"""Images of every kind that a caller gives are taken by one function, and what is no image is named."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
from PIL import Image

from plsc.data.image_input import each_image, named_error, read_image, take_image
from plsc.data.images import decode
from plsc.data.records import DatasetRecords
from plsc.data.verification_set import VerificationSet
from plsc.errors import DataError, StorageError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
ENCODED = cv2.imencode(".png", PIXELS[..., ::-1])[1].tobytes()
GRAY = PIXELS[..., 0]
OPACITY = np.full((6, 9, 1), 7, np.uint8)


def given(folder):
    """The image in each kind that is taken, as (kind, object)."""
    path = folder / "a.png"
    path.write_bytes(ENCODED)
    wide = np.zeros((6, 18, 3), np.uint8)
    wide[:, ::2] = PIXELS
    return {
        "path": path,
        "text": str(path),
        "bytes": ENCODED,
        "bytearray": bytearray(ENCODED),
        "memoryview": memoryview(ENCODED),
        "array of bytes": np.frombuffer(ENCODED, np.uint8),
        "BytesIO": io.BytesIO(ENCODED),
        "open file": open(path, "rb"),
        "Pillow": Image.open(path),
        "pixels": PIXELS,
        "memoryview of pixels": memoryview(PIXELS),
        "strided": wide[:, ::2],
        "Fortran order": np.asfortranarray(PIXELS),
        "read only": np.frombuffer(PIXELS.tobytes(), np.uint8).reshape(PIXELS.shape),
        "tensor": paddle.to_tensor(PIXELS),
        "RGBA": np.concatenate([PIXELS, OPACITY], axis=2),
    }


def test_each_kind_is_the_same_image(tmp_path):
    for kind, image in given(tmp_path).items():
        assert np.array_equal(decode(take_image(image)), PIXELS), kind


def test_gray_pixels_are_what_a_gray_file_is_decoded_to():
    expected = decode(cv2.imencode(".png", GRAY)[1].tobytes())
    for gray in (GRAY, GRAY[..., None], paddle.to_tensor(GRAY), Image.fromarray(GRAY)):
        assert np.array_equal(decode(take_image(gray)), expected)


def test_pixels_with_opacity_are_what_such_a_file_is_decoded_to():
    transparent = np.concatenate([PIXELS, OPACITY], axis=2)
    encoded = cv2.imencode(".png", cv2.cvtColor(transparent, cv2.COLOR_RGBA2BGRA))[1].tobytes()
    assert np.array_equal(decode(take_image(transparent)), decode(encoded))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_an_image_of_pillow_is_upright_as_its_file_is(form, orientation):
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(file, form, exif=exif, quality=100, subsampling=0)
    expected = decode(file.getvalue())
    found = take_image(Image.open(io.BytesIO(file.getvalue())))
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 2  # two JPEG decoders


@pytest.mark.parametrize(
    "image, message",
    [
        (None, "got None, expected a path, .*cv2.imread returns it"),
        (3, "got int '3', expected a path, encoded bytes, an open file"),
        ([PIXELS], "got list .*, expected a path"),
        (io.StringIO("text"), "the open file gives str, expected bytes: open it in binary mode"),
        (io.BytesIO(), "the open file gives 0 bytes: .* seek"),
        (Image.fromarray(np.zeros((4, 4), np.uint16)), "mode I;16, expected 8 bits"),
    ],
)
def test_what_is_no_image_is_named(image, message):
    with pytest.raises(DataError, match=message):
        take_image(image)


def test_files_that_cannot_be_read(tmp_path):
    file = io.BytesIO(ENCODED)
    file.close()
    with pytest.raises(DataError, match="the open file cannot be read: .* closed"):
        take_image(file)
    (tmp_path / "a.jpg").write_bytes(cv2.imencode(".jpg", PIXELS)[1].tobytes())
    with open(tmp_path / "a.jpg") as text, pytest.raises(DataError, match="is open as text, .* binary mode, 'rb'"):
        take_image(text)
    for path, remedy in (
        ("", "; the path is empty$"),
        ("https://host/a.jpg", "; images are not loaded from the network: give the bytes"),
        (base64.b64encode(ENCODED).decode(), r"; it looks like base64: give base64.b64decode\(...\) of it$"),
        (str(tmp_path / "*.jpg"), r"; a pattern is not expanded: give glob.glob\(...\) of it$"),
    ):
        with pytest.raises(DataError, match=f"the image cannot be read: .*{remedy}"):
            take_image(path)
    with pytest.raises(DataError, match=r"Is a directory; give the files in it one by one, as FOLDER/\*.jpg"):
        read_image(tmp_path)

    class Tensor:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("cannot convert cuda:0")

    with pytest.raises(DataError, match="the Tensor cannot be read as an array: cannot convert cuda:0"):
        take_image(Tensor())

    class Failing:
        def read(self):
            raise OSError(5, "Input/output error")

    with pytest.raises(StorageError, match="the open file cannot be read: Input/output error"):
        take_image(Failing())


@pytest.mark.parametrize("shape", [(6,), (6, 9, 2), (6, 9, 5), (2, 6, 9, 3), (0, 9, 3), ()])
def test_arrays_of_another_layout_or_type_are_refused_by_decoding(shape):
    with pytest.raises(DataError):
        decode(take_image(np.zeros(shape, np.uint8)))
    for dtype in (np.uint16, np.int64, np.float64, bool):
        with pytest.raises(DataError, match="expected .H, W, 3. of uint8"):
            decode(take_image(np.zeros((6, 9, 3), dtype)))


def test_one_image_or_several(tmp_path):
    for kind, image in given(tmp_path).items():
        (single,) = each_image(image)
        assert single is image, kind
    (single,) = each_image(GRAY)
    assert single is GRAY
    assert list(each_image(("a.jpg", b"b"))) == ["a.jpg", b"b"]
    assert len(list(each_image(np.stack([PIXELS, PIXELS])))) == 2
    assert len(list(each_image(paddle.to_tensor(np.stack([PIXELS, PIXELS]))))) == 2
    assert list(each_image(np.array(["a.jpg", "b.jpg"]))) == ["a.jpg", "b.jpg"]
    for none in ([], iter([]), np.zeros([0, 6, 9, 3], np.uint8)):
        assert list(each_image(none)) == []


@pytest.mark.parametrize("images", [{"a.jpg", "b.jpg"}, {"ann": "a.jpg"}, {"a": 1}.keys()])
def test_images_without_an_order_are_refused(images):
    with pytest.raises(DataError, match="of images, expected them in an order, as a list"):
        each_image(images)
    with pytest.raises(DataError, match="got int '5', expected images"):
        each_image(5)


def test_an_error_names_the_image_once():
    path = Path("no") / "such.jpg"
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert str(named_error(caught.value, path, index=3)) == str(caught.value)
    assert str(named_error(DataError("bad"), path, index=3)) == f"{path}: bad"
    assert str(named_error(DataError("bad"), b"..", index=3)) == "image 3: bad"


def test_data_sets_and_verification_sets_take_every_kind_but_paths(tmp_path):
    for kind, image in given(tmp_path).items():
        if kind in ("path", "text"):
            continue
        taken = DatasetRecords([(image, 0)])[0].image
        assert np.array_equal(decode(taken), PIXELS), kind
    for kind, image in given(tmp_path).items():
        if kind in ("path", "text"):
            with pytest.raises(DataError, match="give the content of a file and not its path"):
                VerificationSet("s", [image, image], is_same=[True])
            continue
        pairs = VerificationSet("s", [image, GRAY], is_same=[True])
        pairs.save(tmp_path / "s.bin", overwrite=True)
        one, other = VerificationSet.load(tmp_path / "s.bin").images
        assert np.array_equal(decode(one), PIXELS) and np.array_equal(decode(other)[..., 1], GRAY), kind


def test_a_name_of_bytes_that_are_no_utf8(tmp_path):
    path = tmp_path / os.fsdecode("照片.png".encode("gbk"))
    path.write_bytes(ENCODED)
    assert take_image(path) == take_image(str(path)) == ENCODED
    with pytest.raises(DataError, match="the image cannot be read: No such file"):
        read_image(tmp_path / os.fsdecode("无.png".encode("gbk")))
