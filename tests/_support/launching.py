"""`plsc launch` in a process of its own, of scripts that write down what happens to their ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

# What every script of a rank begins with. A line of the file `notes` is one call of `note`, of any rank.
BEGIN = """
import os, signal, sys, time
from plsc.distributed.launching.reports import report_end, report_position, report_uncaught

rank = int(os.environ["PADDLE_TRAINER_ID"])
report_uncaught()

def note(*words):
    with open("notes", "a") as file:
        file.write(" ".join(map(str, (rank, *words))) + "\\n")

# As in training, no rank leaves before the others have saved, and then none heeds signals: Paddle's launcher sends
# them to the ranks that run when one has left.
def leave_together(name="saved"):
    open(f"{name}.{rank}", "w").close()
    while not all(os.path.exists(f"{name}.{other}") for other in (0, 1)):
        time.sleep(0.01)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(75)
"""


class Launch:
    """Starts `plsc launch --nproc_per_node 2` of a script.

    Args:
        folder: current folder of the ranks; `script.py`, `notes` and `log` are in it.
        script: what each rank does, after `BEGIN`.
        flags: further ones.
        environment: variables to add.
    """

    def __init__(self, folder, script, *flags, **environment):
        self.folder = folder
        (folder / "script.py").write_text(BEGIN + textwrap.dedent(script))
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PADDLE_", "PLSC_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "plsc", "launch", "--nproc_per_node", "2", *map(str, flags), "script.py"],
            cwd=folder,
            env={**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )

    def finish(self, seconds=60):
        """(exit status, all output), or fail after so many seconds."""
        try:
            output, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, output

    @property
    def notes(self):
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for(self, note, times=2, seconds=30):
        """Wait until the ranks have noted something so many times; return the lines."""
        deadline = time.monotonic() + seconds
        while len(lines := [line for line in self.notes if note in line]) < times:
            assert time.monotonic() < deadline, self.notes
            assert self.process.poll() is None, self.finish()
            time.sleep(0.05)
        return lines
