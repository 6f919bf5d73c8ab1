"""Checkpoints with K sub-centers a class made to one center a class, against a plain loop over the images."""

from __future__ import annotations

import csv
import json
import shutil
import sys

import numpy as np
import paddle
import pytest

from plsc import CheckpointError, ConfigError, DataError
from plsc.checkpoint import Checkpoint
from plsc.checkpoint.tools import reshard
from plsc.cli.main import main
from plsc.engine import class_features, subcenters
from plsc.engine.class_features import class_blocks
from plsc.engine.subcenters import dominant_centers
from plsc.engine.trainer import Trainer
from tests._support.ranks import launch
from tests._support.workers.classes_worker import make_entry

NAMES = ["a", "b, the second", "c", "d", "e"]
PER_CLASS = 9
TRAINING = {"names": NAMES, "per_class": PER_CLASS, "train_epochs": 6, "train_batch_size": 9, "class_num": 7}


def noisy_entry(**settings):
    """An entry whose data has images under wrong names: of each class the last two are the next class's first."""
    settings = {key: value for key, value in {**TRAINING, **settings}.items() if value is not None}
    classes = settings.pop("class_num", None)
    entry = make_entry(settings)
    if classes:
        entry.set_class_num(classes)
    images, count = entry.config.train_dataset.images, len(settings["names"])
    clean = list(images)
    for label in range(count):
        for place in (PER_CLASS - 2, PER_CLASS - 1):
            images[place * count + label] = clean[(place - PER_CLASS + 2) * count + (label + 1) % count]
    return entry


