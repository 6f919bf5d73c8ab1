"""A run that is started by the same command again and again, and struck by signals until it is finished."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np

from plsc.checkpoint import Checkpoint, list_checkpoints, order
from tests._support.marked import marked_processes
from tests._support.ranks import ROOT, WORKERS

# Seconds after which a start, or what it has left running, counts as hanging.
_LONGEST = 300
_CHECKPOINT = re.compile(r"[0-9]+(\.[0-9]+)?")
# What a killed run may leave for the next start to remove.
_LEFTOVERS = re.compile(
    r"\.plsc-lock|\.[0-9.]+\.plsc-partial|\.?\.plsc-trial(\.plsc-partial)?|\.(metrics\.jsonl|metrics\.csv|run\.json)\.[0-9]+\.partial"
)
_FILES = {"metrics.jsonl", "metrics.superseded.jsonl", "metrics.csv", "run.json", "findings.jsonl"}

_OF_THE_MACHINE = {"images/s", "data_wait", "host_memory_gb", "device_memory_gb"}


class Moment(NamedTuple):
    """When and whom a signal strikes; see struck_worker.py.

    In the phase "time" the test itself strikes all processes, `number` milliseconds after the start.
    """

    phase: str
    number: int
    rank: int = 0
    target: str = "rank"
    signal: int = signal.SIGKILL


class Result(NamedTuple):
    """What a finished run has left."""

    tensors: dict
    metrics: list


class StruckRun:
    """Ten steps in two epochs, verified at each second step and saved as often, with little kept.

    Args:
        folder: a new one.
        ranks: how many; a single one has no launcher.
        launcher: the module that starts several, and its flags.
        settings: further ones of train_worker.py.
    """

    def __init__(self, folder, ranks, launcher=("paddle.distributed.launch",), **settings):
        folder.mkdir(parents=True)
        self.folder, self.ranks, self.output = folder, ranks, folder / "output"
        self.settings = {
            **{"model": "batch norm", "verify": True, "auto_resume": True, "num_workers": 1, "train_epochs": 2},
            **{"test_period": 2, "save_steps": 2, "save_keep": 1, "max_last_checkpoint_num": 1},
            **{"train_batch_size": 12 // ranks, "model_save_dir": str(self.output), **settings},
        }
        self._launcher = launcher
        self._newest = (0, 0)
        self.log = folder / "output.log"

    def start(self, moment=None, seconds=_LONGEST):
        """Start once, wait for the end of what was started; returns (exit status, whether the moment has come)."""
        struck = self.folder / "struck"
        struck.unlink(missing_ok=True)
        process = self._begin(moment)
        try:
            if moment is not None and moment.phase == "time":
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(moment.number / 1000)
                if process.poll() is None:
                    struck.touch()
                    self.strike_all(moment.signal)
            return process.wait(seconds), struck.exists()
        except BaseException:
            self.strike_all(signal.SIGKILL)
            process.wait()
            raise

    def _begin(self, moment):
        worker = [WORKERS / "struck_worker.py", json.dumps(self.settings)]
        worker.append(json.dumps(None if moment is None or moment.phase == "time" else moment._asdict()))
        if self.ranks > 1:
            flags = ["--nproc_per_node", self.ranks, "--log_dir", self.folder / "log"]
            worker = ["-m", *self._launcher, *flags, *worker]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PADDLE_", "PLSC_"))}
        environment.update(
            PYTHONPATH=str(ROOT),
            PYTHONUNBUFFERED="1",
            OMP_NUM_THREADS="1",
            RUN=str(self.folder),
            ABOVE=str(os.getpid()),
        )
        with open(self.log, "ab") as log:
            log.write(f"\n== {moment}\n".encode())
            return subprocess.Popen(
                [sys.executable, *map(str, worker)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def strike_all(self, number):
        for process in marked_processes(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def wait_until_all_have_ended(self, seconds=_LONGEST):
        """Ranks and readers end by themselves where their launcher or rank was killed."""
        deadline = time.monotonic() + seconds
        while left := marked_processes(self.folder):
            if time.monotonic() > deadline:
                self.strike_all(signal.SIGKILL)
                raise AssertionError(f"{left} still run; {self.told()}")
            time.sleep(0.1)

    def told(self):
        """The last of what the run and its ranks have printed."""
        logs = [self.log, *sorted(self.folder.glob("log/**/workerlog.*"))]
        return "\n".join(f"== {log}\n{log.read_text(errors='replace')[-4000:]}" for log in logs if log.exists())

    def check_files(self):
        """What a run that has ended anyhow must have left: whole checkpoints, and none older than those before."""
        if not self.output.exists():
            return
        names = [path.name for path in self.output.iterdir()]
        unknown = [
            name for name in names if not (name in _FILES or _CHECKPOINT.fullmatch(name) or _LEFTOVERS.fullmatch(name))
        ]
        assert not unknown, f"{unknown}; {self.told()}"
        found = list_checkpoints(self.output)
        assert {path.name for path in found} == {name for name in names if _CHECKPOINT.fullmatch(name)}
        for path in found:
            Checkpoint(path).verify()
        newest = order(found[-1]) if found else (0, 0)
        assert newest >= self._newest, f"{found} are older than {self._newest}; {self.told()}"
        self._newest = newest

    def steps(self, rank):
        """The steps that a rank has done, in all starts."""
        path = self.folder / f"steps.{rank}"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def events(self):
        """How many events each phase has in a run that is not struck: [one mapping per rank]."""
        return [json.loads((self.folder / f"events.{rank}").read_text()) for rank in range(self.ranks)]

    def result(self):
        """What the finished run has left, once it is checked that nothing else is there."""
        self.check_files()
        found = list_checkpoints(self.output)
        assert {path.name for path in self.output.iterdir()} - _FILES == {path.name for path in found}, self.told()
        assert found[-1].name == "1"
        for path in found:
            inside = {name.name for name in path.iterdir()} - {"metrics.json", "scores.npz", "classes.json"}
            assert inside == {*Checkpoint(path).files, "manifest.json"}
        saved = Checkpoint(found[-1])
        lines = map(json.loads, (self.output / "metrics.jsonl").read_text().splitlines())
        return Result(
            {name: saved.read(name) for name in saved.names()},
            [{name: value for name, value in line.items() if name not in _OF_THE_MACHINE} for line in lines],
        )

    def remove(self):
        shutil.rmtree(self.folder)


def assert_same(found, expected):
    """Two results are equal, bit for bit."""
    assert found.tensors.keys() == expected.tensors.keys()
    for name, value in expected.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], value, err_msg=name, strict=True)
    assert found.metrics == expected.metrics
