"""Starting from a checkpoint with other classes: kept, new, gone; on one to three ranks; and with another head."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from plsc import CheckpointError
from plsc.checkpoint import Checkpoint
from plsc.engine.class_change import ClassMove, rows_of_classes
from plsc.engine.trainer import Trainer
from plsc.losses.creation import initial_centers
from plsc.utils.ranges import Range
from tests._support.ranks import launch, run
from tests._support.workers.classes_worker import Named, make_entry

BEFORE = ["d", "b", "a", "c", "e"]
AFTER = ["x", "a", "e", "y", "b", "z", "d"]  # c is gone; x, y, z are new
SETTINGS = {"train_epochs": 2, "train_batch_size": 6}


def train(folder, ranks=1, **settings):
    """Train two epochs on some names; returns the checkpoint."""
    folder.mkdir(parents=True)
    settings = {"names": BEFORE, "model_save_dir": str(folder / "output"), "train": True, **SETTINGS, **settings}
    launch(ranks, "classes_worker.py", json.dumps(settings), folder, log_dir=folder / "log")
    return Checkpoint(folder / "output")


def start(folder, saved, ranks, **settings):
    """(what all ranks hold at the start from a checkpoint, what they said), rows per class put together."""
    folder.mkdir(parents=True)
    settings = {
        "checkpoint_dir": str(saved.path),
        "model_save_dir": str(folder / "output"),
        "class_change": "by_name",
        **SETTINGS,
        **settings,
    }
    _, output = launch(ranks, "classes_worker.py", json.dumps(settings), folder, log_dir=folder / "log")
    held = [np.load(folder / f"{rank}.npz") for rank in range(ranks)]
    together = dict(held[0])
    if held[0]["classes"][1] < len(settings["names"]) or ranks == 1:
        for name in together:
            if name.startswith("head/") and ":step" not in name:
                together[name] = np.concatenate([part[name] for part in held])
    return together, output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint for each optimizer and loss, written by two ranks."""
    made = {}

    def get(**settings):
        key = json.dumps(settings)
        if key not in made:
            made[key] = train(tmp_path_factory.mktemp("before") / "run", ranks=2, **settings)
        return made[key]

    return get


def mean_centers(names, backbone, per_class=4, emb_dim=16, flip=True):
    """The mean of the unit features of the images of each name, image by image, in float64."""
    entry = make_entry({"names": names, "per_class": per_class, "emb_dim": emb_dim})
    model, data, centers = entry.config.model, Named(names, per_class), {}
    model.set_state_dict({name: paddle.to_tensor(value) for name, value in backbone.items()})
    model.eval()
    for label, name in enumerate(names):
        units = []
        for index in np.flatnonzero(data.labels == label):
            pixels = (data.images[index].transpose(2, 0, 1).astype(np.float32) - 127.5) / 128.0
            feature = model(paddle.to_tensor(pixels[None])).numpy()[0].astype(np.float64)
            if flip:
                feature += model(paddle.to_tensor(pixels[None, :, :, ::-1].copy())).numpy()[0]
            units.append(feature / np.linalg.norm(feature))
        mean = np.mean(units, axis=0)
        centers[name] = mean / np.linalg.norm(mean)
    return centers


