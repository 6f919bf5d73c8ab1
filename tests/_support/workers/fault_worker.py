"""Training on ranks, one of which has a fault at step 10.

Arguments: a folder, the fault, the rank that has it, rank_timeout in minutes, head_group_size or 0. Lines:
FAULT <time>, READERS <pids>, RESULT <weights>.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import paddle

import plsc
from plsc.distributed.topology import place_from_environment
from plsc.engine.observers import Observer
from plsc.models.tiny import ResNetTiny

FOLDER, FAULT, ITS_RANK, MINUTES = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
HAS_FAULT = place_from_environment()[0] == ITS_RANK
STEP, BATCH, SIDE, CLASSES = 10, 4, 8, 32


def fail():
    print("FAULT", time.time(), flush=True)
    if FAULT == "raise":
        raise OSError(5, "Input/output error", "/data/7.jpg")
    if FAULT.startswith("stall"):
        time.sleep(float(FAULT.removeprefix("stall")))
    if FAULT in ("kill", "kill in backward"):
        os.kill(os.getpid(), signal.SIGKILL)
    if FAULT == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if FAULT == "launcher":
        os.kill(os.getppid(), signal.SIGKILL)


class Pixels:
    """The 10th batch of the rank with the fault begins with it."""

    num_classes = CLASSES

    def __init__(self):
        self.reads = 0

    def __len__(self):
        return 20 * place_from_environment()[1] * BATCH

    def __getitem__(self, index):
        self.reads += 1
        if HAS_FAULT and self.reads == (STEP - 1) * BATCH + 1 and FAULT not in ("launcher", "kill in backward"):
            fail()
        return np.random.default_rng(index).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8), index % CLASSES


class Network(ResNetTiny):
    """The gradient of the 10th batch is its end."""

    batches = 0

    def forward(self, images):
        self.batches += 1
        embeddings = super().forward(images)
        if HAS_FAULT and self.batches == STEP and FAULT == "kill in backward":
            embeddings.register_hook(lambda gradient: fail())
        return embeddings


class AtStep(Observer):
    every_rank = True

    def on_step(self, step):
        if step.number == STEP and FAULT == "launcher":
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
            (FOLDER / f"pids{place_from_environment()[0]}").write_text(f"{os.getpid()} {children}")
            # Both ranks have written when one kills the launcher.
            if HAS_FAULT:
                while not (FOLDER / f"pids{1 - ITS_RANK}").exists():
                    time.sleep(0.1)
                fail()
        if FAULT == "launcher":
            time.sleep(0.2)


# As a rank that saves at SIGTERM: it does not end at once.
if FAULT != "launcher":
    signal.signal(signal.SIGTERM, lambda *_: None)
paddle.seed(0)
entry = plsc.Entry()
entry.set_model(Network(emb_dim=16, image_shape=(3, SIDE, SIDE)))
entry.set_image_shape((3, SIDE, SIDE))
entry.set_emb_size(16)
entry.set_class_num(CLASSES)
entry.set_train_batch_size(BATCH)
entry.set_train_epochs(50 if FAULT == "launcher" else 1)
entry.set_with_test(False)
entry.set_num_workers(2 if FAULT == "launcher" else 0)
entry.set_model_save_dir(FOLDER / "output")
entry.set_rank_timeout(MINUTES)
entry.set_head_group_size(int(sys.argv[5]) or None)
entry.train_dataset = Pixels()
entry.add_observer(AtStep())
print("RESULT", entry.train()["loss"], flush=True)
