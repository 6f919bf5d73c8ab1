"""Disks that fail under a run: it goes on, what is saved stays whole, and it saves again when the disk works again."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plsc.checkpoint import Checkpoint, list_checkpoints
from tests._support.ranks import WORKERS, launch, run

pytestmark = [pytest.mark.slow, pytest.mark.ranks]


@pytest.fixture
def disk(tmp_path):
    """A folder on a file system of 16 MiB of its own, which tests may unmount; it is also seen at <folder>.real."""
    mounted, real = tmp_path / "disk", tmp_path / "disk.real"
    mounted.mkdir()
    real.mkdir()
    if os.geteuid():
        pytest.skip("only root may mount a file system")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", real], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this system does not let root mount a file system: {done.stderr.strip()}")
    try:
        subprocess.run(["mount", "--bind", real, mounted], check=True)
        yield mounted
    finally:
        for folder in (mounted, mounted, real):
            with contextlib.suppress(subprocess.CalledProcessError):
                subprocess.run(["umount", "--lazy", folder], check=True, capture_output=True)


def train(ranks, fault, disk):
    """(exit status, all output) of a run of ten steps in two epochs, saved at each second step."""
    settings = {
        **{"model": "batch norm", "verify": True, "auto_resume": True, "num_workers": 0, "train_epochs": 2},
        **{"test_period": 2, "save_steps": 2, "save_keep": 1, "max_last_checkpoint_num": 1},
        **{"train_batch_size": 12 // ranks, "model_save_dir": str(disk / "output")},
    }
    arguments = json.dumps(settings), fault, str(disk)
    if ranks == 1:
        return run([sys.executable, WORKERS / "storage_worker.py", *arguments], check=False)
    return launch(ranks, "storage_worker.py", *arguments, log_dir=disk.with_name("log"), check=False)


def names(folder):
    return [path.name for path in list_checkpoints(folder)]


def lines_of(output, begin):
    return [line.removeprefix(begin).split() for line in output.splitlines() if line.startswith(begin)]


MESSAGES = {
    "full": "has 0 bytes of free space, and a checkpoint takes ",
    "full while it is written to": "cannot be written: No space left on device; free space there",
    "read-only": "Read-only file system",
    "removed": "No such file or directory",
    "unmounted": "is not the folder that this run has begun to save into",
}


@pytest.mark.parametrize("fault", [pytest.param(fault, marks=pytest.mark.faults) for fault in MESSAGES])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_outlives_its_disk(ranks, fault, disk):
    status, output = train(ranks, fault, disk)
    assert status == 0, output[-6000:]
    assert output.count("BROKEN\n") == 1
    assert MESSAGES[fault] in output
    (kept,) = lines_of(output, "KEPT")
    if fault in ("full", "full while it is written to", "read-only"):
        assert kept, output[-6000:]
    saved = disk / "output"
    assert names(saved)[-1] == "1"
    for path in list_checkpoints(saved):
        Checkpoint(path).verify()
    hidden = {path.name for path in saved.iterdir() if path.name.startswith(".")}
    assert not hidden
    lines = [json.loads(line) for line in (saved / "metrics.jsonl").read_text().splitlines()]
    first = 1 if fault != "removed" else 5
    assert [line["step"] for line in lines if line["event"] == "step"][-6:] == list(range(5, 11))
    assert len({(line["event"], line["step"]) for line in lines}) == len(lines)
    assert lines[0]["step"] <= first
