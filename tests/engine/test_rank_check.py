"""What ranks must have in common is compared at start, and what fails on one rank fails on all."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import paddle
import pytest

import plsc
from plsc import Config, ConfigError, DistributedError
from plsc.distributed.topology import Topology
from plsc.engine import rank_check
from plsc.engine.rank_check import (
    OWN_SETTINGS,
    check_copies,
    check_ranks_agree,
    describe_object,
    describe_program,
    describe_settings,
)
from plsc.losses import Head
from plsc.losses.margins.combined import CombinedMargin
from plsc.utils.ranges import Range
from tests._support.ranks import ThreadRanks, launch


def ranks_with(*others):
    """Collectives of rank 0 among ranks that found `others`."""
    return SimpleNamespace(
        topology=Topology(0, 1 + len(others)),
        gather_objects=lambda own: [own, *(others if isinstance(own, dict) else [None] * len(others))],
    )


def test_each_difference_is_named_with_its_values_and_ranks():
    facts = {"seed": 1, "lr": 0.1, "loss_type": "dist_arcface"}
    same = {name: str(value) for name, value in facts.items()}
    check_ranks_agree(lambda: facts, ranks_with(same, same))
    with pytest.raises(
        DistributedError,
        match=r"the ranks do not agree: seed is 1 on rank 0 and 5 on ranks 1, 2; lr is 0\.1 on ranks 0, 1 and not "
        r"there on rank 2; start every rank with the same settings on the same data",
    ):
        check_ranks_agree(
            lambda: facts, ranks_with({**same, "seed": "5"}, {"seed": "5", "loss_type": same["loss_type"]})
        )


def test_another_python_is_a_warning(caplog):
    check_ranks_agree(lambda: {"version of Python": "3.11"}, ranks_with({"version of Python": "3.12"}))
    assert "the ranks differ: version of Python is 3.11 on rank 0 and 3.12 on rank 1" in caplog.text


def test_a_single_rank_compares_nothing():
    check_ranks_agree(lambda: pytest.fail("asked"), SimpleNamespace(topology=Topology()))


def test_every_setting_is_compared_but_those_that_concern_one_process():
    assert describe_settings(Config()).keys() == Config.model_fields.keys() - OWN_SETTINGS - {"model"}
    assert Config.model_fields.keys() > OWN_SETTINGS


class Rows(Head):
    """A head of ones, but for one number."""

    def __init__(self, start, stop, place=None):
        self.classes, self.parameters = Range(start, stop), {"weight": paddle.ones([stop - start, 4])}
        if place is not None:
            self.parameters["weight"][place] = 1.0 + 2.0**-20


def check(*heads):
    """What each rank raises, in threads."""
    ranks, raised = ThreadRanks(len(heads)), [None] * len(heads)

    def run(rank):
        try:
            check_copies(heads[rank], ranks[rank])
        except DistributedError as error:
            raised[rank] = error

    threads = [threading.Thread(target=run, args=[rank]) for rank in range(len(heads))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return raised


def test_ranks_that_hold_the_same_classes_must_begin_alike(monkeypatch):
    monkeypatch.setattr(rank_check, "_DIGEST_NUMBERS", 8)
    shards = [(0, 3), (3, 6), (0, 3), (3, 6)]
    assert check(*(Rows(*classes) for classes in shards)) == [None] * 4
    for place in ((0, 0), (2, 3)):
        raised = check(*(Rows(*classes, place if rank == 3 else None) for rank, classes in enumerate(shards)))
        assert all("ranks 1 and 3 both hold classes 3 to 5, and begin with different centers" in str(e) for e in raised)
        assert all(error.is_on_all_ranks for error in raised)


def test_heads_without_copies_are_not_read(monkeypatch):
    monkeypatch.setattr(rank_check, "_digest_of_rows", lambda head: pytest.fail("read"))
    assert check(Rows(0, 3), Rows(3, 6), Rows(6, 6), Rows(6, 6)) == [None] * 4
    check_copies(Rows(0, 3), SimpleNamespace(topology=Topology()))


def outer(value):
    def schedule(step):
        return value

    return schedule


@pytest.mark.parametrize(
    "value, described",
    [
        ((1, 2.0, "a", None), (1, 2.0, "a", None)),
        ({"custom_white_list": {"b", "a"}}, {"custom_white_list": ["a", "b"]}),
        (abs, "builtins.abs"),
        (outer(1), "tests.engine.test_rank_check.outer.<locals>.schedule"),
        (CombinedMargin(1.0, 0.5, 0.0), "plsc.losses.margins.combined.CombinedMargin(m1=1.0, m2=0.5, m3=0.0)"),
        (
            functools.partial(paddle.optimizer.AdamW, weight_decay=0.05),
            "paddle.optimizer.adamw.AdamW(weight_decay=0.05)",
        ),
    ],
)
def test_objects_are_described_alike_in_every_process(value, described):
    assert describe_object(value) == described


def test_the_code_is_compared_not_its_version_alone(monkeypatch, tmp_path):
    shutil.copytree(Path(rank_check.__file__).parents[1], tmp_path / "plsc", ignore=shutil.ignore_patterns("*.pyc"))
    own = describe_program(Topology())["version of plsc"]
    monkeypatch.setattr(rank_check, "__file__", str(tmp_path / "plsc" / "engine" / "rank_check.py"))
    assert describe_program(Topology())["version of plsc"] == own
    with open(tmp_path / "plsc" / "losses" / "fused.py", "a") as file:
        file.write("# changed\n")
    changed = describe_program(Topology())["version of plsc"]
    assert changed != own and changed.startswith(plsc.__version__)


# Case of the worker -> class of the error on both ranks, and words of its message.
EXPECTED = {
    "num_classes": ("DistributedError", "the ranks do not agree: num_classes is 41 on rank 0 and 45 on rank 1;"),
    "seed": ("DistributedError", "seed is 0 on rank 0 and 1 on rank 1;"),
    "lr": ("DistributedError", "lr is 0.1 on rank 0 and 0.2 on rank 1;"),
    "loss_type": ("DistributedError", "loss_type is dist_arcface on rank 0 and dist_cosface on rank 1;"),
    "emb_dim": ("DistributedError", "emb_dim is 16 on rank 0 and 8 on rank 1; network is ResNetTiny of"),
    "train_batch_size": ("DistributedError", "train_batch_size is 5 on rank 0 and 6 on rank 1;"),
    "train_epochs": ("DistributedError", "train_epochs is 1 on rank 0 and 2 on rank 1;"),
    "test_period": ("DistributedError", "test_period is 0 on rank 0 and 1 on rank 1;"),
    "log_period": ("DistributedError", "log_period is 1 on rank 0 and 2 on rank 1;"),
    "model_parallel": ("DistributedError", "model_parallel is False on rank 0 and True on rank 1;"),
    "with_test": ("DistributedError", "with_test is False on rank 0 and True on rank 1;"),
    "model_save_dir": ("DistributedError", "model_save_dir is "),
    "lr_schedule": ("DistributedError", "lr_schedule is __main__.slow on rank 0 and __main__.fast on rank 1;"),
    "learning rate": ("DistributedError", "the learning rate of step 1 is 0.1 on rank 0 and 0.2 on rank 1;"),
    "margin_function": ("DistributedError", "m2=0.5, m3=0.0) on rank 0 and"),
    "network": ("DistributedError", "the ranks do not agree: network is ResNetTiny of"),
    "images": ("DistributedError", "number of training images is 30 on rank 0 and 20 on rank 1;"),
    "classes": ("DistributedError", "classes of the training data is known by name, "),
    "no data": ("DataError", "rank 1: data folder '"),
    "contradiction": ("ConfigError", "rank 1: loss_type 'dist_softmax' has no margin, but one is set"),
    "observer": ("ConfigError", "rank 1: observer: got 'tensorboard' (str), expected an instance"),
    "broken data set": ("DataError", "rank 1: train_dataset: got int, expected an object with len() and [i]"),
    "no checkpoint": ("CheckpointError", "rank 1: checkpoint '"),
    "own": ("NoneType", "None"),
    "readers": ("NoneType", "None"),
    "broken reader": ("DataError", "the training data cannot be read: rank 1: ZeroDivisionError: "),
    "checkpoint": ("DistributedError", "checkpoint is 0 ("),
    "test": ("DistributedError", "the ranks do not agree: checkpoint is 0 ("),
    "by name": ("CheckpointError", "class 0 was 'a' and is 'f' now"),
}


@pytest.mark.slow
@pytest.mark.ranks
def test_ranks_that_differ_or_fail_alone_end_together_with_the_same_error(data_dir, tmp_path):
    lines = (data_dir / "label.txt").read_text().splitlines(keepends=True)
    names = list("abcdef")
    (data_dir / "classes.txt").write_text("\n".join(names))
    for copy in ("copy", "fewer", "renamed", "reordered"):
        shutil.copytree(data_dir, tmp_path / copy)
    (tmp_path / "fewer" / "label.txt").write_text("".join(lines[:20]))
    (tmp_path / "renamed" / "classes.txt").write_text("\n".join([*names[:5], "g"]))
    (tmp_path / "reordered" / "classes.txt").write_text("\n".join(names[::-1]))
    (tmp_path / "rows.json").write_text(json.dumps([5, 4, 3, 2, 1, 0, 6]))  # class 6 has no name and no image
    _, output = launch(2, "disagreement_worker.py", tmp_path, log_dir=tmp_path / "log")
    for log in sorted((tmp_path / "log").glob("workerlog.*")):
        found = [json.loads(line[5:]) for line in log.read_text().splitlines() if line.startswith("CASE ")]
        assert [case for case, _, _ in found] == list(EXPECTED), output[-8000:]
        for case, kind, message in found:
            assert (kind, EXPECTED[case][1] in message) == (EXPECTED[case][0], True), (case, kind, message)
    rows = [json.loads(line[5:]) for line in output.splitlines() if line.startswith("ROWS ")]
    assert [[0, 4], True] in rows and [[4, 7], True] in rows


@pytest.mark.parametrize("setting", ["class_weights", "class_counts"])
def test_files_of_numbers_are_compared_by_what_they_hold(setting, tmp_path):
    def described(text):
        (tmp_path / "numbers.txt").write_text(text)
        return describe_settings(Config(**{setting: str(tmp_path / "numbers.txt")}))[setting]

    assert described("1\n2\n") == described("1.0\n2.0\n") != described("1\n3\n")
    assert str(tmp_path / "numbers.txt") in described("1\n2\n")
    with pytest.raises(ConfigError, match=f"{setting}: .*numbers.txt: line 1 is 'x', expected a number"):
        described("x\n")
