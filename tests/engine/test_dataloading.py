"""Every kind of source trains with every setting of the data; data that is wrong is named."""

from __future__ import annotations

import logging
import os
import pickle

import cv2
import numpy as np
import pytest

import plsc
from plsc import ConfigError, DataError, TrainingError, VerificationSet
from plsc.checkpoint import Checkpoint
from plsc.data.convert.conversion import convert
from plsc.data.sources import open_records
from plsc.distributed.collectives import Collectives
from plsc.engine.about import About
from plsc.engine.dataloading import open_verification_sets
from plsc.engine.trainer import Trainer
from tests._support.images import CLASSES, damaged_jpeg, make_images
from tests._support.ranks import launch
from tests._support.scripts import INTRODUCTION, SMALL


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


@pytest.mark.parametrize(
    "num_classes, message",
    [
        (None, "num_classes is 1: the softmax over one class has a loss of 0 and no gradient"),
        (3, "all training images are of one class: the network learns to tell no two images apart"),
    ],
)
def test_images_of_one_class_are_warned_of_once(entry, data_dir, caplog, num_classes, message):
    lines = (data_dir / "label.txt").read_text().splitlines()
    (data_dir / "label.txt").write_text("".join(f"{line.split()[0]} 0\n" for line in lines))
    given = {"num_classes": num_classes} if num_classes else {}
    kept = ("dataset_dir", "image_shape", "model_name", "emb_dim", "train_batch_size", "num_workers", "model_save_dir")
    settings = {name: getattr(entry.config, name) for name in kept}
    config = plsc.Config(**settings, **given, train_epochs=None, train_steps=1, with_test=False)
    with caplog.at_level(logging.WARNING):
        results = plsc.Trainer(config).train()
    assert caplog.text.count(message) == 1
    assert (results["loss"] == 0.0) == (num_classes is None)


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
        (
            lambda n: np.zeros((16, 16, 2), np.uint8),
            r"item \d+ of Twelve: got an array \[16, 16, 2\] of uint8, expected",
        ),
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


def test_settings_of_the_data_change_training(entry, data_dir, caplog):
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
def test_wrong_augmentations_are_named_at_the_setter(arguments, message):
    with pytest.raises(ConfigError, match=message):
        plsc.Entry().set_augment(**arguments)


@pytest.mark.parametrize(
    "mean, std, message", [(1, 0, "pixel_std: .*above 0"), ((1, 2), 1, "pixel_mean"), ("a", 1, "pixel_mean")]
)
def test_wrong_normalizations_are_named_at_the_setter(mean, std, message):
    with pytest.raises(ConfigError, match=message):
        plsc.Entry().set_pixel_normalization(mean, std)


def test_class_folders_are_read(entry, tmp_path, data_dir):
    root = tmp_path / "folders"
    for line in (data_dir / "label.txt").read_text().splitlines():
        name, label = line.split()
        (root / f"person {label}").mkdir(parents=True, exist_ok=True)
        (data_dir / name).rename(root / f"person {label}" / name.split("/")[1])
    entry.set_dataset_dir(root)
    entry.set_with_test(False)
    entry.set_calc_acc(True)
    assert {"acc1", "acc5"} <= entry.train().keys()


def test_missing_data_folder(entry):
    entry.set_dataset_dir("/no/such/folder")
    with pytest.raises(DataError, match="'/no/such/folder' does not exist; expected .*label.txt.*docs/data.md"):
        entry.train()


def test_label_out_of_range_names_file_and_line(entry, data_dir):
    with open(data_dir / "label.txt", "a") as file:
        file.write("images/00000000.png 40\n")
    with pytest.raises(DataError, match=r"label\.txt, line 31.*label 40 is out of range, expected 0 to 5"):
        entry.train()


def number_from_one(data_dir):
    lines = [line.split() for line in (data_dir / "label.txt").read_text().splitlines()]
    (data_dir / "label.txt").write_text("".join(f"{name} {int(label) + 1}\n" for name, label in lines))


def test_labels_that_begin_at_one_get_that_hint(entry, data_dir, caplog):
    number_from_one(data_dir)
    with pytest.raises(
        DataError,
        match=r"label\.txt, line 6.*: label 6 is out of range, expected 0 to 5; the labels begin at 1: subtract 1 from "
        r"each, so that they run from 0 to 5; or set_class_num\(7\)",
    ):
        entry.train()
    entry.set_class_num(7)
    entry.train()
    assert "the labels begin at 1, expected 0: no image for 1 class center; subtract 1 from each label" in caplog.text