def backbone_of(held):
    return {name.removeprefix("backbone/"): value for name, value in held.items() if name.startswith("backbone/")}


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [{}, {"optimizer": "adamw", "lr": 0.02}, {"loss_type": "dist_softmax", "lr": 0.5}, {"loss_type": "arcface"}],
    ids=["momentum", "adamw", "softmax", "replicated"],
)
def test_by_name_keeps_moves_adds_and_leaves_out(settings, ranks, trained, tmp_path):
    """Each tensor with a row per class, against the checkpoint and a mean made image by image."""
    saved = trained(**settings)
    held, output = start(tmp_path / "run", saved, ranks, names=AFTER, **settings)
    kept = [name for name in AFTER if name in BEFORE]
    before = {name: saved.read(f"head.{name}") for name in (each[len("head.") :] for each in saved.names("head."))}
    rows = [name for name, value in before.items() if value.shape[:1] == (5,)]
    assert len(rows) >= 2
    for name in rows:
        found = held[f"head/{name}"]
        assert len(found) == len(AFTER)
        for label, class_name in enumerate(AFTER):
            if class_name in kept:
                np.testing.assert_array_equal(found[label], before[name][BEFORE.index(class_name)])
            elif name != "weight":
                assert not found[label].any(), "state and bias of a new class are 0"
        assert np.abs(before[name]).max() > 0
    centers, length = mean_centers(AFTER, backbone_of(held)), 0.0
    length = np.mean([np.linalg.norm(before["weight"][BEFORE.index(name)].astype(np.float64)) for name in kept])
    for label, class_name in enumerate(AFTER):
        if class_name not in kept:
            np.testing.assert_allclose(held["head/weight"][label], centers[class_name] * length, rtol=1e-4, atol=1e-6)
    for name in saved.names("optimizer."):
        np.testing.assert_array_equal(held[f"optimizer/{name[len('optimizer.') :]}"], saved.read(name))
    for words in (
        "kept          4  4 under another number; all with center and optimizer state ('a', 'e', 'b', ...)",
        "new           3  mean feature of 12 images ('x', 'y', 'z')",
        "gone          1  left out ('c')",
        "started from",
    ):
        assert output.count(words) >= 1, output[-3000:]
    assert held["counters"].tolist() == [0, 0, 0]


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 3])
def test_random_centers_are_those_of_a_new_head(ranks, trained, tmp_path):
    held, output = start(tmp_path / "run", trained(), ranks, names=AFTER, new_classes="random")
    expected = np.concatenate([rows for _, rows in initial_centers(Range(0, len(AFTER)), 16, seed=0)])
    for label, name in enumerate(AFTER):
        assert np.array_equal(held["head/weight"][label], expected[label]) == (name not in BEFORE)
    assert "new           3  random centers" in output


def entry_from(trained, folder, names, **settings):
    return make_entry(
        {"names": names, "checkpoint_dir": str(trained().path), "model_save_dir": str(folder), **SETTINGS, **settings}
    )


def test_grow_keeps_the_numbers_and_adds_classes_behind_them(trained, tmp_path):
    saved, names = trained(), [*BEFORE, "x", "y"]
    with pytest.raises(CheckpointError, match=r"it has 5 classes, the training data has 7: .*set_class_change\('grow"):
        Trainer(entry_from(trained, tmp_path / "stop", names).config)
    trainer = Trainer(entry_from(trained, tmp_path / "grow", names, class_change="grow").config)
    for name, value in trainer.head.state().items():
        np.testing.assert_array_equal(value.numpy()[:5], saved.read(f"head.{name}"))
    assert not trainer.head.state()["weight:velocity"].numpy()[5:].any()
    centers = mean_centers(names, {name: value.numpy() for name, value in trainer.backbone.state_dict().items()})
    for label, name in enumerate(names[5:], 5):
        found = trainer.head.state()["weight"].numpy()[label]
        np.testing.assert_allclose(found / np.linalg.norm(found), centers[name], rtol=1e-3, atol=1e-5)
    assert (trainer.epoch, trainer.step) == (0, 0)


def test_a_save_folder_that_cannot_be_used_is_refused_before_the_pass_over_new_classes(trained, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "0").write_text("no checkpoint")
    monkeypatch.setattr(
        "plsc.engine.trainer.begin_new_classes", lambda *_, **__: pytest.fail("images of new classes are read")
    )
    with pytest.raises(CheckpointError, match="is no checkpoint, and this run will save one under that name"):
        Trainer(entry_from(trained, tmp_path / "run", [*BEFORE, "x"], class_change="grow").config)


@pytest.mark.parametrize(
    "names, words",
    [
        (
            ["b", "d", "a", "c", "e", "x"],
            r"set_class_change\('grow'\) keeps its numbers, but .* class 0 was 'd' and is 'b'",
        ),
        (BEFORE[:4], r"it has 5 classes, this run has 4 names, and set_class_change\('grow'\) only adds classes"),
    ],
)
def test_grow_refuses_classes_that_moved_or_are_gone(names, words, trained, tmp_path):
    with pytest.raises(CheckpointError, match=words):
        Trainer(entry_from(trained, tmp_path / "grow", names, class_change="grow").config)


