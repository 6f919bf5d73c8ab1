"""Re-sharding and averaging checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

from plsc import CheckpointError
from plsc.checkpoint import Checkpoint, Part, reader, save_checkpoint, tools
from plsc.distributed.collectives import Collectives
from plsc.utils.ranges import shard_ranges
from tests._support.manifests import downgrade

CLASSES = 11


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(reader, "BLOCK_BYTES", 64)


def save(root, name="0", *, seed=0, ranks=1, network="a:Net", dim=5):
    rng = np.random.default_rng(seed)
    mask = np.array([0, -np.inf], np.float32)
    parts = [
        Part("backbone.w", rng.standard_normal([3, 4], np.float32)),
        Part("backbone.half", rng.standard_normal([9], np.float32).view(np.uint32).__rshift__(16).astype(np.uint16)),
        Part("backbone.count", np.array([seed + 3])),
        Part("backbone.mask", mask, is_finite=False),
        Part("backbone.scalar", np.float32(seed)),
        Part("optimizer.w:velocity", rng.standard_normal([3, 4], np.float32)),
        Part("statistics.mean", rng.standard_normal([ranks, 4], np.float32)),
        Part("classes.ends", np.arange(CLASSES)),
        Part("head.optimizer:step", np.array([7])),
        Part("head.margin:mean", np.array([1.0 + seed])),
    ]
    for rows in shard_ranges(CLASSES, ranks):
        for key in ("weight", "weight:velocity"):
            value = np.random.default_rng([seed, len(key)]).standard_normal([CLASSES, dim], np.float32)
            parts.append(Part(f"head.{key}", value[rows.start : rows.stop], offset=rows.start, rows=CLASSES))
    about = {"epoch": seed, "step": 10 * seed, "network": network, "classes": {"digest": "x"}}
    return save_checkpoint(root, name, parts=parts, about=about, collectives=Collectives())


def content(folder):
    saved = Checkpoint(folder)
    return {name: saved.read(name) for name in saved.names()}


def assert_same_files(one, other):
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def test_resharding_there_and_back_gives_the_same_bytes(tmp_path):
    """11 classes on 1, 2, 3, 4 and 1 ranks: unequal shards; files are those that so many ranks write."""
    first = folder = save(tmp_path / "1")
    for ranks in (2, 3, 4):
        folder = tools.reshard(folder, tmp_path / f"to-{ranks}", ranks=ranks)
        Checkpoint(folder).verify()
        written = save(tmp_path / f"by-{ranks}", ranks=ranks)
        for path in written.glob("classes-*"):
            assert path.read_bytes() == (folder / path.name).read_bytes()
        assert len(list(folder.glob("classes-*"))) == ranks
        for name, value in content(first).items():
            np.testing.assert_array_equal(Checkpoint(folder).read(name), value)
    assert_same_files(tools.reshard(folder, tmp_path / "back", ranks=1), first)


def test_more_ranks_than_classes(tmp_path):
    folder = tools.reshard(save(tmp_path / "a"), tmp_path / "b", ranks=CLASSES + 2)
    assert len(Checkpoint(folder).parts("head.weight")) == CLASSES
    assert_same_files(tools.reshard(folder, tmp_path / "c", ranks=1), tmp_path / "a" / "0")


def test_a_checkpoint_without_digests_gets_them_by_resharding(tmp_path):
    folder = save(tmp_path / "a", ranks=2)
    before = content(folder)
    downgrade(folder)
    resharded = tools.reshard(folder, tmp_path / "b", ranks=3)
    assert Checkpoint(resharded).has_digests
    for name, value in content(resharded).items():
        np.testing.assert_array_equal(value, before[name])


def test_resharding_reads_blocks_and_overwrites_nothing(tmp_path, monkeypatch):
    folder, largest = save(tmp_path / "a", ranks=2), []
    real = reader.Checkpoint.read
    monkeypatch.setattr(
        reader.Checkpoint, "read", lambda *args, **options: largest.append(real(*args, **options)) or largest[-1]
    )
    tools.reshard(folder, tmp_path / "b", ranks=3)
    assert max(value.nbytes for value in largest) <= 64
    with pytest.raises(CheckpointError, match="b exists and is never overwritten; name another folder"):
        tools.reshard(folder, tmp_path / "b", ranks=3)


def test_a_damaged_checkpoint_is_not_resharded(tmp_path):
    folder = save(tmp_path / "a")
    file = folder / "classes-000000000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(CheckpointError, match=f"{file.name}: tensor 'head.weight.*differs from what was written"):
        tools.reshard(folder, tmp_path / "b", ranks=2)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def as_float(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def test_the_mean_is_that_of_the_weights_and_the_rest_is_of_the_last(tmp_path):
    folders = [save(tmp_path / str(seed), seed=seed, ranks=seed + 1) for seed in range(3)]
    folder = tools.average(folders, tmp_path / "mean")
    Checkpoint(folder).verify()
    before, mean = [content(folder) for folder in folders], content(folder)
    assert set(mean) == {
        *(name for name in before[0] if name.startswith(("backbone.", "classes."))),
        "head.weight",
        "head.margin:mean",
    }
    for name in ("backbone.w", "backbone.scalar", "head.weight", "backbone.mask"):
        expected = np.mean([part[name].astype(np.float64) for part in before], axis=0).astype(np.float32)
        np.testing.assert_array_equal(mean[name], expected)
    expected = np.mean([as_float(part["backbone.half"]) for part in before], axis=0)
    np.testing.assert_allclose(as_float(mean["backbone.half"]), expected, rtol=2**-8)
    for name in ("backbone.count", "head.margin:mean", "classes.ends"):
        np.testing.assert_array_equal(mean[name], before[-1][name])
    saved = Checkpoint(folder)
    assert len(saved.parts("head.weight")) == 3 and saved.about["epoch"] == 2
    assert saved.about["averaged"] == list(map(str, folders))


def test_rounding_to_bfloat16_is_to_the_nearest_and_ties_to_even():
    values = np.array([1.0, 1.0 + 2**-8, 1.0 + 3 * 2**-8, 1.0 + 2**-8 + 2**-12, -2.5])
    found = as_float(tools.from_float64(values, np.dtype(np.uint16)))
    np.testing.assert_array_equal(found, [1.0, 1.0, 1.0 + 2**-6, 1.0 + 2**-7, -2.5])


@pytest.mark.parametrize(
    "other, message",
    [
        ({"network": "b:Net"}, "the network of one is b:Net, of the other a:Net"),
        ({"dim": 4}, "are not of one network and loss: they differ in 1 tensor, the first 'head.weight'"),
    ],
)
def test_different_networks_are_not_averaged(tmp_path, other, message):
    with pytest.raises(CheckpointError, match=message):
        tools.average([save(tmp_path / "a", **other), save(tmp_path / "b")], tmp_path / "mean")
    with pytest.raises(CheckpointError, match="got 1 checkpoint to average, expected two or more"):
        tools.average([tmp_path / "b"], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
