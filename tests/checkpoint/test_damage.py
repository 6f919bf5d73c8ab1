"""Damage to a checkpoint: each is an error that names the file and, where it is in a tensor, the tensor and rows."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from plsc import CheckpointError
from plsc.checkpoint import Checkpoint, Part, reader, save_checkpoint, writer
from plsc.distributed.collectives import Collectives
from plsc.utils.ranges import Range, shard_ranges
from tests._support.manifests import INDEX, downgrade, edit_manifest

ROW = 5 * 4  # bytes
CLASSES = "classes-000000005.safetensors"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(reader, "BLOCK_BYTES", 2 * ROW)


def save(root, name="0", seed=0, ranks=3):
    """15 class centers in three files, each of three blocks, and a backbone."""
    rng = np.random.default_rng(seed)
    centers, velocity = rng.standard_normal([2, 15, 5], np.float32)
    parts = [Part("backbone.w", rng.standard_normal([4, 4])), Part("optimizer.step", np.array([seed]))]
    for rows in shard_ranges(15, ranks):
        for key, value in (("weight", centers), ("weight:velocity", velocity)):
            parts.append(Part(f"head.{key}", value[rows.start : rows.stop], offset=rows.start, rows=15))
    return save_checkpoint(root, name, parts=parts, about={"seed": seed}, collectives=Collectives())


def read_all(folder):
    saved = Checkpoint(folder)
    for name in saved.names():
        saved.read(name)


def flip(file, at, mask=1):
    data = bytearray(file.read_bytes())
    data[at] ^= mask
    file.write_bytes(data)


def test_200_flipped_bytes_are_found(tmp_path):
    """Over all files, as often in the small ones as in the large ones; all but the index are found by reading too."""
    folder, rng = save(tmp_path), random.Random(3)
    files = sorted(folder.iterdir())
    assert len(files) == 6
    for number in range(200):
        file = files[number % len(files)]
        whole, at = file.read_bytes(), rng.randrange(file.stat().st_size)
        flip(file, at, rng.randrange(1, 256))
        with pytest.raises(CheckpointError, match=re.escape(file.name)):
            Checkpoint(folder).verify()
        if file.name != INDEX:
            with pytest.raises(CheckpointError, match=re.escape(file.name)):
                read_all(folder)
        file.write_bytes(whole)
    Checkpoint(folder).verify()


def flip_in_rows(file):
    """A byte of row 7 of the tensor whose data is last in the file, that of 'head.weight:velocity'."""
    flip(file, file.stat().st_size - 3 * ROW + 1)


def zero_page(file):
    data = file.read_bytes()
    file.write_bytes(data[: -3 * ROW] + bytes(2 * ROW) + data[-ROW:])


@pytest.mark.parametrize("damage", [flip_in_rows, zero_page])
def test_damaged_rows_are_named_and_the_others_are_read(tmp_path, damage):
    folder = save(tmp_path)
    before = Checkpoint(folder).read("head.weight:velocity")
    damage(folder / CLASSES)
    saved, name = Checkpoint(folder), "head.weight:velocity"
    message = f"{CLASSES}: tensor '{name}', rows 7 to 9, differs from what was written: its digest is "
    for rows in (None, Range(7, 9), Range(8, 15), Range(0, 8)):
        with pytest.raises(CheckpointError, match=message):
            saved.read(name, rows)
    with pytest.raises(CheckpointError, match=message):
        saved.read_rows(name, np.array([8, 0]))
    for rows in (Range(0, 7), Range(9, 15)):
        np.testing.assert_array_equal(saved.read(name, rows), before[rows.start : rows.stop])
    np.testing.assert_array_equal(saved.read_rows(name, np.array([9, 0])), before[[9, 0]])
    assert [message in str(found) for found in saved.damages()] == [True]


def test_every_damage_is_listed(tmp_path):
    folder = save(tmp_path)
    flip_in_rows(folder / CLASSES)
    flip(folder / CLASSES, (folder / CLASSES).stat().st_size - 1)
    flip(folder / "model.safetensors", 20)
    flip(folder / INDEX, 3)
    found = [str(damage).split(": ", 1)[1] for damage in Checkpoint(folder).damages()]
    assert sorted(text[:45] for text in found) == [
        "differs from what was written: its digest is ",
        "tensor 'head.weight:velocity', rows 7 to 9, d",
        "tensor 'head.weight:velocity', rows 9 to 10, ",
        "the header differs from what was written: its",
    ]


def test_a_read_takes_the_blocks_that_it_needs(tmp_path, monkeypatch):
    saved, digested = Checkpoint(save(tmp_path)), []
    real = reader.digest_of
    monkeypatch.setattr(reader, "digest_of", lambda data: digested.append(len(data)) or real(data))
    saved.read("head.weight", Range(6, 8))
    header = digested.pop(0)
    assert header > 2 * ROW and digested == [2 * ROW, 2 * ROW]  # rows 5 to 7 and 7 to 9
    digested.clear()
    saved.read_rows("head.weight", np.array([9, 9, 5]))
    assert digested == [2 * ROW, ROW]


def swap_data_offsets(file):
    """The header says of each of two tensors that it lies where the other one does."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    one, other = header
    header[one]["data_offsets"], header[other]["data_offsets"] = (
        header[other]["data_offsets"],
        header[one]["data_offsets"],
    )
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(text) == length
    file.write_bytes(data[:8] + text + data[8 + length :])


