"""Transforms: off unless set, drawn from the key alone, and each does what it is called."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from plsc.data import augment as augment_room
from plsc.data.augment import Augment
from plsc.data.images import decode
from plsc.data.transforms import PIXEL_MEAN, PIXEL_STD, Transform, normalize, random_keys
from plsc.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
IMAGE = cv2.resize(RNG.integers(30, 210, (6, 6, 3), np.uint8), (48, 40), interpolation=cv2.INTER_CUBIC)
IMAGE += RNG.integers(0, 20, IMAGE.shape, np.uint8)
ALL = Augment(crop=0.2, rotate=10, color_jitter=0.3, rand_augment=2, gray=0.3, blur=0.3, erase=0.5)


def drawn(augment: Augment, count: int = 40) -> list:
    return [augment(IMAGE, np.random.default_rng(number)) for number in range(count)]


def changed(images: list) -> float:
    return np.mean([not np.array_equal(image, IMAGE) for image in images])


def test_nothing_but_the_flip_happens_unless_set():
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


def test_the_result_is_written_where_it_is_wanted():
    out = np.zeros((3, 40, 48), np.uint8)
    strided = np.repeat(IMAGE, 2, axis=1)[:, ::2]
    assert Transform((3, 40, 48))(strided, out=out) is out
    assert np.array_equal(out, IMAGE.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "setting",
    [{"crop": 0.3}, {"rotate": 20}, {"color_jitter": 0.4}, {"rand_augment": 2}, {"gray": 1}, {"blur": 1}, {"erase": 1}],
)
def test_each_changes_images_keeps_their_shape_and_leaves_the_input(setting):
    before = IMAGE.copy()
    images = drawn(Augment(**setting))
    assert changed(images) > 0.9
    assert all(image.shape == IMAGE.shape and image.dtype == np.uint8 for image in images)
    assert np.array_equal(IMAGE, before)
    assert not Augment(**setting).is_off


@pytest.mark.parametrize("name", ["gray", "blur", "erase"])
def test_probabilities_are_those_set(name):
    assert 0.1 < changed(drawn(Augment(**{name: 0.3}), 100)) < 0.5


def test_gray_has_no_colors_and_blur_is_smoother():
    gray = drawn(Augment(gray=1), 1)[0]
    assert np.array_equal(gray[..., 0], gray[..., 1])
    assert np.array_equal(gray[..., 1], gray[..., 2])
    noise = RNG.integers(0, 256, (112, 112, 3), np.uint8)
    assert all(Augment(blur=1)(noise, np.random.default_rng(n)).std() <= noise.std() for n in range(10))


def test_a_rotation_turns_about_the_center_by_no_more_than_set():
    dot = np.zeros((101, 101, 3), np.uint8)
    cv2.circle(dot, (50, 25), 4, (255, 255, 255), -1)
    angles = []
    for number in range(60):
        image = Augment(rotate=30)(dot, np.random.default_rng(number))[..., 0]
        rows, columns = np.nonzero(image > 127)
        x, y = columns.mean() - 50, rows.mean() - 50
        assert np.hypot(x, y) == pytest.approx(25, abs=1)
        angles.append(np.degrees(np.arctan2(x, -y)))
    assert max(map(abs, angles)) < 31
    assert min(angles) < -15
    assert max(angles) > 15


def test_a_crop_shows_an_inner_part_at_most_so_much_larger():
    ramp = np.repeat(np.linspace(0, 255, 200).astype(np.uint8)[None, :, None], 200, 0).repeat(3, 2)
    images = [Augment(crop=0.4)(ramp, np.random.default_rng(number)) for number in range(60)]
    spans = [np.ptp(image[100, :, 0].astype(int)) for image in images]
    assert min(spans) > 0.6 * 255 - 4
    assert min(spans) < 0.75 * 255
    assert max(spans) > 0.9 * 255


def test_an_erased_part_is_of_the_size_set():
    areas = [np.any(image != IMAGE, axis=2) for image in drawn(Augment(erase=1), 100)]
    shares = [
        np.ptp(np.nonzero(area.any(1))[0] + 0.0) * np.ptp(np.nonzero(area.any(0))[0] + 0.0) / area.size
        for area in areas
    ]
    assert max(shares) < 0.36
    assert 0.05 < np.mean(shares) < 0.25


@pytest.mark.parametrize("number", range(len(augment_room._OPERATIONS)))
def test_every_randaugment_operation_grows_from_nothing(number):
    operation = augment_room._OPERATIONS[number]
    distances = [np.abs(operation(IMAGE, strength).astype(int) - IMAGE).mean() for strength in (0.0, 0.3, 1.0)]
    assert distances[0] < 1
    assert distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("setting", [{"crop": 1}, {"rotate": -1}, {"gray": 1.5}, {"rand_magnitude": 11}])
def test_values_out_of_range_are_refused(setting):
    name, value = next(iter(setting.items()))
    with pytest.raises(ConfigError, match=f"{name}: got {value}, expected 0 to"):
        Augment(**setting)


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
    for found in (
        normalize(images, mean=mean, std=std),
        normalize(paddle.to_tensor(images), mean=mean, std=std).numpy(),
    ):
        assert found.dtype == np.float32
        assert np.allclose(found, expected, atol=1e-6)
    finished = np.ones((2, 3, 5, 7), np.float32)
    assert normalize(finished, mean=mean, std=std) is finished


@pytest.mark.parametrize(
    "image, message",
    [
        (b"", r"the image is empty \(0 bytes\)"),
        (b"GIF89a nothing", "14 bytes that are no image known to OpenCV"),
        (np.zeros((4, 4), np.uint8), r"got an array \[4, 4\] of uint8, expected \[H, W, 3\]"),
        (np.zeros((4, 4, 3), np.float64), "of float64, expected"),
        (np.zeros((0, 4, 3), np.uint8), r"got an array \[0, 4, 3\]"),
    ],
)
def test_what_is_no_image_is_named(image, message):
    with pytest.raises(DataError, match=message):
        decode(image)


def test_colors_come_out_in_rgb_order_from_any_encoding():
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes blue, green, red
    for suffix in (".png", ".jpg", ".bmp", ".webp"):
        pixels = decode(cv2.imencode(suffix, red)[1].tobytes())
        assert pixels[..., 0].min() > 250
        assert pixels[..., 1:].max() < 5
