"""Validation on images of the classes of training: in training, in `test`, on several ranks; mistakes in the data."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import threading

import cv2
import numpy as np
import paddle
import pytest

import plsc
from plsc import ConfigError, DataError
from plsc.checkpoint import Checkpoint
from plsc.data.class_names import ClassNames
from plsc.data.sources.string_table import StringTable
from plsc.engine.about import About, read_metrics
from plsc.engine.closed_set import open_closed_set, write_tables
from plsc.engine.evaluator import evaluate
from plsc.engine.trainer import Trainer
from plsc.losses.classifier import Classifier
from plsc.metrics.closed_set import ClosedSetReport
from tests._support.closed_sets import slow_ranking
from tests._support.images import CLASSES, make_images
from tests._support.ranks import ThreadRanks, launch

NAMES = ["ant", "bee", "cow", "dog", "eel", "fox"]
PER_CLASS = 6


def write_folders(root, *, first=0, count=PER_CLASS, names=NAMES):
    """Class folders of images `first` to `first + count` of each class."""
    images, labels = make_images(per_class=PER_CLASS + 4)
    for number, (image, label) in enumerate(zip(images, labels)):
        if first <= number // CLASSES < first + count:
            folder = root / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{number:04d}.png"), image[..., ::-1])
    return root


@pytest.fixture
def folders(tmp_path):
    """(training data, validation data whose classes have other numbers: one is missing)."""
    training = write_folders(tmp_path / "training")
    validation = write_folders(tmp_path / "validation", first=PER_CLASS, count=4)
    shutil.rmtree(validation / "ant")
    return training, validation


@pytest.fixture
def made(folders, tmp_path):
    """An entry that trains on the folders."""
    entry = plsc.Entry()
    entry.set_dataset_dir(folders[0])
    entry.set_image_shape((3, 16, 16))
    entry.set_model_name("ResNetTiny")
    entry.set_emb_size(16)
    entry.set_train_batch_size(9)
    entry.set_train_epochs(1)
    entry.set_num_workers(0)
    entry.set_scale(16)
    entry.set_model_save_dir(tmp_path / "output")
    return entry


def slow_metrics(entry, folder):
    """top-1 and top-5 by loops, from the checkpoint's own centers and the embeddings of `predict`."""
    saved = Checkpoint(entry.model_save_dir)
    weight = saved.read("head.weight")
    bias = saved.read("head.bias") if saved.names("head.bias") else None
    files = sorted(folder.rglob("*.png"))
    embeddings = raw_features(entry, files) if bias is not None else entry.predict(files)
    ranked = slow_ranking(embeddings, weight, bias, is_cosine=bias is None, count=5)
    labels = [NAMES.index(file.parent.name) for file in files]
    tops = [[label in row[:k] for label, row in zip(labels, ranked)] for k in (1, 5)]
    return {"val/top1": np.mean(tops[0]), "val/top5": np.mean(tops[1]), "val/images": len(files)}


def raw_features(entry, files):
    """The mean of the network's outputs for each image and its mirror image."""
    from plsc.engine.state import open_backbone

    backbone, config, _ = open_backbone(entry.config)
    backbone.eval()
    pixels = np.stack([cv2.imread(str(file))[..., ::-1] for file in files]).astype(np.float32)
    batch = ((pixels - 127.5) / 128.0).transpose(0, 3, 1, 2)
    with paddle.no_grad():
        outputs = [backbone(paddle.to_tensor(np.ascontiguousarray(part))).numpy() for part in (batch, batch[..., ::-1])]
    return (outputs[0] + outputs[1]) / 2


@pytest.mark.parametrize("loss", ["dist_arcface", "softmax", "dist_softmax", "cosface", "sub-centers"])
def test_training_and_test_give_the_figures_of_slow_loops(made, folders, tmp_path, loss):
    if loss == "sub-centers":
        made.set_subcenters(2)
    else:
        made.set_loss_type(loss)
    made.set_val_dataset(folders[1])
    made.set_keep_best("val.top1")
    made.set_train_epochs(2)
    results = made.train()
    expected = slow_metrics(made, folders[1])
    assert {name: results[name] for name in expected} == pytest.approx(expected)
    assert made.test() == pytest.approx(expected)
    assert read_metrics(tmp_path / "output" / "1") == pytest.approx(expected)
    lines = [json.loads(line) for line in (tmp_path / "output/metrics.jsonl").read_text().splitlines()]
    verified = [line for line in lines if line["event"] == "verify"]
    assert len(verified) == 2 and verified[1]["val/top1"] == pytest.approx(expected["val/top1"])
    assert expected["val/top5"] > 0.2


