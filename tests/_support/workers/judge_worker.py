"""Steps that are bad on one rank only: skipped, stopped, and a broken center that is not saved."""

import dataclasses
from pathlib import Path

import numpy as np
import paddle

from plsc import CheckpointError, Config, ConfigError, Trainer, TrainingError
from plsc.data.loader import Batch
from plsc.engine import parts
from plsc.engine.precision import Precision
from plsc.engine.run_lock import LOCK_FILE
from plsc.losses import precision as half_products
from tests.engine.test_judge import (
    Finished,
    Network,
    assert_equal,
    clipped,
    everything,
    in_float16,
    in_step,
    overflow_backward,
    overflow_forward,
    without_scale,
)

CLASSES, SIDE = 6, 16


def make(folder, **settings):
    settings = {"model_name": "ResNetTiny", "emb_dim": 16, **settings}
    return Trainer(
        Config(
            train_dataset=Finished(count=40),
            num_classes=CLASSES,
            image_shape=(3, SIDE, SIDE),
            train_batch_size=5,
            num_workers=0,
            with_test=False,
            train_epochs=1,
            lr_schedule=lambda step: 0.01,
            model_save_dir=folder,
            **settings,
        )
    )


def two_steps(trainer):
    """A sound step, then one with a NaN on rank 1; what was before it and the values of the second."""
    first, second, third, *_ = trainer.loader.epoch(0)
    trainer.train_step(first)
    before = everything(trainer)
    if trainer.topology.rank == 1:
        images = second.images.copy()
        images[3, 0, 0, 0] = np.nan
        second = Batch(images, second.labels)
    return before, trainer.train_step(second), third


for word, settings in (("SKIPPED", {}), ("UNFUSED", {"optimizer": clipped, "loss_type": "arcface"})):
    trainer = make("skip", on_nonfinite="skip", **settings)
    before, values, third = two_steps(trainer)
    assert_equal(everything(trainer), before)
    trainer.train_step(third)
    assert all(np.isfinite(value).all() for value in everything(trainer).values() if value.dtype.kind == "f")
    print(word, values["skipped_steps"], "equal")

for word, overflow in (("BACKWARD", overflow_backward), ("FORWARD", overflow_forward)):  # on rank 1 only
    model = Network()
    trainer = in_float16(make("overflow", model=model, decr_every_n_nan_or_inf=1))
    if trainer.topology.rank == 1:
        model.harm = in_step(2, overflow)
    first, second, *_ = trainer.loader.epoch(0)
    trainer.train_step(first)
    before = without_scale(everything(trainer))
    values = trainer.train_step(second)
    assert_equal(without_scale(everything(trainer)), before)
    print(word, values["skipped_steps"], f"equal, scale {trainer.precision.scale.value}")
    trainer.train_step(second)
    assert trainer._judge.check() is not None  # sound, on both ranks

# A card of one rank that cannot compute in bfloat16: all ranks say so before training.
parts.Precision = lambda config, topology: Precision(config, dataclasses.replace(topology, device="gpu:0"))
half_products._capability = lambda: (8, 0) if trainer.topology.rank == 0 else (7, 5)
paddle.device.cuda.get_device_name = lambda: "Tesla T4"
try:
    make("card", use_fp16=True, amp_dtype="bfloat16")
except ConfigError as error:
    print("CARD", error)
parts.Precision = Precision

trainer = make("stop")
_, _, third = two_steps(trainer)
try:
    trainer.train_step(third)
except TrainingError as error:
    print("STOPPED", error)

trainer = make("save")
if trainer.topology.rank == 1:
    trainer.head.parameters["weight"].detach()[2] = paddle.full([16], float("nan"))  # class 5
try:
    trainer._save(trainer._make_step({}), "0")
    trainer._saver.finish()
except CheckpointError as error:
    print("SAVED", error)
print("FILES", [str(path) for path in Path().glob("s*/*") if path.name != LOCK_FILE])
