"""Checkpoints with classes dropped, merged and renamed."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from plsc import CheckpointError
from plsc.checkpoint import Checkpoint, Part, save_checkpoint
from plsc.cli.main import main
from plsc.distributed.collectives import Collectives
from plsc.engine.about import About
from plsc.engine.class_change import read_classes
from plsc.engine.class_edit import edit_classes, read_class_lists, read_new_names
from plsc.engine.trainer import Trainer
from plsc.utils.row_types import decoded
from tests._support.manifests import edit_manifest
from tests._support.workers.classes_worker import make_entry

NAMES = ["a", "b, the second", "c", "d", "e"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "output"
    make_entry({"names": NAMES, "model_save_dir": str(folder), "train_epochs": 1, "train_batch_size": 5}).train()
    return folder


def test_rows_are_kept_merged_and_left_out_and_names_follow(source, tmp_path):
    """Every tensor with a row per class against the mean made by hand; all others as they were."""
    found = edit_classes(source, tmp_path / "edited", drop=["c"], merge=[["a", "e"]], rename={"d": "new d"})
    assert (found.before, found.after, found.dropped, found.merged, found.renamed) == (5, 3, 1, 1, 1)
    before, after = Checkpoint(source), Checkpoint(tmp_path / "edited")
    after.verify()
    per_class = [name for name in before.names("head.") if before.shape(name)[:1] == [5]]
    assert len(per_class) == 2
    for name in before.names(""):
        old = before.read(name)
        if name in per_class:
            expected = [(old[0].astype(np.float64) + old[4]) / 2, old[1], old[3]]
            np.testing.assert_allclose(after.read(name), expected, rtol=1e-6)
            np.testing.assert_array_equal(after.read(name)[1:], old[[1, 3]])
        elif not name.startswith("classes."):
            np.testing.assert_array_equal(after.read(name), old)
    about = About.of(after)
    assert list(read_classes(after, about.classes).table) == ["a", "b, the second", "new d"]
    assert about.settings.num_classes == 3 and about.step == About.of(before).step
    assert Checkpoint(source).read("head.weight").shape == (5, 16), "the source stays"


def test_a_run_on_the_cleaned_data_goes_on_from_it(source, tmp_path):
    edit_classes(source, tmp_path / "edited", drop=["c"], merge=[["a", "e"]], rename={"d": "new d"})
    settings = {"checkpoint_dir": str(tmp_path / "edited"), "model_save_dir": str(tmp_path / "on"), "train_epochs": 2}
    entry = make_entry({"names": ["a", "b, the second", "new d"], "train_batch_size": 5, **settings})
    trainer = Trainer(entry.config)
    assert trainer.epoch == 1
    np.testing.assert_array_equal(
        trainer.head.parameters["weight"].numpy(), Checkpoint(tmp_path / "edited").read("head.weight")
    )
    trainer.train()
    with pytest.raises(CheckpointError, match="class 2 was 'new d' and is 'd' now"):
        Trainer(make_entry({"names": ["a", "b, the second", "d"], **settings}).config)


def test_rows_that_are_kept_in_few_bytes_are_merged_by_their_values(tmp_path):
    """The mean of centers in bfloat16 and of momentum in int8, each to half the distance of its neighbors."""
    folder = tmp_path / "output"
    lean = {"center_storage": "bfloat16", "momentum_storage": "int8"}
    make_entry(
        {"names": NAMES, "model_save_dir": str(folder), "train_epochs": 1, "train_batch_size": 5, **lean}
    ).train()
    edit_classes(folder, tmp_path / "edited", merge=[["a", "e"]])
    before, after = Checkpoint(folder), Checkpoint(tmp_path / "edited")
    for name, distance in (("head.weight", 2.0**-7), ("head.weight:velocity", 1 / 127)):
        old, new = before.read(name), after.read(name)
        assert (old.dtype, old.shape[1]) == ((np.uint16, 16) if name == "head.weight" else (np.int8, 20))
        np.testing.assert_array_equal(new[1:], old[1:4])
        values = decoded(old, 16).astype(np.float64)
        mean = (values[0] + values[4]) / 2
        assert mean.any()
        limit = np.abs(mean) if name == "head.weight" else np.abs(mean).max()
        assert (np.abs(decoded(new, 16)[0] - mean) <= 0.51 * distance * limit).all()


@pytest.mark.parametrize("ranks, width", [(1, 1), (3, 1), (2, 3)])
def test_shards_and_several_rows_a_class(ranks, width, tmp_path, source):
    """A checkpoint of several ranks, with K rows a class, in blocks of a few rows."""
    rows = np.arange(10 * width * 4, dtype=np.float32).reshape(10 * width, 4)
    bounds = np.linspace(0, 10, ranks + 1).astype(int) * width
    about = {**Checkpoint(source).about, "classes": None}
    about["settings"] = {**about["settings"], "num_classes": 10}
    parts = [
        Part("head.weight", rows[start:stop], offset=int(start), rows=len(rows))
        for start, stop in zip(bounds[:-1], bounds[1:])
    ]
    save_checkpoint(tmp_path / "in", "0", parts=parts, about=about, collectives=Collectives())
    edit_classes(tmp_path / "in", tmp_path / "out", drop=["0", "7"], merge=[["3", "9", "1"], ["4", "5"]])
    grouped = rows.reshape(10, width, 4)
    expected = [grouped[2], grouped[[3, 9, 1]].mean(axis=0), grouped[[4, 5]].mean(axis=0), grouped[6], grouped[8]]
    found = Checkpoint(tmp_path / "out")
    np.testing.assert_allclose(found.read("head.weight").reshape(-1, width, 4), expected)
    assert len(found.parts("head.weight")) == ranks


@pytest.mark.parametrize(
    "edits, words",
    [
        ({"drop": ["f"]}, "class 'f': no class has that name; .*it has 5 classes"),
        ({"drop": ["c", "c"]}, "class 'c' is to be dropped, and was dropped before"),
        ({"drop": ["c"], "merge": [["a", "c"]]}, "class 'c' is to be merged, and was dropped before"),
        ({"drop": ["a"], "merge": [["a", "c"]]}, "class 'a' is dropped, but others are to be merged into it"),
        ({"merge": [["a"]]}, r"got the group \['a'\] to merge, expected two classes or more"),
        ({"rename": {"a": "c"}}, "two classes would have the name 'c'"),
        ({"drop": ["c"], "rename": {"c": "x"}}, "class 'c' is dropped, but it is to be renamed; take it out"),
        ({"merge": [["a", "c"]], "rename": {"c": "x"}}, "class 'c' is merged, but it is to be renamed"),
        ({"merge": [["a", "a"]]}, "class 'a' is merged, but others are to be merged into it"),
        ({"drop": NAMES}, "no class would be left of 5 classes"),
    ],
)
def test_what_contradicts_is_named_and_nothing_written(edits, words, source, tmp_path):
    with pytest.raises(CheckpointError, match=words):
        edit_classes(source, tmp_path / "edited", **edits)
    assert not (tmp_path / "edited").exists()


def test_names_may_be_exchanged(source, tmp_path):
    edit_classes(source, tmp_path / "edited", rename={"a": "c", "c": "a"})
    after = Checkpoint(tmp_path / "edited")
    assert list(read_classes(after, About.of(after).classes).table) == ["c", "b, the second", "a", "d", "e"]


def test_an_existing_folder_is_never_overwritten(source, tmp_path):
    with pytest.raises(CheckpointError, match="exists and is never overwritten"):
        edit_classes(source, tmp_path, drop=["c"])


def test_the_command_reads_lists_and_says_what_it_did(source, tmp_path, monkeypatch, capfd):
    (tmp_path / "drop.txt").write_bytes(b"\xef\xbb\xbfc\r\n\r\nb, the second\r\n")  # as an editor on Windows writes it
    (tmp_path / "merge.txt").write_text("a\te\n")
    (tmp_path / "rename.txt").write_text("d,new d\n")

    def run(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["plsc", "checkpoint", "classes", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert (end.value.code or 0) == status, out + err
        return out if status == 0 else err

    files = [f"--{name}={tmp_path / name}.txt" for name in ("drop", "merge", "rename")]
    assert "2 classes of 5; 2 dropped, 1 merged into others, 1 renamed" in run(source, "--to", tmp_path / "one", *files)
    found = json.loads(run(source, "--to", tmp_path / "two", files[0], "--json"))
    assert (found["after"], found["dropped"]) == (3, 2)
    assert "nothing is to be done; expected --drop" in run(source, "--to", tmp_path / "three", status=1)
    (tmp_path / "merge.txt").write_text("a\n")
    message = run(source, "--to", tmp_path / "three", files[1], status=1)
    assert "merge.txt, line 1: got 'a', expected two class names or more" in message


@pytest.mark.parametrize("begin", [b"", "\ufeff".encode()])
def test_lists_may_have_a_byte_order_mark_and_ends_of_lines_of_other_systems(begin, tmp_path):
    (tmp_path / "list.txt").write_bytes(begin + "a,b\r\n\r\nc\u2028d,e\x0bf\r\n".encode())
    assert read_class_lists(tmp_path / "list.txt", columns=2) == [["a", "b"], ["c\u2028d", "e\x0bf"]]


def test_a_class_with_two_new_names_is_refused(tmp_path):
    path = tmp_path / "rename.txt"
    path.write_text("a,x\nb,y\na,x\n")
    assert read_new_names(path) == {"a": "x", "b": "y"}
    path.write_text("a,x\na,y\n")
    with pytest.raises(CheckpointError, match="rename.txt: class 'a' is to become 'x' and 'y', expected one new name"):
        read_new_names(path)


def test_classes_known_by_labels_lose_their_identity_with_a_word(source, tmp_path, caplog):
    import shutil

    shutil.copytree(source, tmp_path / "in")
    edit_manifest(Checkpoint(tmp_path / "in").path, lambda content: content["about"].pop("classes"))
    edit_classes(tmp_path / "in", tmp_path / "out", drop=["2"])
    assert About.of(Checkpoint(tmp_path / "out")).classes is None
