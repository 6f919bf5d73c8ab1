"""Random damage to the checkpoint of a run: resuming, testing and exporting find it where they read the file.

What `Checkpoint` itself finds is tested in tests/checkpoint/test_damage.py.
"""

from __future__ import annotations

import random
import shutil

import pytest

from plsc import CheckpointError
from plsc.checkpoint import Checkpoint
from plsc.engine.trainer import Trainer
from tests._support.manifests import INDEX

# Of these files testing and exporting read a part, the backbone; of the manifest all.
READ_BY_ALL = ("manifest.json", "model.safetensors")


@pytest.fixture
def saved(entry):
    """A checkpoint after one epoch; the entry resumes from it, tests it and exports it."""
    entry.train()
    entry.set_checkpoint_dir(f"{entry.model_save_dir}/0")
    entry.set_train_epochs(2)
    return Checkpoint(entry.checkpoint_dir).path


@pytest.fixture
def operations(entry, tmp_path):
    """What reads a checkpoint."""
    return {
        "verify": lambda: Checkpoint(entry.checkpoint_dir).verify(),
        "resume": lambda: Trainer(entry.config),
        "test": entry.test,
        "export": lambda: entry.convert_for_prediction(tmp_path / "exported"),
    }


def files_of(folder):
    details = ("metrics.json", "scores.npz", "classes.json")  # of the verification; nothing is restored from them
    return sorted(path.name for path in folder.iterdir() if path.name not in details)


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    path.write_bytes(data)


def cut(path, rng):
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def remove(path, rng):
    path.unlink()


def swap(path, rng):
    other = path.parent / rng.choice([name for name in files_of(path.parent) if name != path.name])
    data = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(data)


def readers_of(name):
    """What reads a file, all of it or a part."""
    if name == INDEX:  # for other programs
        return ["verify"]
    return ["verify", "resume", "test", "export"] if name in READ_BY_ALL else ["verify", "resume"]


@pytest.mark.slow
@pytest.mark.parametrize("times", [8, pytest.param(200, marks=pytest.mark.faults)])
def test_flipped_bytes_are_found(saved, operations, tmp_path, times):
    rng, whole, files = random.Random(17), tmp_path / "whole", files_of(saved)
    shutil.copytree(saved, whole)
    found, missed = dict.fromkeys(operations, 0), dict.fromkeys(operations, 0)
    for number in range(times):
        name = files[number % len(files)]
        flip(saved / name, rng)
        for operation in readers_of(name):
            try:
                operations[operation]()
            except CheckpointError as error:
                assert name in str(error)
                found[operation] += 1
            else:
                assert name == "model.safetensors", f"{operation} of a damaged {name}"
                missed[operation] += 1
        shutil.copyfile(whole / name, saved / name)
    # The optimizer and the class centers do not concern the other two.
    assert not missed["verify"] and not missed["resume"]
    assert found["test"] == found["export"] and found["test"] > missed["test"]
    for run in operations.values():
        run()


@pytest.mark.parametrize("damage", [cut, remove, swap])
def test_files_that_are_cut_or_missing_or_swapped_are_found_by_all(saved, operations, tmp_path, damage):
    rng, whole = random.Random(18), tmp_path / "whole"
    shutil.copytree(saved, whole)
    for name in files_of(saved):
        damage(saved / name, rng)
        for run in operations.values():
            with pytest.raises(CheckpointError):
                run()
        shutil.rmtree(saved)
        shutil.copytree(whole, saved)
