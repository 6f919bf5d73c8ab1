"""Checkpoints: whole or not at all, readable on any sharding, never in the way of what is there."""

from __future__ import annotations

import json
import os
import resource
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc import CheckpointError
from plsc.checkpoint import (
    Checkpoint,
    Part,
    delete_checkpoint,
    list_checkpoints,
    reader,
    save_checkpoint,
    try_folder,
    writer,
)
from plsc.distributed.collectives import Collectives
from plsc.utils.ranges import Range, shard_ranges
from tests._support.manifests import edit_manifest
from tests._support.ranks import ThreadRanks

WEIGHT = np.arange(35, dtype=np.float32).reshape(7, 5)


def parts(ranks=3):
    shards = [Part("head.weight", WEIGHT[r.start : r.stop], offset=r.start, rows=7) for r in shard_ranges(7, ranks)]
    return [Part("backbone.w", np.eye(2)), Part("optimizer.step", np.float32(3).reshape([])), *shards]


def save(root, name="0", **options):
    return save_checkpoint(root, name, parts=parts(**options), about={"epoch": 1}, collectives=Collectives())


def weight(manifest):
    return manifest["tensors"]["head.weight"]


@given(st.integers(1, 9), st.integers(0, 7), st.integers(0, 7))
def test_any_range_is_read_from_any_sharding(tmp_path_factory, ranks, one, other):
    rows = Range(min(one, other), max(one, other))
    saved = Checkpoint(save(tmp_path_factory.mktemp("any"), ranks=ranks))
    assert np.array_equal(saved.read("head.weight", rows), WEIGHT[rows.start : rows.stop])


@settings(max_examples=30)
@given(st.integers(1, 9), st.lists(st.integers(0, 6), max_size=12), st.integers(1, 8))
def test_any_rows_are_read_from_any_sharding_block_by_block(ranks, rows, block):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "BLOCK_BYTES", block * 20)
        saved = Checkpoint(save(folder, ranks=ranks))
        assert np.array_equal(saved.read_rows("head.weight", np.asarray(rows, np.int64)), WEIGHT[rows])


def test_whole_tensors_scalars_and_progress_come_back(tmp_path):
    saved = Checkpoint(save(tmp_path))
    assert np.array_equal(saved.read("backbone.w"), np.eye(2))
    assert saved.read("optimizer.step") == 3
    assert (saved.shape("head.weight"), saved.about) == ([7, 5], {"epoch": 1})


def test_file_names_hold_no_rank_and_no_world_size(tmp_path):
    names = {path.name for path in save(tmp_path).iterdir()}
    assert names == {
        "manifest.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "classes-000000000.safetensors",
        "classes-000000003.safetensors",
        "classes-000000005.safetensors",
    }


def test_the_newest_of_a_folder_is_opened_and_old_ones_are_deleted(tmp_path):
    for name in ("2", "9", "10", "11.40"):
        save(tmp_path, name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "3").mkdir()
    assert Checkpoint(tmp_path).path.name == "11.40"
    for path in list_checkpoints(tmp_path)[:-2]:
        delete_checkpoint(path)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["10", "11.40"]
    assert {path.name for path in tmp_path.iterdir()} == {"10", "11.40", "notes", "3"}


def test_an_existing_checkpoint_is_never_overwritten(tmp_path):
    save(tmp_path)
    with pytest.raises(CheckpointError, match="exists and is never overwritten"):
        save(tmp_path)


def test_a_write_that_fails_leaves_no_checkpoint(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_write_file", full)
    with pytest.raises(CheckpointError, match="was not written: .*No space left"):
        save(tmp_path)
    assert list_checkpoints(tmp_path) == []
    monkeypatch.undo()
    assert Checkpoint(save(tmp_path)).path.name == "0"


def save_on_three_ranks(root):
    ranks, shards = ThreadRanks(3), [parts()[:3], parts()[3:4], parts()[4:]]
    with ThreadPoolExecutor(3) as pool:
        return [
            pool.submit(save_checkpoint, root, "0", parts=shards[rank], about={}, collectives=ranks[rank])
            for rank in range(3)
        ]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("No space left")])
def test_a_failure_on_one_rank_is_raised_on_all_and_leaves_nothing(tmp_path, monkeypatch, error):
    real = writer._write_file

    def full_on_rank_2(path, parts):
        if path.name.endswith("5.safetensors"):
            raise error
        return real(path, parts)

    monkeypatch.setattr(writer, "_write_file", full_on_rank_2)
    for written in save_on_three_ranks(tmp_path / "out"):
        with pytest.raises(CheckpointError, match="was not written: rank 2: .*No space left"):
            written.result()
    assert list((tmp_path / "out").iterdir()) == []


def test_all_ranks_write_one_checkpoint(tmp_path):
    for written in save_on_three_ranks(tmp_path):
        assert written.result() == tmp_path / "0"
    assert np.array_equal(Checkpoint(tmp_path).read("head.weight"), WEIGHT)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_a_file_cut_short_is_named(tmp_path):
    file = save(tmp_path) / "classes-000000003.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"classes-000000003.safetensors: found \d+ bytes, expected \d+"):
        Checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match="found no such file"):
        Checkpoint(tmp_path)


