"""Transforms: the flip, the keys of randomness, normalization."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from plsc.data.augment import Augment
from plsc.data.transforms import (
    PIXEL_MEAN,
    PIXEL_STD,
    Transform,
    normalize,
    normalize_tensor,
    random_keys,
    tensor_constants,
)

RNG = np.random.default_rng(0)


IMAGE = cv2.resize(RNG.integers(30, 210, (6, 6, 3), np.uint8), (48, 40), interpolation=cv2.INTER_CUBIC)


IMAGE += RNG.integers(0, 20, IMAGE.shape, np.uint8)


ALL = Augment(crop=0.2, rotate=10, color_jitter=0.3, rand_augment=2, gray=0.3, blur=0.3, erase=0.5)


def test_only_the_flip_changes_an_image_by_default():
    transform = Transform((3, 40, 48), flip=True, augment=Augment())
    plain = IMAGE.transpose(2, 0, 1)
    keys = random_keys(0, 0, indices=range(200)).tolist()
    flips = 0
    for key in keys:
        image = transform(IMAGE, key)
        is_flipped = np.array_equal(image, plain[..., ::-1])
        assert is_flipped != np.array_equal(image, plain)
        flips += is_flipped
    assert 70 < flips < 130
    assert np.array_equal(transform(IMAGE), plain)


def test_keys_depend_on_seed_epoch_and_index_and_spread():
    keys = random_keys(3, 5, indices=range(1000))
    assert np.array_equal(random_keys(3, 5, indices=[7, 999]), keys[[7, 999]])
    assert (
        len(
            set(keys.tolist())
            | set(random_keys(3, 6, indices=range(1000)).tolist())
            | set(random_keys(4, 5, indices=range(1000)).tolist())
        )
        == 3000
    )
    bits = np.unpackbits(keys.view(np.uint8)).reshape(1000, 64).mean(0)
    assert np.abs(bits - 0.5).max() < 0.08


def test_equal_keys_give_equal_pixels_and_others_others():
    transform = Transform((3, 32, 32), flip=True, augment=ALL)
    keys = random_keys(0, 0, indices=range(20)).tolist()
    images = [transform(IMAGE, key) for key in keys]
    assert all(np.array_equal(transform(IMAGE, key), image) for key, image in zip(keys, images))
    assert len({image.tobytes() for image in images}) == 20
    assert np.array_equal(transform(IMAGE), Transform((3, 32, 32))(IMAGE))


def test_the_result_is_written_to_out():
    out = np.zeros((3, 40, 48), np.uint8)
    strided = np.repeat(IMAGE, 2, axis=1)[:, ::2]
    assert Transform((3, 40, 48))(strided, out=out) is out
    assert np.array_equal(out, IMAGE.transpose(2, 0, 1))


def test_normalizing_arrays_is_exact():
    images = RNG.integers(0, 256, (2, 3, 5, 7), np.uint8)
    expected = ((images.astype(np.float64) - PIXEL_MEAN) / PIXEL_STD).astype(np.float32)
    for array in (images, images[..., ::-1], images[0]):
        assert np.array_equal(normalize(array), expected if array is images else ((array - PIXEL_MEAN) / PIXEL_STD))
    assert normalize(images).dtype == np.float32


@pytest.mark.parametrize(
    "mean, std, nearness", [(127.5, 128.0, 0), ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), 2**-22)]
)
def test_a_pixel_is_normalized_alike_whatever_else_is_in_the_batch(mean, std, nearness):
    every = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 1, 256))
    whole = normalize(every, mean=mean, std=std)
    for low, high in ((0, 1), (7, 8), (3, 90), (100, 256)):
        assert np.abs(normalize(every[..., low:high], mean=mean, std=std) - whole[..., low:high]).max() <= nearness


@pytest.mark.parametrize("mean, std", [(127.5, 128.0), ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4))])
def test_tensors_and_arrays_are_normalized_alike_by_channel(mean, std):
    paddle = pytest.importorskip("paddle")
    images = RNG.integers(0, 256, (2, 3, 5, 7), np.uint8)
    shape = (3, 1, 1) if isinstance(mean, tuple) else ()
    expected = (images - np.reshape(mean, shape)) / np.reshape(std, shape)
    constants = [
        value if isinstance(value, float) else paddle.to_tensor(value) for value in tensor_constants(mean, std)
    ]
    for found in (
        normalize(images, mean=mean, std=std),
        normalize_tensor(paddle.to_tensor(images), mean=constants[0], std=constants[1]).numpy(),
    ):
        assert found.dtype == np.float32
        assert np.allclose(found, expected, atol=1e-6)
    finished = np.ones((2, 3, 5, 7), np.float32)
    assert normalize(finished, mean=mean, std=std) is finished
    tensor = paddle.to_tensor(finished)
    assert normalize_tensor(tensor, mean=constants[0], std=constants[1]) is tensor