def test_a_label_equal_to_the_number_of_classes_gets_that_hint_where_labels_are_read_late(entry):
    hint = "if your labels begin at 1, subtract 1 from each"
    entry.set_with_test(False)
    entry.train_dataset = [(np.zeros((16, 16, 3), np.uint8), 1 + n % 6) for n in range(12)]
    with pytest.raises(DataError, match=rf"item \d+ of list: label 6 is out of range, expected 0 to 5; {hint}"):
        entry.train()
    entry.train_reader = lambda: iter([[(np.zeros((3, 16, 16), np.float32), 6)]])
    with pytest.raises(DataError, match=rf"labels run from 6 to 6, expected 0 to 5; {hint}"):
        entry.train()
    entry.train_reader = lambda: iter([[(np.zeros((3, 16, 16), np.float32), 7)]])
    with pytest.raises(DataError, match="expected 0 to 5; see set_class_num"):
        entry.train()


def unset(entry):
    """The entry without a number of classes."""
    entry.config.model_fields_set.discard("num_classes")
    entry.config.__dict__["num_classes"] = 85742
    entry.set_with_test(False)
    return entry


def trained_classes(entry):
    entry.train()
    saved = Checkpoint(entry.model_save_dir)
    return saved.shape("head.weight")[0], saved.about["settings"]["num_classes"]


