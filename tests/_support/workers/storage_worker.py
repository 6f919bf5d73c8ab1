"""The training of train_worker.py on a disk that fails once it has a checkpoint, and works again five steps later.

Arguments: the settings of train_worker.py as JSON; what is wrong with the disk, one of FAULTS; the mounted folder. At
the end of the fault rank 0 prints "KEPT" and the names of the checkpoints, each verified.
"""

from __future__ import annotations

import functools
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from plsc.checkpoint import Checkpoint, list_checkpoints
from plsc.engine import saver, trainer

FAULT, DISK = sys.argv.pop(2), Path(sys.argv.pop(2))
OUTPUT, REST = DISK / "output", DISK / "rest"
RANK = int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def fill():
    """Leave not one byte."""
    with open(REST, "ab", buffering=0) as file:
        for size in (1 << 20, 1 << 10, 1):
            while True:
                try:
                    if not file.write(bytes(size)):
                        break
                except OSError:
                    break


def fill_while_writing():
    """From here on the disk is full when the rank has begun to write: it had room when that was looked at."""
    write = saver.write_parts

    @functools.wraps(write)
    def write_parts(folder, parts, *, rank):
        if not REST.exists():
            fill()
        write(folder, parts, rank=rank)

    saver.write_parts, fill_while_writing.real = write_parts, write


def empty():
    saver.write_parts = getattr(fill_while_writing, "real", saver.write_parts)
    REST.unlink(missing_ok=True)


def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True)


def make_read_only():
    """A second mount over the first, which has files open for writing and cannot change."""
    mount("--bind", DISK, DISK)
    mount("-o", "remount,bind,ro", DISK)


def unmount():
    subprocess.run(["umount", "--lazy", DISK], check=True)


FAULTS = {
    "none": (lambda: None, lambda: None),
    "full": (fill, empty),
    "full while it is written to": (fill_while_writing, empty),
    "full to the end": (fill, None),
    "read-only": (make_read_only, unmount),
    "removed": (lambda: shutil.rmtree(OUTPUT), lambda: None),
    "unmounted": (unmount, lambda: mount("--bind", f"{DISK}.real", DISK)),
}


def with_fault(real):
    (begin, end), ends_at = FAULTS[FAULT], None

    @functools.wraps(real)
    def train_step(self, batch):
        nonlocal ends_at
        if RANK == 0 and ends_at is None and list_checkpoints(OUTPUT):
            ends_at = self.step + 5
            begin()
        elif RANK == 0 and begin is fill and ends_at is not None and (end is None or self.step < ends_at):
            fill()  # also what a save under way has given back
        if RANK == 0 and end is not None and self.step == ends_at:
            names = [path.name for path in list_checkpoints(OUTPUT)]
            for name in names:
                Checkpoint(OUTPUT / name).verify()
            print("KEPT", *names, flush=True)
            end()
        return real(self, batch)

    return train_step


trainer.Trainer.train_step = with_fault(trainer.Trainer.train_step)
saver._RETRY_SECONDS = 0.0
saver.LAST_PAUSES = (0.1, 0.1)
runpy.run_path(str(Path(__file__).with_name("train_worker.py")), run_name="__main__")