def test_data_in_memory_is_matched_by_its_names(made, folders):
    images, labels = make_images(per_class=2)

    class Data:
        classes = NAMES[::-1]

        def __len__(self):
            return len(labels)

        def __getitem__(self, index):
            return images[index], CLASSES - 1 - labels[index]

    made.set_val_dataset(Data())
    results = made.train()
    assert results["val/images"] == 12
    made.set_val_dataset(None)
    made.set_val_dataset(write_folders(folders[0].with_name("same"), count=2))
    assert made.test() == {name: results[name] for name in ("val/top1", "val/top5", "val/images")}
    made.set_val_dataset(iter([]))
    with pytest.raises(DataError, match="val_dataset: got .*, expected an object with len"):
        made.test()


def test_held_out_images_are_never_trained_on(made, folders):
    made.set_val_split(0.34)  # 2 of 6
    trainer = Trainer(made.config)
    part = trainer.loader.records
    trained = {part.path_of(index) for index in range(len(part))}
    held_out = {part.held_out.path_of(index) for index in range(len(part.held_out))}
    assert not trained & held_out and len(trained | held_out) == CLASSES * PER_CLASS
    assert len(held_out) == 2 * CLASSES and trainer.loader.num_images == 4 * CLASSES
    results = trainer.train()
    assert results["val/images"] == 2 * CLASSES
    about = About.of(Checkpoint(made.model_save_dir))
    assert about.num_images == 4 * CLASSES and about.held_out == part.digest
    assert made.test() == {name: value for name, value in results.items() if "/" in name and name != "images/s"}


def test_a_resumed_run_holds_out_the_same(made, tmp_path, caplog):
    made.set_val_split(0.34)
    made.set_train_epochs(3)
    whole = made.train()
    made.set_model_save_dir(tmp_path / "again")
    made.set_train_epochs(1)
    made.train()
    made.set_auto_resume(True)
    made.set_train_epochs(3)
    resumed = made.train()
    for results in (whole, resumed):
        results.pop("images/s")
    assert resumed == whole
    made.set_auto_resume(False)
    made.set_checkpoint_dir(tmp_path / "again")
    made.set_seed(4)
    with caplog.at_level(logging.WARNING, "plsc"):
        made.test()
    assert "are not those that were held out in training, where others were" in caplog.text
    made.set_auto_resume(True)
    made.set_checkpoint_dir("")
    made.set_train_epochs(4)
    made.set_seed(0)
    made.set_val_split(0.2)
    with pytest.raises(plsc.CheckpointError, match="val_split was 0.34 and is 0.2; number of training images"):
        made.train()


def test_a_test_takes_the_seed_of_the_training(made, caplog):
    made.set_val_split(0.34)
    made.set_seed(5)
    results = made.train()
    again = plsc.Entry()
    again.set_checkpoint_dir(made.model_save_dir)
    again.set_dataset_dir(made.dataset_dir)
    again.set_val_split(0.34)
    with caplog.at_level(logging.WARNING, "plsc"):
        found = again.test()
    assert found["val/top1"] == results["val/top1"] and "held out in training" not in caplog.text


def test_images_that_training_has_seen_are_no_validation(made, caplog):
    made.train()
    made.set_val_split(0.34)
    with caplog.at_level(logging.WARNING, "plsc"):
        made.test()
    assert "where none were: the network has seen some of them" in caplog.text