def edit(source, target, *, angle=75.0, csv=None, **settings):
    """Drop sub-centers as a script does; returns what was done."""
    entry = noisy_entry(**{"class_num": None, "checkpoint_dir": str(source), **settings})
    return entry.drop_subcenters(target, angle=angle, csv=csv)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A checkpoint with K = 3, as three ranks would have written it; by whether images are mirrored."""
    made = {}

    def get(flip=True):
        if flip not in made:
            folder = tmp_path_factory.mktemp("source")
            noisy_entry(model_save_dir=str(folder / "output"), subcenters=3, flip=flip).train()
            made[flip] = reshard(folder / "output", folder / "three", ranks=3)
        return made[flip]

    return get


def oracle(source, *, flip, limit):
    """(the dominant center of each class, rows of images above the limit), image by image in float64."""
    saved, entry = Checkpoint(source), noisy_entry()
    model, data = entry.config.model, entry.config.train_dataset
    model.set_state_dict(
        {name[len("backbone.") :]: paddle.to_tensor(saved.read(name)) for name in saved.names("backbone.")}
    )
    model.eval()
    weight = saved.read("head.weight").astype(np.float64)
    dominant, rows = [], []
    for label in range(len(weight)):
        cosines = {}
        for index in np.flatnonzero(data.labels == label).tolist():
            pixels = (data.images[index].transpose(2, 0, 1).astype(np.float32) - 127.5) / 128.0
            feature = model(paddle.to_tensor(pixels[None])).numpy()[0].astype(np.float64)
            if flip:
                feature += model(paddle.to_tensor(pixels[None, :, :, ::-1].copy())).numpy()[0]
            cosines[index] = [
                float(center @ feature / np.linalg.norm(center) / np.linalg.norm(feature)) for center in weight[label]
            ]
        votes, sums = [0, 0, 0], [0.0, 0.0, 0.0]
        for found in cosines.values():
            votes[found.index(max(found))] += 1
            sums = [total + value for total, value in zip(sums, found)]
        best = max(range(3), key=lambda number: (votes[number], sums[number], -number))
        dominant.append(best)
        for index, found in cosines.items():
            angle = np.degrees(np.arccos(found[best]))
            if angle > limit:
                name = NAMES[label]
                rows.append((f"item {index} of Named", name, angle, str(found.index(max(found))), str(best)))
    return dominant, rows


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "class", "angle", "nearest_subcenter", "dominant_subcenter"]
    return rows


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("blocks", ["whole", "small"])
def test_dominant_centers_and_far_images_are_those_of_a_plain_loop(flip, blocks, sources, tmp_path, monkeypatch):
    if blocks == "small":  # two classes, or as few as hold ten images; seven images at a time
        monkeypatch.setattr(subcenters, "_BLOCK_NUMBERS", 2 * 3 * 16)
        monkeypatch.setattr(subcenters, "_BLOCK_IMAGES", 10)
        monkeypatch.setattr(class_features, "_CHUNK_IMAGES", 7)
    source, limit = sources(flip), 40.0
    dominant, rows = oracle(source, flip=flip, limit=limit)
    assert len(set(dominant)) > 1 and dominant[5:] == [0, 0] and 0 < len(rows) < 45, "the case tells something"
    found = edit(source, tmp_path / "one", angle=limit, csv=tmp_path / "far.csv")
    assert (found.classes, found.without_images, found.images, found.skipped) == (7, 2, 45, 0)
    assert (found.above, found.dropped, found.angle) == (len(rows), 14, limit)
    listed = read_rows(tmp_path / "far.csv")
    assert [[*row[:2], *row[3:]] for row in listed] == [[*row[:2], *row[3:]] for row in rows]
    np.testing.assert_allclose([float(row[2]) for row in listed], [row[2] for row in rows], atol=2e-3)
    before, after = Checkpoint(source), Checkpoint(tmp_path / "one")
    after.verify()
    grouped = [name for name in before.names() if before.shape(name)[:2] == [7, 3]]
    assert grouped == ["head.weight", "head.weight:velocity"]
    for name in before.names():
        old = before.read(name)
        expected = old[np.arange(7), dominant] if name in grouped else old
        np.testing.assert_array_equal(after.read(name), expected, err_msg=name)
    assert after.names() == before.names() and len(after.parts("head.weight")) == 3
    settings = before.about["settings"]
    assert after.about == {**before.about, "settings": {**settings, "subcenters": 1}} and settings["subcenters"] == 3


@pytest.mark.parametrize(
    "settings", [{"momentum_storage": "bfloat16"}, {"optimizer": "adamw"}, {"loss_type": "arcface"}]
)
def test_optimizer_state_stays_with_its_center(settings, tmp_path):
    noisy_entry(model_save_dir=str(tmp_path / "in"), subcenters=3, train_epochs=1, **settings).train()
    dominant, _ = oracle(tmp_path / "in", flip=True, limit=75)
    edit(tmp_path / "in", tmp_path / "one")
    before, after = Checkpoint(tmp_path / "in"), Checkpoint(tmp_path / "one")
    grouped = before.names("head.weight")
    assert len(grouped) == (3 if "optimizer" in settings else 2)
    for name in grouped:
        assert after.dtype(name) == before.dtype(name)
        np.testing.assert_array_equal(after.read(name), before.read(name)[np.arange(7), dominant])
    entry = noisy_entry(checkpoint_dir=str(tmp_path / "one"), model_save_dir=str(tmp_path / "on"), **settings)
    state = Trainer(entry.config).head.state()
    for name in grouped:
        assert state[name[len("head.") :]].shape == after.shape(name)


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_with_one_center_a_class_goes_on_from_it(ranks, sources, tmp_path):
    edit(sources(), tmp_path / "one")
    saved = Checkpoint(tmp_path / "one")
    settings = {"checkpoint_dir": str(tmp_path / "one"), "model_save_dir": str(tmp_path / "on"), "num_classes": 7}
    settings = {**TRAINING, **settings, "train_epochs": 7, "train": True}
    del settings["class_num"]
    launch(ranks, "classes_worker.py", json.dumps(settings), tmp_path, log_dir=tmp_path / "log")
    held = [np.load(tmp_path / f"{rank}.npz") for rank in range(ranks)]
    for name in ("weight", "weight:velocity"):
        found = np.concatenate([part[f"head/{name}"] for part in held])
        np.testing.assert_array_equal(found, saved.read(f"head.{name}"))
        assert np.abs(found).max() > 0
    assert held[0]["counters"].tolist() == [6, saved.about["step"], 0]
    trained = Checkpoint(tmp_path / "on")
    assert trained.about["epoch"] == 7 and trained.shape("head.weight") == [7, 16]
    assert np.isfinite(trained.read("head.weight")).all()
    assert not np.array_equal(trained.read("head.weight"), saved.read("head.weight"))


@pytest.mark.parametrize(
    "cosines, expected",
    [
        ([[0.25, 0.5], [0.25, 0.5], [1.0, 0.0]], 1),  # two of three images, against the greater sum
        ([[0.75, 0.25], [0.25, 0.75]], 0),  # one image each, equal sums
        ([[0.75, 0.25], [0.25, 0.875]], 1),  # one image each, sums of 1 and 1.125
        ([[0.5, 0.25, 0.75], [0.5, 0.75, 0.25]], 1),  # three equal sums, and no image for the first
        ([[0.5, 0.5]], 0),  # an image between two
        ([[-0.5, -0.25]], 1),
        (np.zeros([0, 3]), 0),
    ],
)
def test_ties_go_to_the_greater_sum_and_then_to_the_lower_number(cosines, expected):
    cosines = np.array(cosines)
    assert dominant_centers(cosines, np.zeros(len(cosines), np.int64), 1).tolist() == [expected]
    assert dominant_centers(cosines, np.full(len(cosines), 1), 3).tolist() == [0, expected, 0]


def test_blocks_hold_whole_classes_within_both_bounds():
    labels = np.array([3, 0, 0, 7, 3, 3, 1, 7])
    blocks = list(class_blocks(labels, np.array([0, 3, 4, 7, 9]), most_classes=3, most_images=3))
    assert [block.classes.tolist() for block in blocks] == [[0], [3, 4], [7, 9]]
    assert [block.images.tolist() for block in blocks] == [[1, 2], [0, 4, 5], [3, 7]]
    assert [block.places.tolist() for block in blocks] == [[0, 0], [0, 0, 0], [0, 0]]
    blocks = class_blocks(labels, np.array([3, 7]), most_classes=9, most_images=1)
    assert [len(block.images) for block in blocks] == [3, 2]
    assert len(list(class_blocks(labels, np.arange(10), most_classes=10))) == 1
    assert not list(class_blocks(labels, np.zeros([0], np.int64), most_classes=10))


@pytest.mark.parametrize(
    "settings, error, words",
    [
        ({"angle": 181.0}, ConfigError, "angle: got 181, expected degrees from 0 to 180"),
        ({"angle": float("nan")}, ConfigError, "angle: got nan"),
        ({"csv": "there.csv"}, ConfigError, "there.csv exists and is not overwritten"),
        ({"csv": "none/far.csv"}, ConfigError, "there is no folder .*none; make it first"),
        (
            {"names": NAMES[::-1]},
            CheckpointError,
            "other classes than the checkpoint.*class 0 was 'a' and is 'e' now.*"
            r"set_dataset_dir.*plsc checkpoint classes.*set_class_change\('by_name'\)",
        ),
        ({"names": NAMES[:4]}, CheckpointError, "it has 4 class names, the checkpoint 5"),
        ({"names": [*NAMES, "f"]}, CheckpointError, "it has 6 class names, the checkpoint 5"),
        ({"train_reader": lambda: iter(())}, ConfigError, "train_reader gives batches in an order of its own"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_written(settings, error, words, sources, tmp_path):
    (tmp_path / "there.csv").write_text("mine")
    settings = dict(settings)
    file = tmp_path / settings.pop("csv", "far.csv")
    with pytest.raises(error, match=words):
        edit(sources(), tmp_path / "one", csv=file, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["there.csv"]
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_data_with_a_class_beyond_is_refused_where_classes_cannot_be_compared(sources, tmp_path, caplog):
    entry = noisy_entry(checkpoint_dir=str(sources()), class_num=None)
    entry.config.train_dataset.class_names = entry.config.train_dataset.num_classes = None
    entry.config.train_dataset.labels[7] = 7
    with pytest.raises(CheckpointError, match="it has a class 7, the checkpoint 7 classes"):
        entry.drop_subcenters(tmp_path / "one")


def test_one_center_a_class_and_an_existing_folder_are_refused(sources, tmp_path):
    edit(sources(), tmp_path / "one")
    with pytest.raises(CheckpointError, match=r"one center per class already, .*set_subcenters\(3\)"):
        edit(tmp_path / "one", tmp_path / "two")
    with pytest.raises(CheckpointError, match="one exists and is never overwritten"):
        edit(sources(), tmp_path / "one")
    assert not (tmp_path / "two").exists()


def test_an_image_that_cannot_be_read_is_named_or_skipped(sources, tmp_path, caplog):
    def broken(**settings):
        entry = noisy_entry(checkpoint_dir=str(sources()), class_num=None, **settings)
        entry.config.train_dataset.images[3] = b"no image"
        return entry

    with pytest.raises(DataError, match="item 3 of Named: "):
        broken().drop_subcenters(tmp_path / "one", csv=tmp_path / "far.csv")
    assert not list(tmp_path.iterdir()), "neither the checkpoint nor the list, nor a part of them"
    found = broken(bad_images="skip").drop_subcenters(tmp_path / "one", angle=0.0, csv=tmp_path / "far.csv")
    assert (found.images, found.skipped, found.above) == (44, 1, 44)
    assert "item 3 of Named" not in {row[0] for row in read_rows(tmp_path / "far.csv")}
    assert "skipped an unreadable image: item 3 of Named" in caplog.text


def test_the_command_reads_class_folders_and_ends_with_a_table(tmp_path, data_dir, entry, monkeypatch, capfd):
    images = [line.split() for line in (data_dir / "label.txt").read_text().splitlines()]
    for image, label in images:
        folder = tmp_path / "faces" / f"n{label}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(data_dir / image, folder)
    entry.set_dataset_dir(tmp_path / "faces")
    entry.set_model_save_dir(tmp_path / "output")
    entry.set_with_test(False)
    entry.set_subcenters(2)
    entry.train()

    def run(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["plsc", "checkpoint", "subcenters", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert (end.value.code or 0) == status, out + err
        return out if status == 0 else err

    source, count = tmp_path / "output", len(images)
    classes = len({label for _, label in images})
    # The data is found where the training had it.
    lines = run(source, "--to", tmp_path / "one", "--angle", 0, "--csv", tmp_path / "far.csv").splitlines()[-5:]
    assert lines[0] == f"wrote {tmp_path / 'one'}"
    assert [line.split() for line in lines[1:]] == [
        ["classes", str(classes)],
        ["images", str(count)],
        ["images", "above", "0", "degrees", str(count), "listed", "in", str(tmp_path / "far.csv")],
        ["sub-centers", "dropped", str(classes)],
    ]
    rows = read_rows(tmp_path / "far.csv")
    assert {row[0] for row in rows} == {str(path) for path in (tmp_path / "faces").glob("*/*")}
    assert all(row[0].split("/")[-2] == row[1] for row in rows)
    (tmp_path / "faces").rename(tmp_path / "moved")
    found = json.loads(run(source, "--to", tmp_path / "two", "--data", tmp_path / "moved", "--json"))
    assert (found["classes"], found["images"], found["csv"], found["angle"]) == (classes, count, None, 75.0)
    assert "faces" in run(source, "--to", tmp_path / "three", status=1)
    message = run(source, "--to", tmp_path / "three", "--data", "x", "--dataset-dir", "y", status=1)
    assert "--data and --dataset-dir" in message
    message = run(tmp_path / "one", "--to", tmp_path / "three", status=1)
    assert "one center per class already" in message and "--subcenters 3 of plsc train" in message
    (tmp_path / "moved" / "n0").rename(tmp_path / "moved" / "zero")
    message = run(source, "--to", tmp_path / "three", "--data", tmp_path / "moved", status=1)
    assert "other classes than the checkpoint" in message and "--dataset-dir" in message
