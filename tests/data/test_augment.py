"""Augmentation: off by default, drawn from the generator, and each change does what it is called."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from plsc.data import augment as augment_room
from plsc.data.augment import Augment
from plsc.errors import ConfigError

RNG = np.random.default_rng(0)


IMAGE = cv2.resize(RNG.integers(30, 210, (6, 6, 3), np.uint8), (48, 40), interpolation=cv2.INTER_CUBIC)


IMAGE += RNG.integers(0, 20, IMAGE.shape, np.uint8)


def drawn(augment: Augment, count: int = 40) -> list:
    return [augment(IMAGE, np.random.default_rng(number)) for number in range(count)]


def changed(images: list) -> float:
    return np.mean([not np.array_equal(image, IMAGE) for image in images])


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