@pytest.mark.slow
def test_ranks_agree_and_so_do_runs_on_one_and_on_three(made, folders, tmp_path):
    given = {"dataset_dir": str(folders[0]), "model_save_dir": str(tmp_path / "out"), "train_batch_size": 4}
    train = {"do": "train", "val_split": 0.34, "train_epochs": 2, **given}
    _, output = launch(3, "closed_set_worker.py", json.dumps(train), log_dir=tmp_path / "log")
    found = results_in(output)
    assert len(found) == 3 and found[0] == found[1] == found[2] and found[0]["val/images"] == 12
    for split in ({"val_split": 0.34}, {"val_dataset_dir": str(folders[1])}):
        results = []
        for ranks, extra in ((1, {}), (2, {}), (3, {}), (2, {"head_group_size": 1})):
            test = {"do": "test", "tables": str(tmp_path / f"tables{ranks}"), **given, **split, **extra}
            _, output = launch(ranks, "closed_set_worker.py", json.dumps(test), log_dir=tmp_path / f"log{ranks}")
            results += results_in(output)
        assert len(results) == 8 and all(each == results[0] for each in results)
        if "val_split" in split:
            assert results[0] == found[0]
        tables = [(tmp_path / f"tables{ranks}" / "classes.csv").read_text() for ranks in (1, 2, 3)]
        assert tables[0] == tables[1] == tables[2]


@pytest.mark.ranks
def test_a_run_in_groups_counts_each_class_and_image_once(made, folders, tmp_path):
    given = {"dataset_dir": str(folders[0]), "train_batch_size": 3, "val_split": 0.34, "train_epochs": 2}
    results = []
    for size in (4, 2):
        settings = {"do": "train", "head_group_size": size, "model_save_dir": str(tmp_path / f"out{size}"), **given}
        _, output = launch(4, "closed_set_worker.py", json.dumps(settings), log_dir=tmp_path / f"log{size}")
        results += results_in(output)
    assert len(results) == 8 and results[0]["val/images"] == 12
    assert all(each == results[0] for each in results)


def results_in(output):
    """What each rank found; the launcher repeats what rank 0 prints."""
    lines = [line.split(" ", 2) for line in output.splitlines() if line.startswith("FOUND ")]
    by_rank = {rank: json.loads(found) for _, rank, found in lines}
    return [by_rank[rank] for rank in sorted(by_rank)]


@pytest.mark.parametrize("images", [0, 7, 25])
def test_a_stop_ends_validation(made, folders, images):
    """Asked before each image: it is stopped after so many of 20; with 25 it is not."""
    made.set_val_dataset(folders[1])
    trainer = Trainer(made.config)
    asked = iter(range(images))
    found = evaluate(
        trainer.config,
        trainer.backbone,
        sets=[],
        collectives=trainer.collectives,
        is_stopped=lambda: next(asked, None) is None,
        closed=trainer._closed,
        centers=trainer.head.centers,
    )
    assert (found is None) == (images < 20)


# Mistakes


def test_unknown_classes_stop_training_before_it_begins(made, folders):
    (folders[1] / "bee").rename(folders[1] / "wasp")
    made.set_val_dataset(folders[1])
    with pytest.raises(DataError, match="validation: got 1 class of 5 that the training data has not: 'wasp'"):
        made.train()


def test_classes_that_training_left_out_are_left_out(made, folders, caplog):
    for file in sorted((folders[0] / "bee").iterdir())[2:]:
        file.unlink()
    made.set_min_images_per_class(3)
    made.set_val_dataset(folders[1])
    with caplog.at_level(logging.WARNING, "plsc"):
        assert made.train()["val/images"] == 16
    assert "left out 4 images of 1 class that training has left out: 'bee'" in caplog.text
    assert made.test()["val/images"] == 16


def test_bad_images_are_named_or_skipped(made, folders):
    bad = folders[1] / "cow" / "0038.png"
    assert bad.exists()
    bad.write_bytes(b"no image")
    made.set_val_dataset(folders[1])
    with pytest.raises(DataError, match=f"{bad}: .*that are no image"):
        made.train()
    made.set_bad_images("skip")
    results = made.train()
    assert results["val/images"] == 19
    bad.unlink()
    assert made.test() == {name: results[name] for name in ("val/top1", "val/top5", "val/images")}
    for file in folders[1].rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="validation: none of 19 images can be read"):
        made.test()


def test_an_image_that_turns_bad_later_ends_with_a_checkpoint(made, folders):
    made.set_val_dataset(folders[1])
    trainer = Trainer(made.config)
    bad = folders[1] / "cow" / "0038.png"
    bad.write_bytes(b"no image")
    with pytest.raises(DataError, match=f"{bad}: .* training up to here is saved in"):
        trainer.train()


