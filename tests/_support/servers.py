"""Start real servers on loopback, and small models to serve."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parents[2]
SIDE, EMB_DIM = 16, 16


def make_model(folder, flip=True, bake=(), formats=("paddle",), emb_dim=EMB_DIM, seed=0):
    """Export a small untrained network to `folder`; returns the eager network."""
    from plsc.export.export import export_backbone
    from tests._support.exporting import network, settings

    made = network(emb_dim, seed)
    export_backbone(made, settings(emb_dim=emb_dim, flip=flip), directory=Path(folder), formats=formats, bake=bake)
    return made


def make_image(seed, side=SIDE, suffix=".png"):
    """An encoded image; equal seeds give equal ones."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


class Server:
    """A running `plsc serve`."""

    def __init__(self, process, url, log):
        self.process, self.url, self.log = process, url, log
        self.port = int(url.rpartition(":")[2])

    def worker_pids(self):
        return [
            int(pid)
            for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            if "plsc.serving.worker" in Path(f"/proc/{pid}/cmdline").read_text()
        ]

    def text(self):
        return Path(self.log).read_text()


@contextlib.contextmanager
def serving(model, *flags, log, environment=None, command=None, cwd=None):
    """A server of `model` on a free port of loopback, ended by SIGTERM."""
    # As the console script, which imports nothing from the current folder.
    start = [sys.executable, "-c", "import sys; sys.path[0:1] = []; from plsc.cli.main import main; main()"]
    command = command or [
        *start,
        "serve",
        str(model),
        "--port",
        "0",
        "--threads",
        "1",
        "--drain",
        "0.1",
        *map(str, flags),
    ]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with open(log, "w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path, **(environment or {})},
        )
    try:
        yield Server(process, _wait_until_ready(process, log), log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(30)


def _wait_until_ready(process, log):
    for _ in range(1200):
        found = re.search(r"serving on (http://\S+)", Path(log).read_text())
        if found:
            return found[1]
        assert process.poll() is None, Path(log).read_text()
        time.sleep(0.05)
    raise AssertionError(Path(log).read_text())


def free_port():
    """A port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(server):
    """Whether a server accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", server.port)) == 0
