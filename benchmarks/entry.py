"""`Entry.train()` beside a bare loop of Paddle with the same network, batch, images and readers, in one run.

    python benchmarks/entry.py
    python benchmarks/entry.py --workers 0 --model ResNet50 --side 112 --batch 32
    python benchmarks/entry.py --threads 2 --bare-threads 1 --bare-is-entry     # what a second thread brings

Each loop trains in a process of its own. They train `--turn` steps in turns, `Entry` first in one round and the bare
loop first in the next, so that a busier minute of the machine meets both. A turn is longer than what readers prepare
during the other loop's turn. The bare loop is what one writes without a library: a `paddle.io.DataLoader`, the
network, an ArcFace head of plain operators, `Momentum`; on a GPU also a loss that is read every tenth step only. The
ratio is the median of the rounds' ratios of speed, `Entry` / bare. With few classes, as by default, the head takes
little of the step; benchmarks/head.py measures the head.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

LOOPS = ("entry", "bare")
SCALE, MARGIN, LEARNING_RATE = 64.0, 0.5, 0.01
READ_LOSS_EVERY = 10


def main() -> None:
    options = parse()
    if options.loop:
        bare = train_entry if options.bare_is_entry else train_bare
        {"entry": train_entry, "bare": bare}[options.loop](options)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ResNetTiny")
    parser.add_argument("--side", type=int, default=32, help="height and width of the images")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2, help="processes that read images")
    parser.add_argument("--turn", type=int, default=20, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=15, help="measured turns of each, after two of warm-up")
    parser.add_argument("--threads", type=int, default=1, help="of each process on a CPU")
    parser.add_argument("--bare-threads", type=int, help="of the bare loop; by default as many")
    parser.add_argument("--bare-is-entry", action="store_true", help="run Entry in the place of the bare loop, too")
    parser.add_argument("--out", type=Path, help="a folder for the figures as JSON")
    parser.add_argument("--loop", choices=LOOPS, help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(options: argparse.Namespace, folder: Path) -> None:
    workers = {loop: start(loop, folder / loop, options) for loop in LOOPS}
    seconds: dict[str, list[float]] = {loop: [] for loop in LOOPS}
    try:
        for number in range(options.rounds + 2):
            for loop in LOOPS if number % 2 else LOOPS[::-1]:
                found = take_turn(workers[loop])
                if number >= 2:
                    seconds[loop].append(found)
    finally:
        for worker in workers.values():
            worker.stdin.close()  # a loop ends its readers itself
            worker.stdout.close()
            worker.wait(60)
    images = options.turn * options.batch
    speeds = {loop: images / statistics.median(found) for loop, found in seconds.items()}
    ratios = [bare / entry for entry, bare in zip(seconds["entry"], seconds["bare"])]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    print(
        f"{options.model} at {options.side} x {options.side}, batch {options.batch}, {options.workers} readers: Entry "
        f"{speeds['entry']:.0f} images/s, bare {speeds['bare']:.0f}; Entry / bare {ratio:.3f} (quartiles {low:.3f} and "
        f"{high:.3f})"
    )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        figures = {
            "options": vars(options) | {"out": None},
            "images/s": speeds,
            "ratio": ratio,
            "quartiles": [low, high],
        }
        (options.out / "entry.json").write_text(json.dumps(figures, indent=1) + "\n")


def start(loop: str, folder: Path, options: argparse.Namespace) -> subprocess.Popen:
    folder.mkdir()
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--loop", loop]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    threads = (options.bare_threads if loop == "bare" else None) or options.threads
    environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(threads)
    return subprocess.Popen(
        command, env=environment, cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def take_turn(worker: subprocess.Popen) -> float:
    """Seconds of a turn."""
    worker.stdin.write("turn\n")
    worker.stdin.flush()
    for text in worker.stdout:
        if text.startswith("ANSWER "):
            return float(text.removeprefix("ANSWER "))
    sys.exit(f"a loop ended with status {worker.wait()}; its error is above")


# In the process of one loop


class Turns:
    """Lets a loop run for a turn at each line of standard input, until it ends; call it after each step."""

    def __init__(self, length: int) -> None:
        self._length, self._done, self._began = length, 0, 0.0

    def __call__(self) -> None:
        import paddle

        self._done += 1
        if self._done % self._length:
            return
        if paddle.get_device().startswith("gpu"):
            paddle.device.synchronize()
        if self._began:
            print(f"ANSWER {time.perf_counter() - self._began}", flush=True)
        if not sys.stdin.readline():
            sys.exit()
        self._began = time.perf_counter()


def make_images(options: argparse.Namespace) -> list[tuple[np.ndarray, int]]:
    """Random pixels, uint8 of [side, side, 3], with labels: ten batches, and these again for an epoch of 1000 steps."""
    rng = np.random.default_rng(0)
    shape = (options.side, options.side, 3)
    images = [
        (rng.integers(0, 256, shape, np.uint8), int(rng.integers(options.classes))) for _ in range(10 * options.batch)
    ]
    return images * 100


def train_entry(options: argparse.Namespace) -> None:
    from plsc import Entry
    from plsc.engine.observers import Observer

    class Pause(Observer):
        def __init__(self) -> None:
            self._turns = Turns(options.turn)

        def on_step(self, step: Any) -> None:
            self._turns()

    entry = Entry()
    entry.train_dataset = make_images(options)
    entry.set_class_num(options.classes)
    entry.set_emb_size(options.dim)
    entry.set_model_name(options.model)
    entry.set_image_shape((3, options.side, options.side))
    entry.set_train_batch_size(options.batch)
    entry.set_num_workers(options.workers)
    entry.set_train_steps(10**6)
    entry.set_lr(lambda step: LEARNING_RATE)
    entry.set_with_test(False)
    entry.add_observer(Pause())
    entry.train()


def train_bare(options: argparse.Namespace) -> None:
    import paddle
    import paddle.nn.functional as F

    from plsc import create_backbone

    shape = (3, options.side, options.side)
    backbone = create_backbone(options.model, emb_dim=options.dim, image_shape=shape)
    weight = paddle.create_parameter([options.dim, options.classes], "float32")
    parameters = [*backbone.parameters(), weight]
    optimizer = paddle.optimizer.Momentum(LEARNING_RATE, 0.9, parameters=parameters, weight_decay=5e-4)
    turn = Turns(options.turn)
    for step, (images, labels) in enumerate(batches(options)):
        features = F.normalize(backbone((images.astype("float32") - 127.5) / 128.0))
        cosines = paddle.matmul(features, F.normalize(weight, axis=0)).clip(-0.999, 0.999)
        own = F.one_hot(labels, options.classes)
        logits = paddle.where(own > 0, paddle.cos(cosines.acos() + MARGIN), cosines) * SCALE
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        if step % READ_LOSS_EVERY == 0:
            loss.item()
        turn()


def batches(options: argparse.Namespace) -> Iterator[tuple[Any, Any]]:
    import paddle

    data = make_images(options)

    class Images(paddle.io.Dataset):
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            pixels, label = data[index]
            if random.random() < 0.5:
                pixels = pixels[:, ::-1]
            return np.ascontiguousarray(pixels.transpose(2, 0, 1)), label

    loader = paddle.io.DataLoader(
        Images(),
        batch_size=options.batch,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )
    while True:
        yield from loader


if __name__ == "__main__":
    main()