def test_settings_that_contradict_each_other(made, folders):
    made.set_val_dataset(folders[1])
    made.set_val_split(0.1)
    with pytest.raises(ConfigError, match="val_dataset_dir and val_split are set: one of them"):
        made.train()
    made.set_val_dataset(None)
    made.train_reader = lambda: iter([])
    with pytest.raises(ConfigError, match="val_split holds out images of dataset_dir or train_dataset"):
        made.train()
    with pytest.raises(ConfigError, match="val_split"):
        made.set_val_split(1.0)


def test_a_loader_that_is_handed_in_holds_nothing_out(made):
    loader = Trainer(made.config).loader
    made.set_val_split(0.2)
    with pytest.raises(ConfigError, match="this run was given another loader"):
        Trainer(made.config, loader=loader)


def test_a_head_without_class_centers(made, folders):
    class Odd(Classifier):
        def centers(self):
            return None

    made.set_val_dataset(folders[1])
    trainer = Trainer(made.config)
    head = Odd(made.config.model_copy(update={"num_classes": 6}), trainer.collectives, make_optimizer=_optimizer(made))
    with pytest.raises(ConfigError, match=r"head Odd: centers\(\) returns None"):
        Trainer(made.config, head=head)
    made.set_val_dataset(None)
    Trainer(made.config, head=head).train()
    made.set_val_dataset(folders[1])
    with pytest.raises(plsc.CheckpointError, match="its head has no class centers"):
        made.test()


def _optimizer(entry):
    from plsc.engine.optimizer import NamedOptimizer

    return lambda named: NamedOptimizer(entry.config, named)


def test_keep_best_needs_validation_data(made, folders):
    made.set_keep_best("val.top1")
    with pytest.raises(ConfigError, match="val.top1"):
        made.train()
    made.set_val_dataset(folders[1])
    made.set_keep_best("val.top2")
    with pytest.raises(ConfigError, match="expected one of val.top1, val.top5"):
        made.train()


def test_tables_need_validation_data_and_a_folder(made, folders, tmp_path, monkeypatch):
    made.set_val_dataset(folders[1])
    made.train()
    made.test(tables=tmp_path / "tables")
    rows = list(csv.reader((tmp_path / "tables/classes.csv").open()))
    assert rows[0] == ["class", "images", "top1", "most_confused_with", "times"]
    assert [row[0] for row in rows[1:]] == NAMES[1:] and {row[1] for row in rows[1:]} == {"4"}
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/tables: the tables cannot be written"):
        made.test(tables=tmp_path / "file/tables")
    monkeypatch.setattr("plsc.engine.tester.evaluate", lambda *_, **__: pytest.fail("images are read"))
    with pytest.raises(ConfigError, match="file: is no folder, expected one to write classes.csv and confusions.csv"):
        made.test(tables=tmp_path / "file")
    made.set_val_dataset(None)
    with pytest.raises(ConfigError, match="tables of classes need validation data"):
        made.test(tables=tmp_path / "tables")


def test_tables_hold_names_of_any_kind(tmp_path):
    report = ClosedSetReport(np.array([0, 0, 1, 2]), np.array([[1], [1], [1], [2]]))
    names = ClassNames(StringTable(['a,"b"', "ü\udcff"]))
    write_tables(tmp_path, report, names)
    text = (tmp_path / "classes.csv").read_bytes().decode("utf-8", "surrogateescape")
    rows = list(csv.reader(text.splitlines()))[1:]
    assert rows[:2] == [['a,"b"', "2", "0.0", "ü\udcff", "2"], ["ü\udcff", "1", "1.0", "", ""]]
    assert rows[2] == ["2", "1", "1.0", "", ""]
    text = (tmp_path / "confusions.csv").read_bytes().decode("utf-8", "surrogateescape")
    assert list(csv.reader(text.splitlines()))[1:] == [['a,"b"', "ü\udcff", "2"]]


def test_ranks_with_different_validation_data(folders):
    other = write_folders(folders[1].with_name("other"), count=3)
    ranks, errors = ThreadRanks(3), [None] * 3

    def open_on(rank):
        config = plsc.Config(val_dataset_dir=str(other if rank == 2 else folders[0]))
        try:
            open_closed_set(config, None, names=StringTable(NAMES), num_classes=6, collectives=ranks[rank])
        except DataError as error:
            errors[rank] = str(error)

    threads = [threading.Thread(target=open_on, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors[0] == errors[1] == errors[2]
    assert "rank 0 has 36 images" in errors[0] and "rank 2 has 18 images" in errors[0]