KINDS = [
    "",
    "[]",
    "{}",
    "null",
    '"text"',
    "3",
    "[" * 100_000,
    "9" * 5000,
    "\xff",
    "\0",
    '{"format": {}, "version": []}',
]


@pytest.mark.parametrize("text", [*KINDS, json.dumps({"format": "plsc-checkpoint", "version": 99})])
def test_a_manifest_of_another_kind_is_named(tmp_path, text):
    (save(tmp_path) / "manifest.json").write_bytes(text.encode("latin1"))
    with pytest.raises(CheckpointError, match="manifest"):
        Checkpoint(tmp_path)


def test_a_missing_tensor_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no tensor 'head.bias'"):
        Checkpoint(save(tmp_path)).read("head.bias")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "", "..", "a/b"])
def test_a_file_outside_of_the_folder_is_refused(tmp_path, name):
    edit_manifest(save(tmp_path), lambda manifest: manifest["files"].update({name: {"bytes": 1, "digest": "0" * 16}}))
    with pytest.raises(CheckpointError, match="expected the name of a file in the checkpoint's folder"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "edit, message",
    [
        (
            lambda m: m["tensors"]["head.weight"].pop("shape"),
            "manifest is damaged: tensors.head.weight.shape: Field req",
        ),
        (lambda m: m["tensors"]["head.weight"]["parts"][0].pop("rows"), r"head.weight.parts.0.rows: Field required"),
        (lambda m: m["tensors"]["head.weight"]["parts"][0].update(file="other"), "'other', which is not among the"),
        (lambda m: m.pop("about"), "about: Field required"),
        (lambda m: m.update(about=[]), "about: Input should be a valid dictionary"),
        (
            lambda m: m["files"]["model.safetensors"].update(bytes="1"),
            "files.model.safetensors.bytes: Input should be a valid int",
        ),
        (lambda m: weight(m)["shape"].append(-1), "head.weight.shape.2: Input should be greater than or equal to 0"),
        (lambda m: weight(m)["shape"].append(True), "head.weight.shape.2: Input should be a valid integer"),
        (lambda m: weight(m).update(dtype="floqt32"), "head.weight.dtype: found 'floqt32', expected one of bool"),
        (lambda m: weight(m).update(dtype="S5"), "dtype: found 'S5', expected one of bool"),
        (
            lambda m: weight(m)["parts"][1].update(offset=-3),
            "parts.1.offset: Input should be greater than or equal to 0",
        ),
        (
            lambda m: weight(m)["parts"][1].update(offset=2),
            "found rows 2 to 4 in '.*3.safe.*', expected rows from 3 on",
        ),
        (lambda m: weight(m)["parts"][2].update(rows=9), "found rows 5 to 14 in .*, expected rows from 5 on, up to 7"),
        (lambda m: weight(m)["parts"].reverse(), "found rows 5 to 7 in .*, expected rows from 0 on"),
        (lambda m: weight(m)["parts"].pop(1), "found rows 5 to 7 in .*, expected rows from 3 on"),
        (lambda m: weight(m)["parts"].pop(), "row 5 is in no file, expected rows up to 7"),
        (lambda m: weight(m)["parts"][0]["digests"].append("0" * 16), "found 2 digests, expected 1, one per"),
        (lambda m: weight(m)["parts"][0].update(digests=["0"]), "digests.0: String should match pattern"),
        (lambda m: m.update(digests="md5"), "digests: found 'md5', expected 'xxh3_64'"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, edit, message):
    edit_manifest(save(tmp_path), edit)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("rows", [Range(-1, 3), Range(5, 8)])
def test_rows_that_a_tensor_does_not_have_are_named(tmp_path, rows):
    with pytest.raises(
        CheckpointError, match=rf"rows {rows.start} to {rows.stop} of tensor 'head.weight' .*, it has 7"
    ):
        Checkpoint(save(tmp_path)).read("head.weight", rows)


def zeros(data):
    return bytes(len(data))


def long_header(data):
    return b"\xff" * 8 + data[8:]


def other_name(data):
    return data.replace(b"head.weight", b"head.weighs")


def other_shape(data):
    return data.replace(b"[2,5]", b"[5,2]")


def other_dtype(data):
    return data.replace(b"F32", b"I32")


def unknown_to_numpy(data):
    return data.replace(b'"F32","shape":[2,5]', b'"F16","shape":[4,5]').replace(b"F16", b"F8_E4M3")[: len(data)]


@pytest.mark.parametrize("damage", [zeros, long_header, other_name, other_shape, other_dtype, unknown_to_numpy])
@pytest.mark.parametrize("rows", [None, Range(3, 5), Range(4, 5)])
def test_a_file_with_damaged_content_is_named(tmp_path, damage, rows):
    file = save(tmp_path) / "classes-000000003.safetensors"
    before = file.read_bytes()
    file.write_bytes(damage(before))
    assert len(file.read_bytes()) == len(before) and file.read_bytes() != before
    with pytest.raises(CheckpointError, match=r"classes-000000003.safetensors: tensor 'head.weight' (cannot be|is)"):
        Checkpoint(tmp_path).read("head.weight", rows)


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_named(tmp_path):
    save(tmp_path, "0")
    saved = Checkpoint(tmp_path)
    delete_checkpoint(tmp_path / "0")
    for read in (lambda: saved.read("backbone.w"), saved.verify):
        with pytest.raises(
            CheckpointError, match=r"/0: .*cannot be read: the checkpoint was deleted while it was read"
        ):
            read()


@pytest.fixture
def as_nobody(tmp_path):
    """Run as a user who owns no file, where the tests run as root, whom no permission stops."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_a_folder_without_permission_is_named(tmp_path, as_nobody):
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        save(folder / "open")
        (folder / "open" / "0").chmod(0)
        for path in (folder / "open", folder / "open" / "0"):
            with pytest.raises(CheckpointError, match="open.*: cannot be read: .*Permission denied: .*; use another"):
                Checkpoint(path)
        folder.chmod(0o500)
        with pytest.raises(CheckpointError, match="Permission denied"):
            save(folder / "new")
    finally:
        folder.chmod(0o700)
        (folder / "open" / "0").chmod(0o700)
        shutil.rmtree(folder)


def test_a_full_disk_leaves_no_part_of_a_checkpoint(tmp_path):
    """No file may grow beyond 100 bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r"checkpoint .*/0 was not written: .*safetensors: .*; free space there"
        ):
            save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left"), TypeError("not JSON"), MemoryError()])
def test_whatever_stops_a_save_is_a_checkpoint_error_and_leaves_nothing(tmp_path, error):
    def failing():
        yield parts()[0]
        raise error

    with pytest.raises(CheckpointError, match="0 was not written: "):
        save_checkpoint(tmp_path, "0", parts=failing(), about={}, collectives=Collectives())
    with pytest.raises(
        CheckpointError, match="partial/manifest.json: cannot be written: TypeError: .*not JSON serializable"
    ):
        save_checkpoint(tmp_path, "0", parts=parts(), about={"a": {1}}, collectives=Collectives())
    assert list(tmp_path.iterdir()) == []


def test_a_trial_leaves_nothing(tmp_path):
    ranks, root = ThreadRanks(3), tmp_path / "new" / "out"
    (tmp_path / "new" / "out" / ".plsc-trial").mkdir(parents=True)  # of a process that was killed
    with ThreadPoolExecutor(3) as pool:
        for tried in [pool.submit(try_folder, root, ranks[rank]) for rank in range(3)]:
            tried.result()
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("act", ["write", "read"])
def test_a_trial_that_fails_on_one_rank_fails_on_all(tmp_path, monkeypatch, act):
    real_write, real_read = writer._write_file, reader.read_header

    def write_file(path, parts):
        if act == "write" and path.name.endswith("1.safetensors"):
            raise OSError(28, "No space left")
        return real_write(path, parts)

    def read_header(file):
        if act == "read" and file.name.endswith("1.safetensors"):
            raise OSError(116, "Stale file handle")
        return real_read(file)

    monkeypatch.setattr(writer, "_write_file", write_file)
    monkeypatch.setattr(reader, "read_header", read_header)
    ranks = ThreadRanks(2)
    with ThreadPoolExecutor(2) as pool:
        for tried in [pool.submit(try_folder, tmp_path, ranks[rank]) for rank in range(2)]:
            with pytest.raises(CheckpointError, match="rank [01]: .*000000001.safetensors: .*(No space|Stale file)"):
                tried.result()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("ranks", [1, 3])
def test_what_is_not_finite_is_not_written(tmp_path, bad, ranks):
    """All ranks fail with the tensor and its row; nothing is left behind."""
    threads = ThreadRanks(ranks)
    shards = [
        Part("head.weight", WEIGHT[r.start : r.stop].copy(), offset=r.start, rows=7) for r in shard_ranges(7, ranks)
    ]
    shards[-1].data[-1, 2] = bad

    def write(rank):
        with pytest.raises(CheckpointError) as caught:
            save_checkpoint(tmp_path, "0", parts=[shards[rank]], about={}, collectives=threads[rank])
        return str(caught.value)

    with ThreadPoolExecutor(ranks) as pool:
        messages = set(pool.map(write, range(ranks)))
    (message,) = messages
    where = "" if ranks == 1 else f"rank {ranks - 1}: "  # a single rank is not named
    assert f"was not written: {where}head.weight holds {bad:g} in row 6, expected finite numbers" in message
    assert not list(tmp_path.iterdir())


def test_a_constant_may_hold_infinity(tmp_path):
    mask = np.array([0, -np.inf], np.float32)
    part = Part("backbone.mask", mask, is_finite=False)
    path = save_checkpoint(tmp_path, "0", parts=[part], about={}, collectives=Collectives())
    np.testing.assert_array_equal(Checkpoint(path).read("backbone.mask"), mask)
