"""The training of train_worker.py, which a signal strikes at a chosen moment.

Arguments: the settings of train_worker.py as JSON; the moment as JSON, `null` for none:

    phase    one of PHASES, or "start" for what comes before the first step
    number   of the event within that phase, from 1. Events are the beginning and the end of a call, each change of the
             file system within it, and what PARTS lists
    rank     that counts the events
    target   "rank", this process; "launcher", the process that the test started; "all" processes of the run
    signal   its number

Environment: RUN, which all processes of a run have in common; ABOVE, the process of the test. In the folder RUN each
rank appends to `steps.<rank>` the number of each step that it has done, writes to `struck` that the moment has come,
and adds to `events.<rank>` how often each phase had an event, as JSON.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import os
import runpy
import sys
import threading
from pathlib import Path

from plsc.engine import saver, snapshot, trainer, verifier
from plsc.engine.observers.metrics_file import MetricsFile
from plsc.losses import shard
from tests._support.killing import changes_files
from tests._support.marked import marked_processes

FOLDER, ABOVE = Path(os.environ["RUN"]), int(os.environ["ABOVE"])
RANK = int(os.environ.get("PADDLE_TRAINER_ID", "0"))
MOMENT = json.loads(sys.argv.pop(2))

PHASES = {
    "step": [(trainer.Trainer, "train_step")],
    "snapshot": [(snapshot.Snapshot, "copy")],
    "write": [(saver, "write_parts")],
    "name": [(saver, "complete")],
    "prune": [(saver, "prune")],
    "verification": [(verifier, "evaluate")],
    "record": [(MetricsFile, "_write"), (verifier, "write_metrics")],
}
# Each call is an event of the phase in which it happens.
PARTS = [
    (trainer.Trainer, "_update"),
    (shard.Shard, "store_block"),
    (snapshot.Snapshot, "_fill"),
    ("plsc.checkpoint.writer", "_write_block"),
    ("plsc.checkpoint.writer", "sync"),
    ("plsc.engine.evaluator", "_embedder"),
    ("plsc.engine.evaluator", "_report"),
    ("plsc.utils.atomic", "sync_path"),
]


class Events:
    """Counts the events of each phase, and strikes at the moment."""

    def __init__(self):
        self.counts = collections.Counter()
        self.here = threading.local()
        self.has_begun = False
        self.process = os.getpid()

    @contextlib.contextmanager
    def within(self, phase):
        before, self.here.phase = getattr(self.here, "phase", None), phase
        self.count()
        try:
            yield
        finally:
            self.count()
            self.here.phase = before

    def count(self):
        if os.getpid() != self.process:  # a reader
            return
        phase = getattr(self.here, "phase", None) or (None if self.has_begun else "start")
        self.counts[phase] += 1
        if MOMENT and (MOMENT["phase"], MOMENT["number"], MOMENT["rank"]) == (phase, self.counts[phase], RANK):
            self.strike()

    def strike(self):
        self.here.phase = "struck"
        (FOLDER / "struck").touch()
        own, number = os.getpid(), MOMENT["signal"]
        if MOMENT["target"] == "launcher":
            os.kill(next(process.pid for process in marked_processes(FOLDER) if process.parent == ABOVE), number)
        else:
            others = marked_processes(FOLDER) if MOMENT["target"] == "all" else []
            for process in [*(process for process in others if process.pid != own)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)
            os.kill(own, number)
        self.here.phase = MOMENT["phase"]


def replace(place, name, make):
    place = sys.modules[place] if isinstance(place, str) else place
    setattr(place, name, make(getattr(place, name)))


def as_phase(phase, real):
    @functools.wraps(real)
    def call(*arguments, **options):
        with events.within(phase):
            return real(*arguments, **options)

    return call


def as_event(real):
    @functools.wraps(real)
    def call(*arguments, **options):
        events.count()
        return real(*arguments, **options)

    return call


def note_steps(real):
    @functools.wraps(real)
    def train_step(self, batch):
        events.has_begun = True
        values = real(self, batch)
        with open(FOLDER / f"steps.{RANK}", "a") as file:
            file.write(f"{self.step}\n")
        return values

    return train_step


def on_audit(event, arguments):
    if changes_files(event, arguments):
        events.count()


events = Events()
for part in PARTS:
    replace(*part, as_event)
for phase, calls in PHASES.items():
    for call in calls:
        replace(*call, functools.partial(as_phase, phase))
replace(trainer.Trainer, "train_step", note_steps)
sys.addaudithook(on_audit)
try:
    runpy.run_path(str(Path(__file__).with_name("train_worker.py")), run_name="__main__")
finally:
    if not MOMENT:
        (FOLDER / f"events.{RANK}").write_text(json.dumps({str(name): count for name, count in events.counts.items()}))
