"""The pipeline service brings images to the network's input, and outputs to embeddings, as plsc/inference does."""

from __future__ import annotations

import base64
import itertools
import json

import cv2
import numpy as np
import pytest

from plsc.inference.model_card import FORMAT, read_model_card
from tests._support.images import make_images
from tests._support.web_service import load_operator, write_service

IMAGES = [
    cv2.resize(image, (width, height))
    for image, (height, width) in zip(make_images()[0], [(16, 16), (20, 13), (9, 30)])
]
FLOATS = np.random.default_rng(0).normal(size=[4, 8]).astype(np.float32)


def write_card(folder, *, flip, bake=(), bgr=False):
    """A service with this model card; returns the card."""
    about = {
        "format": FORMAT,
        "version": 1,
        "image_shape": [3, 16, 16],
        "emb_dim": 8,
        "pixel_mean": [100, 110, 120],
        "pixel_std": [60, 55, 50],
        "flip": flip,
        "baked": {
            "preprocess": "preprocess" in bake,
            "normalise": "normalize" in bake,
            "channels": "BGR" if bgr else "RGB",
        },
    }
    write_service(folder, about)
    return read_model_card(folder)


def encode(pixels):
    return base64.b64encode(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()).decode()


def embeddings_of(operator, outputs):
    reply, failure, message = operator.postprocess({}, {"out": outputs})
    assert failure is None and message == ""
    return np.frombuffer(base64.b64decode(reply["embedding"]), "<f4").reshape(json.loads(reply["shape"]))


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(
    "bake, bgr", [((), False), (("normalize",), False), (("preprocess",), False), (("preprocess", "normalize"), True)]
)
def test_input_and_embeddings_equal_those_of_the_model_card(tmp_path, flip, bake, bgr):
    card = write_card(tmp_path / "s", flip=flip, bake=bake, bgr=bgr)
    operator = load_operator(tmp_path / "s")
    assert operator.feed_name == "x"
    expected = card.to_input(np.stack([card.prepare(image) for image in IMAGES]))
    found = operator.batch({f"image{number}": encode(image) for number, image in enumerate(IMAGES)})
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    count = 2 if flip and "normalize" not in bake else 4
    np.testing.assert_allclose(embeddings_of(operator, FLOATS), card.to_embeddings(FLOATS, count), rtol=0, atol=1e-7)


def test_tensors_of_pixels_and_of_floats_equal_encoded_images(tmp_path):
    card = write_card(tmp_path / "s", flip=True)
    operator, image = load_operator(tmp_path / "s"), IMAGES[0]
    encoded = operator.batch({"image": encode(image)})
    assert np.array_equal(operator.batch({"image": image[None]}), encoded)
    floats = card.normalize(card.prepare(image)[None])
    np.testing.assert_allclose(operator.batch({"image": floats}), encoded, rtol=0, atol=1e-5)


def test_images_are_taken_in_the_order_of_their_numbers(tmp_path):
    write_card(tmp_path / "s", flip=False, bake=("preprocess",))
    operator = load_operator(tmp_path / "s")
    pixels = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones([1, 16, 16, 3], np.uint8)
    keys = {f"image{number}": encode(image) for number, image in enumerate(pixels)}
    for order in itertools.islice(itertools.permutations(keys), 3):
        assert np.array_equal(operator.batch({key: keys[key] for key in order}), pixels)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, r"got the keys \[\], expected 'image'"),
        ({"image": "a$"}, "'image': not base64"),
        ({"image": "aGVsbG8="}, "'image': 5 bytes that are not an image"),
        ({"image": 3}, "'image': got int, expected base64 text"),
        ({"image": np.zeros([1, 3, 16, 17], np.float32)}, r"tensor 'image': got float32 \[1, 3, 16, 17\], expected"),
        ({"image": np.full([1, 3, 16, 16], np.nan, np.float32)}, "tensor 'image': empty, or holds NaN"),
        ({"image": np.zeros([2, 16, 16], np.uint8)}, r"tensor 'image': got \[2, 16, 16\] of uint8"),
        ({"image": np.zeros([300, 16, 16, 3], np.uint8)}, "expected one tensor of 256 images at most"),
    ],
)
def test_malformed_inputs_are_refused_with_a_reason(tmp_path, inputs, message):
    write_card(tmp_path / "s", flip=True)
    with pytest.raises(ValueError, match=message):
        load_operator(tmp_path / "s").batch(inputs)