class Sixths:
    """A data set of a user's own, which may say its number of classes."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return pixels(index), index % 6


@pytest.mark.parametrize("to", [None, "rec", "folders"])
def test_without_a_number_of_classes_it_is_that_of_the_data(entry, data_dir, tmp_path, caplog, to):
    caplog.set_level("INFO", "plsc")
    if to:
        convert(open_records(data_dir), tmp_path / "other", to=to)
        entry.set_dataset_dir(tmp_path / "other")
    assert trained_classes(unset(entry)) == (6, 6)
    assert caplog.text.count("num_classes is not set: 6, as in the training data") == 1
    entry.set_checkpoint_dir(entry.model_save_dir)
    assert entry.predict([data_dir / "images" / "00000000.png"]).shape == (1, 16)


@pytest.mark.parametrize(
    "attribute", [{"num_classes": 6}, {"classes": list("abcdef")}, {"class_names": list("abcdef")}]
)
def test_a_data_set_of_a_users_own_says_its_number_of_classes_by_an_attribute(entry, attribute):
    entry.train_dataset = type("Named", (Sixths,), attribute)()
    assert trained_classes(unset(entry)) == (6, 6)


def test_data_that_does_not_say_its_number_of_classes_is_trained_with_the_default_and_a_word(entry, caplog):
    entry.train_dataset = Sixths()
    assert Trainer(unset(entry).config).config.num_classes == 85742
    entry.train_reader = lambda: iter([])
    assert Trainer(entry.config).config.num_classes == 85742
    assert (
        caplog.text.count(
            "does not say how many classes it has: training 85742, the default; give the number with set_class_num"
        )
        == 2
    )


def test_a_resumed_run_without_a_number_of_classes_takes_that_of_the_checkpoint(entry, caplog):
    """As a run of PLSC 1.0 that was trained with its default."""
    entry.set_class_num(20)
    entry.train()
    assert caplog.text.count("num_classes is 20, the training data has 6 classes: no image for 14 class centers") == 1
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(2)
    assert trained_classes(unset(entry)) == (20, 20)
    entry.train_reader = lambda: iter([[(np.zeros((3, 16, 16), np.float32), 20)]])
    entry.set_train_epochs(3)
    with pytest.raises(DataError, match="labels run from 20 to 20, expected 0 to 19"):
        entry.train()


def test_labels_that_are_no_numbers_of_classes_are_told_before_memory_is_taken(entry, data_dir):
    with open(data_dir / "label.txt", "a") as file:
        file.write("images/00000000.png 123456789\n")
    with pytest.raises(
        DataError,
        match=r"line 31.*: label 123456789 of 31 images means 123456790 classes.*set_min_images_per_class\(1\)",
    ):
        unset(entry).train()
    entry.set_min_images_per_class(1)
    assert trained_classes(entry) == (7, 7)


def test_a_batch_larger_than_the_data_is_said_with_its_learning_rate(entry, caplog):
    entry.set_train_batch_size(64)
    entry.train()
    assert (
        "the global batch of 64 images is larger than the training data of 30 images: a step takes images several "
        "times, and the peak of the learning rate, lr * global batch / 1024, is 0.00625; set_train_batch_size(30) or "
    ) in caplog.text
    caplog.clear()
    entry.set_train_batch_size(30)
    entry.set_model_save_dir(f"{entry.model_save_dir}2")
    entry.train()
    assert "larger than" not in caplog.text


@pytest.mark.parametrize("line", ["images/a.jpg", "images/a.jpg x", "images/a.jpg -1", "7"])
def test_malformed_line_names_file_and_line(entry, data_dir, line):
    lines = (data_dir / "label.txt").read_text().splitlines()
    lines.insert(2, line)
    (data_dir / "label.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"label\.txt, line 3: .*expected"):
        entry.train()


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_stops_by_default(entry, data_dir, workers):
    (data_dir / "images/00000007.png").write_bytes(b"not an image")
    entry.set_num_workers(workers)
    with pytest.raises(DataError, match=r"00000007\.png.*line 8.*no image known to OpenCV.*set_bad_images\('skip'\)"):
        entry.train()


def test_unreadable_image_is_skipped_and_counted_when_asked(entry, data_dir, caplog):
    (data_dir / "images/00000007.png").write_bytes(b"not an image")
    (data_dir / "images/00000009.png").unlink()
    entry.set_bad_images("skip")
    entry.train()
    assert "skipped an unreadable image: images/00000007.png" in caplog.text
    assert "skipped an unreadable image: images/00000009.png" in caplog.text
    assert "2 unreadable images skipped so far" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_warned_of_with_their_place_and_counted_and_nothing_else_is_printed(
    entry, data_dir, caplog, capfd, workers
):
    for number in (7, 9):
        (data_dir / f"images/0000000{number}.png").write_bytes(damaged_jpeg(seed=number))
    entry.set_num_workers(workers)
    entry.set_train_epochs(2)
    entry.train()
    warnings = [line for line in caplog.messages if "pixels may be wrong" in line]
    assert len(warnings) == 3 and warnings[2].startswith("2 damaged images so far")
    for line, place in zip(sorted(warnings[:2]), ("images/00000007.png", "images/00000009.png"), strict=True):
        assert place in line and "label.txt, line" in line and "Corrupt JPEG data" in line
    assert [line for line in capfd.readouterr().err.splitlines() if line.startswith("Corrupt JPEG")] == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_unreadable_where_images_are_strict(entry, data_dir, caplog, workers):
    (data_dir / "images/00000007.png").write_bytes(damaged_jpeg())
    entry.set_num_workers(workers)
    entry.set_strict_images(True)
    with pytest.raises(DataError, match=r"00000007\.png.*line 8.*damaged.*Corrupt JPEG data.*set_bad_images\('skip'\)"):
        entry.train()
    entry.set_bad_images("skip")
    entry.train()
    assert "1 unreadable image skipped so far" in caplog.text


def test_damaged_images_of_a_verification_set_are_warned_of_once(entry, data_dir, caplog):
    pairs = VerificationSet.load(data_dir / "lfw.bin")
    images = [*pairs.images[:3], damaged_jpeg(), *pairs.images[4:]]
    VerificationSet("lfw", images, is_same=pairs.is_same).save(data_dir / "lfw.bin", overwrite=True)
    entry.set_train_epochs(2)
    entry.train()
    warnings = [line for line in caplog.messages if "pixels may be wrong" in line]
    assert len(warnings) == 1 and f"{data_dir / 'lfw.bin'}, image 3: damaged" in warnings[0]


def test_missing_verification_set_is_named(entry, data_dir):
    entry.set_val_targets("lfw,cfp_fp")
    with pytest.raises(DataError, match=r"'cfp_fp' of val_targets: .*cfp_fp\.bin does not exist"):
        entry.train()


def test_a_verification_set_is_named_by_its_file_too(entry, data_dir):
    for targets in ("lfw", "lfw.bin", f"{data_dir}/lfw.bin", " lfw ,"):
        entry.set_val_targets(targets)
        assert [pairs.name for pairs in open_verification_sets(entry.config, Collectives())] == ["lfw"]
    entry.set_val_targets("Lfw")
    with pytest.raises(DataError, match=r"Lfw\.bin does not exist; .*data holds lfw\.bin; name others with set_val"):
        open_verification_sets(entry.config, Collectives())


def test_sets_of_one_name_would_hide_each_other(entry, data_dir):
    entry.set_val_targets("lfw,lfw.bin")
    with pytest.raises(ConfigError, match="2 verification sets are named 'lfw', expected a name of its own for each"):
        open_verification_sets(entry.config, Collectives())
    entry.test_dataset = [VerificationSet.load(data_dir / "lfw.bin")] * 2
    with pytest.raises(ConfigError, match="2 verification sets are named 'lfw'"):
        open_verification_sets(entry.config, Collectives())


@pytest.mark.parametrize("value", [None, 5, "lfw.bin", [b"lfw"]])
def test_what_is_no_verification_set_is_named(entry, value):
    entry.test_reader = lambda: value
    with pytest.raises(ConfigError, match="test_reader: got (NoneType|int|str|bytes), expected .*VerificationSet"):
        open_verification_sets(entry.config, Collectives())


def test_what_the_pairs_of_a_set_do_not_give_is_said_when_it_is_opened(entry, data_dir, caplog):
    whole = VerificationSet.load(data_dir / "lfw.bin")
    open_verification_sets(entry.config, Collectives())
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "verification set lfw: 20 pairs, 10 of them same, in 10 contiguous folds; TAR at FAR 0.1" in caplog.text
    entry.test_reader = lambda: VerificationSet("own", whole.images, is_same=[True] * 20)
    open_verification_sets(entry.config, Collectives())
    assert caplog.records[-1].levelname == "WARNING"
    assert "verification set own: no accuracy: found 20 same and 0 different pairs" in caplog.text


def test_the_default_verification_set_may_be_missing_but_not_silently(entry, data_dir, caplog):
    (data_dir / "lfw.bin").unlink()
    entry.train()
    assert "no verification" in caplog.text and "lfw.bin" in caplog.text


def test_a_pickle_that_imports_os_system_is_refused_and_runs_nothing(entry, data_dir, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (data_dir / "lfw.bin").write_bytes(pickle.dumps(([Evil(), Evil()], [True])))
    with pytest.raises(DataError, match=r"lfw\.bin.*system"):
        entry.train()
    assert not (tmp_path / "ran").exists()


def test_readers_of_the_wrong_form(entry):
    images, labels = make_images()
    entry.train_reader = lambda: iter(zip(images, labels))
    with pytest.raises(DataError, match=r"train_reader, batch 0: expected a list of .*paddle\.batch"):
        entry.train()
    entry.train_reader = lambda: iter(())
    with pytest.raises(TrainingError, match="yielded no batch"):
        entry.train()
    entry.train_reader = lambda: iter([[(np.zeros((3, 16, 16), np.float32), 6)]])
    with pytest.raises(DataError, match="labels run from 6 to 6, expected 0 to 5"):
        entry.train()


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("lag", [0, 4])
def test_readers_of_unequal_length_end_together_and_say_so(data_dir, tmp_path, lag):
    """Also where ranks agree on a batch some steps before it is used, as on GPUs."""
    script = tmp_path / "train.py"
    script.write_text(
        INTRODUCTION.format(
            classes=CLASSES,
            extra=f"""{SMALL.format(batch=5)}
    import os, numpy as np
    from plsc.engine import transfer
    transfer.LAGS["cpu"] = {lag}
    ins.set_with_test(False); ins.set_model_save_dir("{tmp_path}/output"); ins.set_train_epochs(2)
    image, count = np.zeros((3, 16, 16), np.float32), 3 + int(os.environ["PADDLE_TRAINER_ID"])
    ins.train_reader = lambda: iter([[(image, 0)] * 5] * count)""",
        )
    )
    _, output = launch(2, script, log_dir=tmp_path / "log")
    assert "train_reader of rank 1 had at least 5 images more than another rank's" in output
    assert About.of(Checkpoint(tmp_path / "output" / "1")).step == 6
