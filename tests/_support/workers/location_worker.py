"""What a head takes of anonymous memory when it is made, in steps, when it is saved and when it is loaded.

Argument: settings as JSON. Prints lines of a name and the bytes since the start: init, step, save, load; and the size
of all tensors of the head.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import paddle

from plsc.checkpoint import Checkpoint, reader, save_checkpoint
from plsc.config import Config
from plsc.distributed.collectives import Collectives
from plsc.engine.optimizer import NamedOptimizer
from plsc.engine.state import head_parts
from plsc.engine.tensor_rows import CheckpointState
from plsc.losses.classifier import Classifier
from plsc.utils.ranges import Range

CLASSES, WIDTH = 60_000, 64


def anonymous():
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def make(classes=CLASSES, **settings):
    config = Config(
        num_classes=classes, emb_dim=WIDTH, lr=0.1, loss_type="dist_arcface", logits="recompute", **settings
    )
    return Classifier(config, Collectives(), make_optimizer=lambda own: NamedOptimizer(config, own, of_centers=True))


def step(head, number):
    random = np.random.default_rng(number)
    features = paddle.to_tensor(random.standard_normal((4, WIDTH)).astype(np.float32))
    head.forward(features, paddle.to_tensor(random.integers(0, head.classes.size, 4)), step=number)
    head.backward()
    head.update(0.1)


reader.BLOCK_BYTES = 1 << 20
small = make(**{**json.loads(sys.argv[1]), "center_location": "device"}, classes=1000)
step(small, 0)  # what the first step of a process takes
del small
before = anonymous()
head = make(**json.loads(sys.argv[1]))
print("init", max(anonymous() - before, 0))
for number in range(2):
    step(head, number)
print("step", max(anonymous() - before, 0))
with tempfile.TemporaryDirectory() as folder:
    about = {"settings": {"num_classes": CLASSES, "loss_type": "dist_arcface"}}
    parts = head_parts(head, True, num_classes=CLASSES)
    save_checkpoint(folder, "0", parts=parts, about=about, collectives=Collectives())
    print("save", max(anonymous() - before, 0))
    saved = Checkpoint(Path(folder) / "0")
    names = [name.removeprefix("head.") for name in saved.names("head.")]
    rows = {name: Range(0, CLASSES) if head.has_row_per_class(name) else None for name in names}
    head.load(CheckpointState(saved, "head.", names, rows_of=rows.get))
print("load", max(anonymous() - before, 0))
print("size", sum(value.size * value.element_size() for value in head.state().values()))
