"""Resuming on data whose class numbers mean other classes: stop, move by name, or keep the numbers."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from plsc import CheckpointError, Trainer
from plsc.checkpoint import Checkpoint
from plsc.losses import Head
from plsc.utils.ranges import Range
from tests._support.manifests import edit_manifest
from tests._support.resuming import train_and_resume


@pytest.fixture
def folders(entry, data_dir):
    """Class folders of the entry's data, p0 to p5, on which the entry trained an epoch; it resumes for another."""
    root = data_dir.parent / "folders"
    for line in (data_dir / "label.txt").read_text().splitlines():
        name, label = line.split()
        (root / f"p{label}").mkdir(parents=True, exist_ok=True)
        shutil.copy(data_dir / name, root / f"p{label}")
    entry.set_dataset_dir(root)
    return train_once(entry, root)


def train_once(entry, data):
    train_and_resume(entry)
    return data


def test_a_renamed_class_stops_a_run_that_resumes_and_both_names_are_told(entry, folders):
    (folders / "p0").rename(folders / "z0")
    with pytest.raises(
        CheckpointError,
        match=r"output/0: class numbers mean other classes.* class 0 was 'p0' and is 'p1' now; changed are 6 of 6 "
        r"class names\. .* 1 class gone \(the first 'p0'\) and 1 class new \(the first 'z0'\)\. "
        r".*set_class_change\('by_name'\).*set_class_change\('by_number'\)",
    ):
        entry.train()
    entry.set_class_change("by_number")
    entry.train()
    assert Checkpoint(entry.model_save_dir).path.name == "1"


@pytest.mark.parametrize(
    "loss_type, optimizer, subcenters",
    [("dist_softmax", None, 1), ("dist_arcface", "clipped", 1), ("dist_arcface", None, 3)],
)
def test_by_name_each_center_and_its_optimizer_state_move_to_their_class(
    entry, data_dir, loss_type, optimizer, subcenters
):
    """All tensors with a row per class, of the fused and of the whole update."""
    import paddle

    if optimizer:
        entry.set_optimizer(
            lambda learning_rate, parameters: paddle.optimizer.Momentum(
                learning_rate, parameters=parameters, grad_clip=paddle.nn.ClipGradByValue(1e9)
            )
        )
    entry.set_loss_type(loss_type)
    entry.set_subcenters(subcenters)
    names = ["f", "b", "e", "a", "d", "c"]  # of classes 0 to 5
    table = data_dir / "classes.txt"
    table.write_text("".join(f"{name}\n" for name in names))
    train_once(entry, data_dir)
    before = Checkpoint(entry.model_save_dir)
    lines = [line.split() for line in (data_dir / "label.txt").read_text().splitlines()]
    table.write_text("a\nb\nc\nd\ne\nf\n")
    (data_dir / "label.txt").write_text(
        "".join(f"{image} {sorted(names).index(names[int(label)])}\n" for image, label in lines)
    )
    with pytest.raises(CheckpointError, match=r"class 0 was 'f' and is 'a' now.*set_class_change\('by_name'\)"):
        entry.train()
    entry.set_class_change("by_name")
    entry.set_train_epochs(1)  # nothing is left to train, so that what was loaded is seen
    trainer = Trainer(entry.config)
    rows = [names.index(name) for name in sorted(names)]
    state = trainer.head.state()
    per_class = [name for name in state if trainer.head.has_row_per_class(name)]
    assert len(per_class) >= 2
    for name in per_class:
        expected = before.read(f"head.{name}")[rows]
        assert np.array_equal(state[name].numpy(), expected) and np.abs(expected).max() > 0
    entry.set_train_epochs(2)
    entry.train()
    entry.set_class_change("stop")  # the new order is that of the checkpoint now
    entry.set_train_epochs(3)
    entry.train()


def test_a_list_whose_labels_were_exchanged_stops_and_one_that_grew_does_not(entry, data_dir):
    train_once(entry, data_dir)
    path, text = data_dir / "label.txt", (data_dir / "label.txt").read_text()
    exchanged = {"0": "1", "1": "0"}
    lines = [line.split() for line in text.splitlines()]
    path.write_text("".join(f"{image} {exchanged.get(label, label)}\n" for image, label in lines))
    with pytest.raises(CheckpointError, match=r"'images/00000000.png' was in class 0 and is in class 1 now"):
        entry.train()
    path.write_text("images/00000006.png 0\nimages/00000001.png 0\n" + text)  # the latter in two classes
    entry.train()


