"""Train on a small set of pixels with the settings given as JSON: {"model": ..., "<setting>": ...}.

With "hand_in" a Trainer is given its backbone, loader, head and observers; otherwise Entry makes them of the settings.
With "die": [event, step] rank 0 is killed at an event of that step: before its verification ("evaluate"), between the
line of metrics.jsonl and metrics.json ("on_verify"), or after the step ("on_step"). With "fail": step the verification
of that step fails. With "signal": [rank, step] that rank sends itself SIGTERM after the step. With "lag": n verdicts
are read n steps late, as on a GPU. With "free": [rank, bytes] so much memory is free as that rank sees it; with
"not_copied": rank class centers may not be copied there; with "slow": [rank, seconds] that rank writes so long.
"""

import functools
import json
import os
import signal
import sys
import time
from types import SimpleNamespace

import numpy as np
import paddle
from paddle import nn

import plsc
from plsc.data.verification_set import VerificationSet
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import init_topology
from plsc.engine import saver, snapshot, transfer
from plsc.engine.dataloading import build_dataloader
from plsc.engine.observers import Observer
from plsc.engine.optimizer import NamedOptimizer
from plsc.engine.trainer import Trainer
from plsc.losses import storage
from plsc.losses.classifier import Classifier
from plsc.models.base_model import BaseModel
from plsc.models.tiny import ResNetTiny

CLASSES, SIDE = 10, 8


class Pixels:
    """Sixty noisy images of ten patterns."""

    num_classes = CLASSES

    def __init__(self):
        rng = np.random.default_rng(1)
        patterns = rng.integers(0, 255, (CLASSES, SIDE, SIDE, 3))
        self.labels = np.arange(60) % CLASSES
        noise = rng.normal(0, 25, (60, SIDE, SIDE, 3))
        self.images = np.clip(patterns[self.labels] + noise, 0, 255).astype(np.uint8)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


class Plain(BaseModel):
    """No batch normalization, whose statistics are each rank's own."""

    def __init__(self, dropout=0.0):
        super().__init__(16)
        self.conv = nn.Conv2D(3, 8, 3, padding=1)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(8 * SIDE * SIDE, 16)

    def build_network(self, input, label, is_train=True):
        return self.fc(self.drop(nn.functional.relu(self.conv(input))).flatten(1))


MODELS = {"plain": Plain, "dropout": lambda: Plain(0.3), "batch norm": lambda: ResNetTiny(16, (3, SIDE, SIDE))}
OPTIMIZERS = {
    "adamw": functools.partial(paddle.optimizer.AdamW, weight_decay=0.01),
    "sgd": functools.partial(paddle.optimizer.SGD, weight_decay=1e-3),
    # As the default, but for a clipping that clips nothing: the whole gradient is made first.
    "clipped": functools.partial(
        paddle.optimizer.Momentum, momentum=0.9, weight_decay=5e-4, grad_clip=paddle.nn.ClipGradByValue(1e9)
    ),
    "clipped adamw": functools.partial(
        paddle.optimizer.AdamW, weight_decay=0.01, grad_clip=paddle.nn.ClipGradByValue(1e9)
    ),
    "clipped sgd": functools.partial(paddle.optimizer.SGD, weight_decay=1e-3, grad_clip=paddle.nn.ClipGradByValue(1e9)),
}


class Losses(Observer):
    """Prints what it got when training ends."""

    def __init__(self, name, every_rank):
        self.name, self.every_rank, self.losses = name, every_rank, []

    def on_step(self, step):
        self.losses.append(step.values["loss"])

    def on_end(self, results, error):
        print("OBSERVED", self.name, init_topology().rank, json.dumps(self.losses))


class Die(Observer):
    """Kills its process at an event of a step, or makes the verification fail on all ranks."""

    every_rank = True

    def __init__(self, event, number, fail=False):
        self.number, self.fails = number, fail
        if event != "evaluate":
            setattr(self, event, self.die)
            return
        real = plsc.engine.verifier.evaluate

        def evaluate(*arguments, **named):
            self.at_verification()
            return real(*arguments, **named)

        plsc.engine.verifier.evaluate = evaluate

    def on_start(self, run):
        self.step = SimpleNamespace(number=run.first_step)

    def on_step(self, step):
        self.step = step

    def at_verification(self):
        if self.fails or init_topology().is_main:
            self.die(self.step)

    def die(self, step, *_):
        if step.number == self.number and self.fails:
            raise plsc.DataError("the disk of the verification set is gone")
        if step.number == self.number:
            os.kill(os.getpid(), signal.SIGKILL)


class Signal(Observer):
    every_rank = True

    def __init__(self, rank, number):
        self.rank, self.number = rank, number

    def on_step(self, step):
        if step.number == self.number and init_topology().rank == self.rank:
            os.kill(os.getpid(), signal.SIGTERM)


def slow_down(seconds):
    write = saver.write_parts

    def write_late(*arguments, **options):
        time.sleep(seconds)
        write(*arguments, **options)

    saver.write_parts = write_late


def train_with_parts(config, backbone):
    """Train with every part handed in."""
    topology = init_topology()
    collectives = Collectives(topology)
    return Trainer(
        config,
        backbone=backbone,
        loader=build_dataloader(config, topology),
        head=Classifier(config, collectives, make_optimizer=lambda named: NamedOptimizer(config, named)),
        observers=[Losses("main", False), Losses("every", True)],
    ).train()


settings = json.loads(sys.argv[1])
hand_in = settings.pop("hand_in", False)
transfer.LAGS["cpu"] = settings.pop("lag", 0)
rank = init_topology().rank
if (free := settings.pop("free", [None])) and free[0] == rank:
    snapshot.shared_memory = lambda: free[1]
if settings.pop("not_copied", None) == rank:
    storage.PlainRows.may_copy = storage.BFloat16Rows.may_copy = storage.Int8Rows.may_copy = False
if (slow := settings.pop("slow", [None])) and slow[0] == rank:
    slow_down(slow[1])
entry = plsc.Entry()
paddle.seed(5)
model = settings.pop("model")
backbone = MODELS[model]()
if not hand_in:
    entry.set_model(backbone)
if "optimizer" in settings:
    given = settings.pop("optimizer")
    entry.set_optimizer(OPTIMIZERS.get(given, given))  # or a name of the library
entry.train_dataset = Pixels()
entry.set_class_num(CLASSES)
entry.set_emb_size(16)
entry.set_image_shape((3, SIDE, SIDE))
entry.set_with_test(False)
entry.set_scale(16.0)
entry.set_lr(2.0)
entry.set_log_period(1)
entry.set_calc_acc(True)
if die := settings.pop("die", None):
    entry.add_observer(Die(*die))
if fail := settings.pop("fail", None):
    entry.add_observer(Die("evaluate", fail, fail=True))
if sent := settings.pop("signal", None):
    entry.add_observer(Signal(*sent))
verify = settings.pop("verify", False)
for name, value in settings.items():
    setattr(entry, name, value)
if verify:
    entry.set_with_test(True)
    pixels = Pixels()
    pairs = [(i, i + 10 * (i % 2) + 5 * (1 - i % 2)) for i in range(40)]
    entry.test_dataset = VerificationSet(
        "pixels", [pixels.images[j] for pair in pairs for j in pair], is_same=[i % 2 == 1 for i in range(40)]
    )
print("TRAINED", json.dumps(train_with_parts(entry.config, backbone) if hand_in else entry.train()))
if verify:
    entry.set_model(MODELS[model]())
    entry.set_checkpoint_dir(entry.model_save_dir)
    print("TESTED", json.dumps(entry.test()))