def swap_tensors(file):
    tensors = load_file(file)
    one, other = tensors
    save_file({one: tensors[other], other: tensors[one]}, file)


@pytest.mark.parametrize(
    "damage", [swap_data_offsets, swap_tensors, lambda file: file.write_bytes(bytes(file.stat().st_size))]
)
def test_a_damaged_shard_is_named(tmp_path, damage):
    folder = save(tmp_path)
    size = (folder / CLASSES).stat().st_size
    damage(folder / CLASSES)
    if (folder / CLASSES).stat().st_size != size:
        edit_manifest(folder, lambda m: m["files"][CLASSES].update(bytes=(folder / CLASSES).stat().st_size))
    for read in (read_all, lambda folder: Checkpoint(folder).verify()):
        with pytest.raises(CheckpointError, match=f"{CLASSES}: "):
            read(folder)


@pytest.mark.parametrize("what", [CLASSES, "model.safetensors", "manifest.json"])
def test_a_file_of_another_epoch_or_run_is_named(tmp_path, what):
    folder, other = save(tmp_path / "a"), save(tmp_path / "b", seed=1)
    assert (folder / what).stat().st_size == (other / what).stat().st_size
    (folder / what).write_bytes((other / what).read_bytes())
    for read in (read_all, lambda folder: Checkpoint(folder).verify()):
        with pytest.raises(CheckpointError, match="safetensors: tensor '.*differs from what was written"):
            read(folder)


def test_a_missing_index_is_named(tmp_path):
    folder = save(tmp_path)
    (folder / INDEX).unlink()
    with pytest.raises(CheckpointError, match=f"{INDEX}: found no such file"):
        Checkpoint(folder)


def test_bytes_behind_the_tensors_are_damage(tmp_path):
    folder = save(tmp_path)
    file = folder / CLASSES
    file.write_bytes(file.read_bytes() + b"\0" * 8)
    edit_manifest(folder, lambda manifest: manifest["files"][CLASSES].update(bytes=file.stat().st_size))
    read_all(folder)
    with pytest.raises(CheckpointError, match=f"{CLASSES}: differs from what was written"):
        Checkpoint(folder).verify()


def test_a_change_of_the_manifest_is_damage(tmp_path):
    file = save(tmp_path) / "manifest.json"
    file.write_bytes(file.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(CheckpointError, match="manifest is damaged: the digest of its content is .*, expected "):
        Checkpoint(tmp_path)
    content = json.loads(file.read_text())
    del content["digest"]
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="manifest is damaged: its second line holds no digest"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("version", [3, 0, "2", True, None])
def test_an_unknown_version_is_an_error(tmp_path, version):
    edit_manifest(save(tmp_path), lambda manifest: manifest.update(version=version))
    with pytest.raises(CheckpointError, match=f"version {version!r}, expected 'plsc-checkpoint' version 1 or 2"):
        Checkpoint(tmp_path)


def test_a_checkpoint_without_digests_is_read_and_said_once(tmp_path, caplog):
    caplog.set_level("INFO", "plsc")
    folder = save(tmp_path)
    before = {name: Checkpoint(folder).read(name) for name in Checkpoint(folder).names()}
    assert "without digests" not in caplog.text
    downgrade(folder)
    saved = Checkpoint(folder)
    assert not saved.has_digests and set(saved.names()) == set(before)
    for name, value in before.items():
        np.testing.assert_array_equal(saved.read(name), value)
    np.testing.assert_array_equal(saved.read("head.weight", Range(4, 11)), before["head.weight"][4:11])
    saved.verify()
    assert caplog.text.count("0: was written by an earlier version, without digests") == 1


def test_what_the_disk_returns_is_compared_before_a_checkpoint_gets_its_name(tmp_path, monkeypatch):
    real = writer.sync

    def sync(file):
        real(file)
        if file.name.endswith(CLASSES):
            os_flip(file.name)

    def os_flip(name):
        with open(name, "r+b") as file:
            file.seek(-1, 2)
            last = file.read()
            file.seek(-1, 2)
            file.write(bytes([last[0] ^ 16]))

    monkeypatch.setattr(writer, "sync", sync)
    with pytest.raises(CheckpointError, match=f"{CLASSES}: what is read back differs from what was written"):
        save(tmp_path)
    assert list(tmp_path.iterdir()) == []