@pytest.mark.parametrize("grown", [False, True])
def test_the_same_classes_resume_without_a_word(entry, folders, caplog, grown):
    if grown:
        shutil.copy(folders / "p0" / "00000000.png", folders / "p0" / "0.png")
    entry.train()
    assert "numbers" not in caplog.text


@pytest.mark.parametrize("named", ["before", "now"])
def test_by_name_is_refused_where_one_side_has_no_names(entry, data_dir, named):
    """Also where both have as many classes, which would else keep their numbers."""
    names = data_dir / "classes.txt"
    if named == "before":
        names.write_text("a\nb\nc\nd\ne\nf\n")
    train_once(entry, data_dir)
    names.unlink() if named == "before" else names.write_text("f\ne\nd\nc\nb\na\n")
    entry.set_class_change("by_name")
    with pytest.raises(CheckpointError, match=r"output/0: .*by name: not both have names\. .*'by_number'.*'new_head'"):
        entry.train()
    entry.set_class_change("by_number")
    entry.train()


def test_by_name_of_a_checkpoint_that_does_not_say_its_classes_is_refused(entry, folders):
    edit_manifest(Checkpoint(entry.model_save_dir).path, lambda content: content["about"].pop("classes"))
    entry.set_class_change("by_name")
    with pytest.raises(CheckpointError, match=r"output/0: .*cannot be matched by name: not both have names"):
        entry.train()


def test_by_name_needs_no_names_where_nothing_has_changed(entry, data_dir):
    train_once(entry, data_dir)
    entry.set_class_change("by_name")
    entry.train()
    assert Checkpoint(entry.model_save_dir).path.name == "1"


def test_more_classes_without_names_are_not_sent_to_by_name_again(entry, data_dir):
    train_once(entry, data_dir)
    list_of = data_dir / "label.txt"
    text = list_of.read_text()
    list_of.write_text(text + text.splitlines()[0].split()[0] + " 6\n")
    entry.config.model_fields_set.discard("num_classes")
    entry.set_class_change("by_name")
    with pytest.raises(CheckpointError, match=r"cannot be matched by name: not both have names"):
        entry.train()


def test_a_class_that_was_added_is_told_as_such(entry, folders):
    shutil.copytree(folders / "p0", folders / "z")
    entry.config.model_fields_set.discard("num_classes")
    with pytest.raises(CheckpointError, match=r"has 6 classes, the training data has 7: .*set_class_change\('grow'\)"):
        entry.train()


def test_a_checkpoint_that_does_not_say_its_classes_is_accepted_with_a_word(entry, folders, caplog):
    """As those of 1.0 and 3.0."""
    caplog.set_level("INFO", "plsc")

    def change(content):
        for key in ("classes", "objects", "global_batch"):
            del content["about"][key]
        for name in [name for name in content["tensors"] if name.startswith("classes.")]:
            del content["tensors"][name]

    edit_manifest(Checkpoint(entry.model_save_dir).path, change)
    (folders / "p0").rename(folders / "z0")
    entry.train()
    assert "output/0: whether the classes have kept their numbers cannot be told" in caplog.text


@pytest.mark.parametrize("what", ["digest", "tensor"])
def test_a_damaged_identity_is_an_error_of_the_checkpoint(entry, folders, what):

    def change(content):
        if what == "digest":
            content["about"]["classes"]["digest"] = "0" * 64
        else:
            del content["tensors"]["classes.ends"]

    edit_manifest(Checkpoint(entry.model_save_dir).path, change)
    with pytest.raises(CheckpointError, match=r"output/0: .*classes.*use another checkpoint"):
        entry.train()


def test_a_head_of_a_users_own_is_moved_as_well(entry, data_dir):
    class Rows(Head):
        """A row per class that says which class it was made for."""

        def __init__(self):
            import paddle

            self.classes, self.moved = Range(0, 6), 0
            self.parameters = {"weight": paddle.arange(6, dtype="float32").reshape([6, 1]).tile([1, 16])}

        def forward(self, features, labels, *, step=0, count_above=False):
            return features.sum() * 0.0

        def backward(self, learning_rate=0.0):
            import paddle

            return paddle.zeros([10, 16])

        def update(self, learning_rate): ...

    (data_dir / "classes.txt").write_text("a\nb\nc\nd\ne\nf\n")
    entry.set_with_test(False)
    Trainer(entry.config, head=Rows()).train()
    (data_dir / "classes.txt").write_text("f\na\nb\nc\nd\ne\n")
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_class_change("by_name")
    head = Rows()
    Trainer(entry.config, head=head)
    assert head.parameters["weight"].numpy()[:, 0].tolist() == [5, 0, 1, 2, 3, 4]