def test_by_name_refuses_data_without_a_class_of_the_checkpoint(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"no class of it has the name .*'d' there and 'x' here; .*'new_head'"):
        Trainer(entry_from(trained, tmp_path / "run", ["x", "y"], class_change="by_name").config)


@pytest.mark.ranks
@pytest.mark.parametrize("ranks, emb_dim", [(1, 16), (3, 16), (2, 24)])
def test_new_head_keeps_the_backbone_alone(ranks, emb_dim, trained, tmp_path):
    """Also with another loss and another optimizer, and with another embedding size but for the embedding layer."""
    saved = trained()
    held, output = start(
        tmp_path / "run",
        saved,
        ranks,
        names=["x", "y", "z", "a"],
        class_change="new_head",
        loss_type="dist_softmax",
        optimizer="adamw",
        emb_dim=emb_dim,
    )
    backbone = backbone_of(held)
    kept = [name for name in backbone if emb_dim == 16 or not name.startswith("fc.")]
    for name, value in backbone.items():
        assert (name in kept) == (
            value.shape == tuple(saved.shape(f"backbone.{name}"))
            and np.array_equal(value, saved.read(f"backbone.{name}"))
        )
    assert ("begin anew: fc.weight, fc.bias" in output) == (emb_dim == 24)
    assert not any(name.startswith("optimizer/") for name in held) and held["counters"].tolist() == [0, 0, 0]
    centers = mean_centers(["x", "y", "z", "a"], backbone, emb_dim=emb_dim)
    length = np.linalg.norm(
        np.concatenate([rows for _, rows in initial_centers(Range(0, 4), emb_dim, seed=0)]).astype(np.float64), axis=1
    ).mean()
    for label, name in enumerate(["x", "y", "z", "a"]):
        np.testing.assert_allclose(held["head/weight"][label], centers[name] * length, rtol=1e-4, atol=1e-6)


def test_another_embedding_size_is_refused_by_name_but_for_a_new_head(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"embedding size is 16, this run's is 24; .*\('new_head'\)"):
        Trainer(entry_from(trained, tmp_path / "run", AFTER, class_change="by_name", emb_dim=24).config)


def test_another_network_is_refused_and_pretrained_advised(trained, tmp_path):
    entry = entry_from(trained, tmp_path / "run", AFTER, class_change="new_head")
    entry.config.model = None
    entry.set_model_name("ResNetTiny")
    with pytest.raises(CheckpointError, match=r"they differ in .* that fit: set_pretrained\('.*in place of set_check"):
        Trainer(entry.config)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"subcenters": 2}, r"set_subcenters\(1\), set_class_change\('new_head'\) to begin all centers anew, or"),
        ({"loss_type": "dist_softmax"}, r"set_class_change\('new_head'\) to keep the backbone alone"),
    ],
)
def test_another_head_is_refused_and_a_new_one_advised(settings, words, trained, tmp_path):
    with pytest.raises(CheckpointError, match=words):
        Trainer(entry_from(trained, tmp_path / "run", BEFORE, **settings).config)
    entry_from(trained, tmp_path / "run", BEFORE, class_change="new_head", **settings).train()


@pytest.mark.parametrize(
    "names, settings, counters",
    [
        (BEFORE, {}, (2, 4)),
        (BEFORE, {"counters": "anew"}, (0, 0)),
        (sorted(BEFORE), {"class_change": "by_name"}, (2, 4)),
        (AFTER, {"class_change": "by_name"}, (0, 0)),
        (AFTER, {"class_change": "by_name", "counters": "go_on"}, (2, 4)),
        ([*BEFORE, "x"], {"class_change": "grow"}, (0, 0)),
        (BEFORE, {"class_change": "new_head"}, (0, 0)),
    ],
)
def test_epochs_and_steps_begin_anew_where_classes_change(names, settings, counters, trained, tmp_path):
    trainer = Trainer(entry_from(trained, tmp_path / "run", names, **settings).config)
    assert (trainer.epoch, trainer.step) == counters
    assert trainer.schedule(trainer.step) == pytest.approx(2.0 * 6 / 1024)


