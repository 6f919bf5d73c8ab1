"""How long training waits for its checkpoints, and how much slower a step is while one is written. CPU.

    python -m paddle.distributed.launch --nproc_per_node 2 benchmarks/saving.py --folder /disk/scratch

Trains a head of 500,000 class centers on random images with a tiny backbone, and saves every few steps. "stall" is the
time between two steps that training does not spend in steps while a save begins; "plain write" writes and flushes as
many bytes from memory, each rank its share, before and after training. Compare figures of one run only. A core is free
for the writing where there are fewer ranks than cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path

import numpy as np
import paddle

from plsc import Config
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import init_topology
from plsc.engine.observers import Observer
from plsc.engine.trainer import Trainer

SIDE = 16


class Noise:
    """Random images of random classes; a few of each, so that an epoch is long."""

    def __init__(self, classes: int, images: int) -> None:
        self.num_classes, self._images = classes, images

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng(index)
        return rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8), int(rng.integers(self.num_classes))


class TimedTrainer(Trainer):
    """Measures how long each step takes, and how long each pause between two steps."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.pauses: list[float] = []
        self.seconds: list[float] = []

    def _between_steps(self, step) -> None:
        begin = time.perf_counter()
        super()._between_steps(step)
        self.pauses.append(time.perf_counter() - begin)

    def train_step(self, batch):
        begin = time.perf_counter()
        values = super().train_step(batch)
        self.seconds.append(time.perf_counter() - begin)
        return values


class Clock(Observer):
    """The times at which steps were done, and the steps at which checkpoints were complete."""

    every_rank = True

    def __init__(self) -> None:
        self.steps: list[float] = []  # when each ended
        self.began: list[int] = []
        self.done: dict[int, float] = {}

    def on_step(self, step) -> None:
        step.values["loss"]
        self.steps.append(time.perf_counter())

    def on_save(self, step, path) -> None:
        self.began.append(step.number)
        self.done[step.number] = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16, help="images per rank")
    parser.add_argument("--saves", type=int, default=4)
    parser.add_argument("--every", type=int, default=24, help="steps from one save to the next")
    parser.add_argument("--mode", choices=["on", "off", "auto"], default="on", help="async_save")
    parser.add_argument("--folder", type=Path, required=True, help="a folder to write to; what is written is removed")
    options = parser.parse_args()
    topology = init_topology()
    root = options.folder / "plsc-benchmark"
    if topology.is_main:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
    steps = options.every * (options.saves + 1) - 1
    config = Config(
        model_name="ResNetTiny",
        image_shape=(3, SIDE, SIDE),
        emb_dim=options.dim,
        num_classes=options.classes,
        train_dataset=Noise(options.classes, steps * options.batch * topology.world_size + 1),
        train_batch_size=options.batch,
        train_steps=steps,
        num_workers=0,
        with_test=False,
        save_steps=options.every,
        save_minutes=None,
        async_save=options.mode,
        model_save_dir=str(root / "output"),
        log_period=10_000,
        param_attr=paddle.ParamAttr(initializer=paddle.nn.initializer.Constant(0.5)),
    )
    clock = Clock()
    trainer = TimedTrainer(config, observers=[clock])
    share = (
        sum(value.numpy().nbytes for value in trainer.head.state().values()) or 2 * 4 * options.classes * options.dim
    )
    writes = [plain_write(root, share, trainer.collectives)]
    trainer.train()
    writes.append(plain_write(root, share, trainer.collectives))
    if topology.is_main:
        report(clock, trainer, writes, share=share, ranks=topology.world_size)
        shutil.rmtree(root)


def report(clock: Clock, trainer: TimedTrainer, writes: list[float], *, share: int, ranks: int) -> None:
    seconds = dict(enumerate(trainer.seconds, start=1))
    pauses = dict(enumerate(trainer.pauses, start=0))  # after this step
    during = {
        step
        for begun, done in clock.done.items()
        for step in seconds
        if step > begun and clock.steps[step - 1] - seconds[step] < done
    }
    base = float(np.median([took for step, took in seconds.items() if step not in during and step > 3]))
    slow, plain = float(np.median([seconds[step] for step in during])), float(np.median(writes))
    print(
        f"bytes of the head: {ranks} x {share / 2**30:.2f} GiB; plain write {', '.join(f'{s:.2f}' for s in writes)} s"
    )
    print(
        f"step: {base:.3f} s; while a checkpoint is written {slow:.3f} s, {slow / base:.2f} times ({len(during)} steps)"
    )
    for begun in clock.began:
        if begun not in pauses:  # the last one, which no step follows
            continue
        print(
            f"save after step {begun}: stall {pauses[begun]:.2f} s, {100 * pauses[begun] / plain:.0f} % of a plain "
            f"write; complete after {clock.done[begun] - clock.steps[begun - 1]:.1f} s"
        )


def plain_write(root: Path, size: int, collectives: Collectives) -> float:
    """Seconds until all ranks have written and flushed `size` bytes each."""
    block, path = np.random.default_rng(0).bytes(1 << 24), root / f"plain-{collectives.topology.rank}"
    collectives.barrier()
    begin = time.perf_counter()
    with open(path, "wb") as file:
        for _ in range(0, size, len(block)):
            file.write(block)
        os.fsync(file.fileno())
    collectives.barrier()
    seconds = time.perf_counter() - begin
    path.unlink()
    return seconds


if __name__ == "__main__":
    main()
