"""Ranks: real ones, a worker script under Paddle's launcher on gloo; and threads of the test's own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

from plsc.distributed.launching.launcher import PADDLE_LAUNCHER
from plsc.distributed.topology import Topology
from tests._support import fake_gpu

WORKERS = Path(__file__).parent / "workers"
ROOT = Path(__file__).parents[2]


def launch(ranks, script, *arguments, log_dir, check=True, timeout=300, cwd=None, on_gpus=False):
    """Run a worker script (a name in workers/, or a path) on so many CPU ranks, or on ranks with a GPU each; returns
    (exit status, all output)."""
    script = WORKERS / script if not Path(script).is_absolute() else script
    command = [
        sys.executable,
        "-m",
        PADDLE_LAUNCHER,
        *([] if on_gpus else ["--devices", "cpu"]),
        "--nproc_per_node",
        str(ranks),
        "--log_dir",
        str(log_dir),
        "--log_overwrite",
        "1",
        *([fake_gpu.__file__] if fake_gpu.is_asked_for() else []),
        str(script),
        *map(str, arguments),
    ]
    return run(command, log_dir=log_dir, check=check, timeout=timeout, cwd=cwd)


def run(command, log_dir=None, check=True, timeout=300, cwd=None):
    """Run a command with one thread and this checkout on its path; returns (exit status, all output).

    A command that takes longer is an error that shows what each of its processes was doing.
    """
    process = subprocess.Popen(
        list(map(str, command)),
        env={**clean_environment(), "PYTHONFAULTHANDLER": "1"},
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)
        output, _ = process.communicate(timeout=60)
        raise AssertionError(f"still running after {timeout} s: {output + logs_of(log_dir)}") from None
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    output += logs_of(log_dir)
    if check:
        assert process.returncode == 0, output[-8000:]
    return process.returncode, output


def logs_of(log_dir):
    """What all ranks of a launcher wrote."""
    logs = sorted(Path(log_dir).glob("workerlog.*")) if log_dir else []
    return "".join(f"\n== {log.name}\n{log.read_text()}" for log in logs)


def clean_environment():
    """The variables of this process with one thread and this checkout on its path, and without a launcher's."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PADDLE_")}
    return {**environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


class ThreadRanks:
    """Collectives of several ranks that are threads of this process; index it for those of one rank."""

    def __init__(self, size):
        self.size, self.values, self.barrier = size, {}, threading.Barrier(size)

    def __getitem__(self, rank):
        topology = Topology(rank, self.size)

        def gather_objects(value):
            self.values[rank] = value
            self.barrier.wait(10)
            gathered = [self.values[other] for other in range(self.size)]
            self.barrier.wait(10)
            return gathered

        return SimpleNamespace(topology=topology, gather_objects=gather_objects)