@pytest.mark.parametrize("action", ["by_name", "new_head"])
def test_a_run_that_started_so_resumes_bit_for_bit_and_keeps_its_head(action, trained, tmp_path):
    """The setting stays in the script: at the second start the checkpoint of the run itself has the new classes."""
    settings = {"class_change": action, "auto_resume": True, "optimizer": "lion", "lr": 0.1}
    whole = entry_from(trained, tmp_path / "whole", AFTER, **settings)
    whole.train()
    broken = entry_from(trained, tmp_path / "broken", AFTER, **{**settings, "train_epochs": 1})
    broken.train()
    broken = entry_from(trained, tmp_path / "broken", AFTER, **settings)
    broken.train()
    one, other = Checkpoint(tmp_path / "whole"), Checkpoint(tmp_path / "broken")
    assert one.names("") == other.names("") and one.about["step"] == other.about["step"] == 10
    for name in one.names(""):
        np.testing.assert_array_equal(one.read(name), other.read(name))


def test_the_order_of_the_classes_never_matters(trained, tmp_path):
    """Each class has the same center and state whatever its number is, but for rounding of the mean."""
    found = []
    for number, names in enumerate((AFTER, AFTER[::-1])):
        trainer = Trainer(entry_from(trained, tmp_path / str(number), names, class_change="by_name").config)
        state = {name: value.numpy() for name, value in trainer.head.state().items()}
        found.append({name: {key: value[names.index(name)] for key, value in state.items()} for name in names})
    for name, values in found[0].items():
        for key, value in values.items():
            np.testing.assert_allclose(found[1][name][key], value, rtol=1e-5, atol=1e-7)


def test_an_image_of_a_new_class_that_cannot_be_read_is_named_or_skipped(trained, tmp_path):
    entry = entry_from(trained, tmp_path / "run", AFTER, class_change="by_name")
    entry.config.train_dataset.images[0] = b"no image"
    with pytest.raises(Exception, match="the images of new classes: item 0 of Named: .*"):
        Trainer(entry.config)
    entry.set_bad_images("skip")
    trainer = Trainer(entry.config)
    assert np.isfinite(trainer.head.parameters["weight"].numpy()).all()


def test_rows_of_several_centers_a_class_lie_together():
    assert rows_of_classes(np.array([2, -1, 0]), per_class=3).tolist() == [6, 7, 8, -1, -1, -1, 0, 1, 2]


def test_a_move_counts_what_it_does():
    move = ClassMove(np.array([3, -1, 0]), 5, ["d", "x", "a"], ["a", "b", "c", "d", "e"])
    assert (move.num_kept, move.new.tolist(), move.gone.tolist(), move.changes_classes) == (2, [1], [1, 2, 4], True)
    assert not ClassMove(np.array([1, 0]), 2, [], []).changes_classes


@pytest.mark.slow
def test_the_script_of_the_page_trains_and_goes_on(tmp_path, data_dir, entry):
    """docs/finetuning.md, on class folders of which two names are new and one is gone."""
    images = [line.split() for line in (data_dir / "label.txt").read_text().splitlines()]
    for folder, names in (("faces", "abcdef"), ("new_faces", "xbcydef")):
        for image, label in images:
            for name in names:
                if "abcdefxy".index(name) % 6 == int(label):
                    (tmp_path / folder / name).mkdir(parents=True, exist_ok=True)
                    shutil.copy(data_dir / image, tmp_path / folder / name)
    entry.set_dataset_dir(tmp_path / "faces")
    entry.set_with_test(False)
    entry.train()
    page = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text()
    (script,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "finetune.py").write_text(script)
    _, output = run([sys.executable, "finetune.py"], cwd=tmp_path)
    for words in ("kept          5", "new           2", "gone          1", "started from", "learning rate of step 1:"):
        assert words in output, output
    assert Checkpoint(tmp_path / "finetuned").about["epoch"] == 2
    (tmp_path / "finetune.py").write_text(script.replace("epochs(2)", "epochs(2)\nentry.set_lr('cosine')"))
    _, output = run([sys.executable, "finetune.py"], cwd=tmp_path)
    assert "nothing is left to train" in output
