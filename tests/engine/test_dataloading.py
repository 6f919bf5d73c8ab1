"""The settings of the data reach training: each kind of source trains, augmented, balanced, without small classes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

import plsc
from plsc import ConfigError, DataError
from plsc.data.convert.conversion import convert
from plsc.data.records import open_records


@pytest.mark.parametrize("to", ["rec", "tar", "base64", "csv", "folders", "npy"])
def test_training_takes_every_kind_of_source(entry, data_dir, tmp_path, to):
    convert(open_records(data_dir), tmp_path / "other", to=to)
    (tmp_path / "other" / "lfw.bin").write_bytes((data_dir / "lfw.bin").read_bytes())
    losses = []
    for folder in (data_dir, tmp_path / "other"):
        entry.set_dataset_dir(folder)
        entry.set_model_save_dir(tmp_path / f"output-{folder.name}")
        losses.append(entry.train()["loss"])
    if to == "folders":  # which are read class by class, so in another order
        assert np.isfinite(losses).all()
    else:
        assert losses[0] == losses[1]


def dataset(make):
    """A `paddle.io.Dataset` of twelve images, 16 x 16, that `make` makes of an index."""
    paddle = pytest.importorskip("paddle")

    class Twelve(paddle.io.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            return make(index), np.array([index % 6])

    return Twelve()


def pixels(index):
    return np.full((16, 16, 3), 20 * index, np.uint8)


@pytest.mark.parametrize("workers", [0, 2])
def test_data_sets_of_paddle_train_alike_whatever_they_hold_images_as(entry, tmp_path, workers):
    import paddle
    from PIL import Image

    kinds = {
        "bytes": lambda n: cv2.imencode(".png", pixels(n))[1].tobytes(),
        "pixels": pixels,
        "pillow": lambda n: Image.fromarray(pixels(n)),
        "finished": lambda n: ((pixels(n).transpose(2, 0, 1) - 127.5) / 128).astype(np.float32),
        "tensor": lambda n: paddle.to_tensor((pixels(n).transpose(2, 0, 1) - 127.5) / 128, "float32"),
    }
    losses = {}
    for kind, make in kinds.items():
        if kind == "tensor" and workers:
            continue  # Paddle does not work in forked processes
        entry.train_dataset = dataset(make)
        entry.set_num_workers(workers)
        entry.set_with_test(False)
        entry.set_model_save_dir(tmp_path / kind)
        losses[kind] = entry.train()["loss"]
    assert len(set(losses.values())) == 1


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda n: np.zeros((3, 8, 8), np.float32),
            r"item \d+ of Twelve: got a finished image \[3, 8, 8\] of float32, "
            r"expected \[3, 16, 16\]",
        ),
        (lambda n: np.zeros((16, 16), np.uint8), r"item \d+ of Twelve: got an array \[16, 16\] of uint8, expected"),
    ],
)
def test_items_of_a_data_set_of_another_shape_are_named(entry, make, message):
    entry.train_dataset = dataset(make)
    with pytest.raises(DataError, match=message):
        entry.train()


def test_what_is_no_data_set_of_images_is_named(entry):
    import paddle

    broken = dataset(pixels)
    type(broken).__getitem__ = lambda self, index: (1, 2, 3)
    entry.train_dataset = broken
    with pytest.raises(DataError, match=r"item \d+ of Twelve: got tuple '\(1, 2, 3\)', expected \(image, label\)"):
        entry.train()

    class Stream(paddle.io.IterableDataset):
        def __iter__(self):
            yield pixels(0), 0

    entry.train_dataset = Stream()
    with pytest.raises(DataError, match="train_dataset: got Stream, expected an object with len.* in train_reader"):
        entry.train()


def test_settings_of_the_data_are_heard(entry, data_dir, caplog):
    caplog.set_level("INFO", "plsc")
    plain = entry.train()["loss"]
    with open(data_dir / "label.txt", "a") as file:
        file.write("images/00000000.png 6\n")
    entry.set_min_images_per_class(2)
    entry.set_augment(crop=0.1, rotate=5, color_jitter=0.2, rand_augment=1, gray=0.1, blur=0.1, erase=0.2)
    entry.set_class_balanced(True)
    entry.set_pixel_normalization(mean=(120, 110, 100), std=60)
    entry.set_num_workers(2)
    entry.set_model_save_dir(data_dir / "output")
    changed = entry.train()["loss"]
    assert np.isfinite(changed)
    assert changed != plain
    assert "left out 1 of 7 classes with fewer than 2 images" in caplog.text
    assert entry.pixel_std == (60.0, 60.0, 60.0)


def test_an_exported_model_normalizes_as_the_training_did(entry, data_dir, tmp_path):
    entry.set_pixel_normalization(mean=(120, 110, 100), std=(60, 70, 80))
    entry.train()
    entry.set_checkpoint_dir(tmp_path / "output")
    images = sorted((data_dir / "images").iterdir())[:3]
    expected = np.asarray(entry.predict(images))
    folder = entry.convert_for_prediction()
    found = plsc.load_inference_model(folder).embed(images)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(found, expected, atol=1e-4)
    pixels = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in images]
    assert np.allclose(plsc.load_inference_model(folder).embed(pixels), found, atol=1e-6)


def within_an_epoch(entry, data_dir):
    entry.set_with_test(False)
    entry.set_train_steps(2)
    entry.train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_steps(4)
    return data_dir / "label.txt"


def test_an_epoch_goes_on_without_a_word_where_nothing_was_changed(entry, data_dir, caplog):
    within_an_epoch(entry, data_dir)
    entry.train()
    assert "was begun otherwise" not in caplog.text


def test_an_epoch_that_goes_on_with_other_images_or_settings_is_told_of(entry, data_dir, tmp_path, caplog):
    listed = within_an_epoch(entry, data_dir)
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[:25]))
    entry.set_seed(5)
    entry.set_train_batch_size(8)
    entry.train()
    assert (
        "epoch 0 was begun otherwise (images 30 -> 25; seed 0 -> 5; global batch 8, which does not divide the 20 "
        "images done)"
    ) in caplog.text


def test_an_epoch_of_which_nothing_is_left_is_over(entry, data_dir, tmp_path, caplog):
    listed = within_an_epoch(entry, data_dir)
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[:12]))
    entry.train()
    assert "images 30 -> 12" in caplog.text
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["0.2", "1"]


def test_a_reader_goes_on_whatever_its_batches_are(entry, tmp_path, caplog):
    def reader():
        for start in range(0, 30, 5):
            yield [(np.full((3, 16, 16), n / 30, np.float32), n % 6) for n in range(start, start + 5)]

    entry.train_reader = reader
    entry.set_train_image_num(30)
    entry.set_with_test(False)
    entry.set_train_steps(4)
    entry.train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_seed(3)
    entry.set_train_steps(6)
    entry.train()
    assert "was begun otherwise" not in caplog.text
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["0.4", "0.6"]


def test_a_reader_that_cannot_be_called_is_named(entry):
    entry.train_reader = [1]
    with pytest.raises(ConfigError, match=r"train_reader: got \[1\] \(list\), expected a function"):
        entry.train()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"crop": 1.0}, "augment_crop: got 1.0"),
        ({"rand_augment": -1}, "augment_rand_augment: got -1"),
        ({"gray": "some"}, "augment_gray: got 'some'"),
    ],
)
def test_wrong_augmentations_are_told_at_the_setter(arguments, message):
    with pytest.raises(ConfigError, match=message):
        plsc.Entry().set_augment(**arguments)


@pytest.mark.parametrize(
    "mean, std, message", [(1, 0, "pixel_std: .*above 0"), ((1, 2), 1, "pixel_mean"), ("a", 1, "pixel_mean")]
)
def test_wrong_normalizations_are_told_at_the_setter(mean, std, message):
    with pytest.raises(ConfigError, match=message):
        plsc.Entry().set_pixel_normalization(mean, std)


def test_the_old_base64_reader_yields_every_image_normalized(data_dir, tmp_path):
    from plsc.data.transforms import decode, normalize, resize
    from plsc.utils import base64_reader

    source = open_records(data_dir)
    convert(source, tmp_path / "text", to="base64", parts=3)
    reader = base64_reader.train(str(tmp_path / "text"), "file_list.txt", 6)
    samples = list(reader())
    assert sorted(label for _, label in samples) == sorted(source.labels.tolist())
    wanted = [normalize(resize(decode(source[n].image), 112, 112).transpose(2, 0, 1)) for n in range(len(source))]
    for image, label in samples[:5]:
        assert (image.shape, image.dtype) == ((3, 112, 112), np.float32)
        assert any(
            label == source.labels[n]
            and (np.array_equal(image, wanted[n]) or np.array_equal(image[..., ::-1], wanted[n]))
            for n in range(30)
        )
    made = base64_reader.test(str(data_dir), "lfw")()
    assert [each.name for each in made] == ["lfw"]
