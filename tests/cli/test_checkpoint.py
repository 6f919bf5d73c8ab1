"""`plsc checkpoint`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from plsc.checkpoint import Checkpoint, Part, save_checkpoint
from plsc.distributed.collectives import Collectives
from plsc.models.tiny import ResNetTiny
from plsc.utils.ranges import shard_ranges
from tests._support.command_line import in_process
from tests._support.manifests import downgrade
from tests._support.torch_zip import torch_save


@pytest.fixture
def run(monkeypatch, capfd):
    """`plsc checkpoint ...` in this process; returns its output, as an object where --json is given."""

    command = in_process(monkeypatch, capfd, "checkpoint")

    def call(*arguments, status=0):
        output, errors = command(*arguments, status=status)
        return json.loads(output) if "--json" in arguments else output + errors

    return call


@pytest.fixture
def root(tmp_path):
    """Three checkpoints of two ranks."""
    for epoch in range(3):
        parts = [Part("backbone.w", np.full([2, 2], epoch, np.float32))]
        for rows in shard_ranges(5, 2):
            parts.append(Part("head.weight", np.full([rows.size, 4], epoch, "f4"), offset=rows.start, rows=5))
        about = {"epoch": epoch + 1, "step": 10 * (epoch + 1)}
        save_checkpoint(tmp_path / "output", str(epoch), parts=parts, about=about, collectives=Collectives())
    return tmp_path / "output"


def damage(folder):
    file = folder / "classes-000000003.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")


def test_list_and_inspect(run, root):
    rows = run("list", root, "--json")
    assert [(row["path"], row["epoch"], row["step"], row["ranks"]) for row in rows] == [
        (str(root / str(epoch)), epoch + 1, 10 * (epoch + 1), 2) for epoch in range(3)
    ]
    (root / "1" / "manifest.json").write_text("{}")
    lines = run("list", root).splitlines()
    assert lines[0] == f"{root}/0: 1 epoch done, step 10, 0.00 MiB, 2 ranks"
    assert lines[1].startswith(f"{root}/1: {root}/1/manifest.json: not a checkpoint's manifest")
    found = run("inspect", root, "--json")
    assert found["path"] == str(root / "2") and found["has_digests"] and found["about"] == {"epoch": 3, "step": 30}
    assert found["tensors"][1] == {"name": "head.weight", "shape": [5, 4], "dtype": "float32", "parts": 2}
    assert "metrics.json" not in run("inspect", root / "0") and found["metrics"] is None
    (root / "0" / "metrics.json").write_text('{"lfw/accuracy": 0.5}')
    printed = run("inspect", root / "0")
    assert "head.weight: [5, 4] of float32, 2 parts" in printed and '  metrics.json: {"lfw/accuracy": 0.5}' in printed


def test_list_of_no_folder(run, tmp_path):
    assert "none: no such folder; expected one that holds checkpoints" in run("list", tmp_path / "none", status=1)
    assert run("list", tmp_path, "--json") == []
    assert run("list", tmp_path) == f"{tmp_path}: holds no checkpoint\n"


@pytest.mark.parametrize("words", [("list",), ("verify",), ("average", "output/0")])
def test_a_url_is_refused_whole(run, tmp_path, words):
    options = ("--to", tmp_path / "mean") if words[0] == "average" else ()
    refusal = run(*words, "s3://KEY:SECRET@bucket/run", *options, status=1)
    assert refusal == "plsc: s3://bucket/run: plsc checkpoint takes local folders; copy the checkpoints to one first\n"


def test_verify_names_what_is_damaged(run, root):
    assert run("verify", root).splitlines() == [f"{root}/{epoch}: sound" for epoch in range(3)]
    damage(root / "1")
    assert "classes-000000003.safetensors: tensor 'head.weight', rows 3 to 5, differs" in run("verify", root, status=1)
    found = run("verify", root, "--json", status=1)
    assert [entry["sound"] for entry in found.values()] == [True, False, True]
    assert run("verify", root / "2", "--json") == {str(root / "2"): {"sound": True, "damages": [], "has_digests": True}}
    downgrade(root / "0")
    assert run("verify", root / "0") == f"{root / '0'}: has no digests, and all of its files are of the right size\n"
    absence = run("verify", root / "9", status=1)
    assert "does not exist" in absence and absence.endswith("; name another folder\n")


def test_reshard_and_merge(run, root, tmp_path):
    found = run("reshard", root, tmp_path / "three", "--ranks", 3, "--json")
    assert (found["path"], found["ranks"]) == (str(tmp_path / "three"), 3)
    assert "wrote" in run("merge", tmp_path / "three", tmp_path / "whole")
    merged = load_file(tmp_path / "whole" / "classes-000000000.safetensors")
    np.testing.assert_array_equal(merged["head.weight"], np.full([5, 4], 2, "f4"))
    assert "whole exists and is never overwritten" in run("merge", root, tmp_path / "whole", status=1)


def test_average(run, root, tmp_path):
    run("average", root / "0", root / "1", "--to", tmp_path / "mean")
    np.testing.assert_array_equal(Checkpoint(tmp_path / "mean").read("backbone.w"), np.full([2, 2], 0.5))


def test_the_average_of_several_runs_is_warned_of(run, tmp_path, caplog):
    for number, identifier in enumerate(("this", "this", "another")):
        parts = [Part("backbone.w", np.full([2], number, np.float32))]
        about = {"run": identifier}
        save_checkpoint(tmp_path, str(number), parts=parts, about=about, collectives=Collectives())
    run("average", tmp_path / "0", tmp_path / "1", "--to", tmp_path / "mean")
    assert not caplog.records
    run("average", tmp_path / "0", tmp_path / "2", "--to", tmp_path / "mean of two")
    assert "the checkpoints to average are of 2 runs" in caplog.text


def test_prune_deletes_only_when_asked(run, root):
    for flags in ((), ("--dry-run",)):
        output = run("prune", root, "--keep", 1, *flags)
        assert f"{root}/1: would be deleted" in output and "nothing was deleted: add --yes to delete" in output
    assert len(run("list", root, "--json")) == 3
    assert "expected one of them" in run("prune", root, "--keep", 1, "--yes", "--dry-run", status=1)
    found = run("prune", root, "--keep", 2, "--yes", "--json")
    assert found == {"deleted": [str(root / "0")], "kept": [str(root / "1"), str(root / "2")]}
    damage(root / "2")
    refusal = run("prune", root, "--keep", 1, "--yes", status=1)
    assert "differs from what was written" in refusal and "; nothing was deleted" in refusal
    assert sorted(path.name for path in root.iterdir()) == ["1", "2"]
    assert "nothing to delete" in run("prune", root, "--keep", 2, "--yes")


def test_import(run, tmp_path, caplog):
    """A folder of arcface_torch becomes a checkpoint that the other commands take."""
    caplog.set_level("INFO", "plsc")
    rng = np.random.default_rng(0)
    shapes = ResNetTiny(8, (3, 16, 16)).state_dict()
    network = {name: rng.random(value.shape, np.float32) for name, value in shapes.items()}
    network["head.1.weight"] = network["head.1.weight"].T  # as PyTorch has it
    (tmp_path / "in").mkdir()
    for rank, size in enumerate((3, 2)):
        head = {"weight": np.full([size, 8], rank, np.float32)}
        content = {"epoch": 4, "global_step": 9, "state_dict_backbone": network, "state_dict_softmax_fc": head}
        torch_save(tmp_path / "in" / f"checkpoint_gpu_{rank}.pt", content)
    flags = ["--model-name", "ResNetTiny", "--image-shape", "3,16,16", "--strict"]
    told = run("import", tmp_path / "in", tmp_path / "out", *flags, "--ranks", 3)
    assert "5 class centers of 8 numbers in 2 files, without momentum" in caplog.text
    assert f"wrote {tmp_path}/out: " in told and "3 ranks" in told
    (row,) = [run("inspect", tmp_path / "out", "--json")]
    assert (row["epoch"], row["step"], row["ranks"]) == (4, 9, 3)
    found = run("import", tmp_path / "in", tmp_path / "again", *flags, "--json", "--pixel-std", "58,57,57.5")
    assert Checkpoint(tmp_path / "out").about["settings"]["pixel_std"] == [127.5] * 3
    assert Checkpoint(tmp_path / "again").about["settings"]["pixel_std"] == [58, 57, 57.5]
    (shown,) = [line for line in run("inspect", tmp_path / "again").splitlines() if "settings but for defaults" in line]
    assert '"pixel_std": [58.0, 57.0, 57.5]' in shown and '"loss_type": "dist_arcface"' in shown
    assert "pixel_mean" not in shown and "pixel_mean" in Checkpoint(tmp_path / "again").about["settings"]
    assert found["path"] == str(tmp_path / "again") and found["ranks"] == 1
    assert "never overwritten" in run("import", tmp_path / "in", tmp_path / "out", *flags, status=1)
    assert "accepted: " in run("import", tmp_path / "in", tmp_path / "x", "--model-name", "ResNetTin", status=1)
