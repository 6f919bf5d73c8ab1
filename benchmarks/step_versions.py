"""Time of a whole training step in two checkouts of PLSC, side by side in one run. CPU, one thread per rank.

    python benchmarks/step_versions.py --old ../plsc-before --new .
    python benchmarks/step_versions.py --old ../plsc-before --new . --ranks 2 --set on_nonfinite=skip

A step is `Trainer.train_step` with random pixels of uint8, or with `--floats` finished float32 images. Both versions
train in processes of their own and take steps in turns, old first in one round and new first in the next, so that a
busier minute of the machine meets both. The ratio is the median of the rounds' ratios new / old; beside it are the
ratios of the medians and of the minima. Processor time is that of all ranks; it leaves out the time in which other
processes ran, and counts what a rank computes while it waits. The losses must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from head_versions import line


def main() -> None:
    options = parse()
    if options.worker:
        work(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    trees = {"old": options.old, "new": options.new}
    workers = {name: start(tree, folder / name, options=options) for name, tree in trees.items()}
    seconds: dict[str, list[float]] = {"old": [], "new": []}
    cpu: dict[str, list[float]] = {"old": [], "new": []}
    worst = 0.0
    try:
        for number in range(options.rounds + 2):
            found = {name: ask(workers[name]) for name in (("old", "new") if number % 2 else ("new", "old"))}
            losses = {name: answers[0]["loss"] for name, answers in found.items()}
            worst = max(worst, abs(losses["new"] / losses["old"] - 1.0))
            if number >= 2:
                for name, answers in found.items():
                    seconds[name].append(max(answer["seconds"] for answer in answers))
                    cpu[name].append(sum(answer["cpu"] for answer in answers))
    finally:
        for worker in (process for ranks in workers.values() for process in ranks):
            worker.kill()
            worker.wait()
    print(f"{line('elapsed', seconds)}  {line('processor', cpu)}  losses differ by {worst:.1e}")
    spread = [new / old for old, new in zip(cpu["old"], cpu["new"])]
    print(f"processor time, quartiles of new / old: {statistics.quantiles(spread, n=4)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, help="folder of the one checkout")
    parser.add_argument("--new", type=Path, default=Path(__file__).parents[1], help="folder of the other")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--model", default="ResNetTiny")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=128, help="per rank")
    parser.add_argument("--floats", action="store_true", help="images are finished float32")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of both")
    parser.add_argument("--rounds", type=int, default=30, help="measured steps of each, after two of warm-up")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def start(tree: Path, folder: Path, *, options: argparse.Namespace) -> list[subprocess.Popen]:
    """The ranks of one version, which work in `folder`."""
    folder.mkdir()
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", *sys.argv[1:]]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    ports = [free_port() for _ in range(options.ranks)]
    endpoints = [f"127.0.0.1:{port}" for port in ports]
    processes = []
    for rank in range(options.ranks):
        ranks = {
            "PADDLE_TRAINER_ID": str(rank),
            "PADDLE_TRAINERS_NUM": str(options.ranks),
            "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
            "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
        }
        environment = {**os.environ, **threads, **(ranks if options.ranks > 1 else {})}
        environment["PYTHONPATH"] = str(tree.resolve())
        process = subprocess.Popen(
            command, env=environment, cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        processes.append(process)
    return processes


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def ask(workers: list[subprocess.Popen]) -> list[dict[str, float]]:
    """A step of every rank."""
    for worker in workers:
        worker.stdin.write("step\n")
        worker.stdin.flush()
    return [answer(worker) for worker in workers]


def answer(worker: subprocess.Popen) -> dict[str, float]:
    for text in worker.stdout:
        if text.startswith("ANSWER "):
            return json.loads(text[len("ANSWER ") :])
    sys.exit(f"a worker ended with status {worker.wait()}; its error is above")


# In the process of one rank of one version


def work(options: argparse.Namespace) -> None:
    import numpy as np
    import paddle

    from plsc import Config, Trainer
    from plsc.data.loader import Batch

    config = Config(
        model_name=options.model,
        image_shape=(3, options.side, options.side),
        num_classes=options.classes,
        emb_dim=options.dim,
        train_batch_size=options.batch,
        train_dataset=[(np.zeros((options.side, options.side, 3), np.uint8), 0)] * options.batch * options.ranks,
        param_attr=paddle.ParamAttr(initializer=paddle.nn.initializer.Normal(0.0, 0.01)),
        num_workers=0,
        with_test=False,
        train_steps=10**6,
        lr_schedule=lambda step: 0.01,
        **dict(setting.split("=", 1) for setting in options.set),
    )
    trainer = Trainer(config)
    rank = trainer.topology.rank
    for step, _ in enumerate(sys.stdin):
        rng = np.random.default_rng((step, rank))
        images = rng.integers(0, 256, [options.batch, 3, options.side, options.side], np.uint8)
        if options.floats:
            images = ((images - 127.5) / 128).astype(np.float32)
        batch = Batch(images, rng.integers(0, options.classes, options.batch))
        begin, begin_cpu = time.perf_counter(), time.process_time()
        loss = trainer.train_step(batch)["loss"].item()
        ran = time.process_time() - begin_cpu
        print("ANSWER " + json.dumps({"seconds": time.perf_counter() - begin, "cpu": ran, "loss": loss}), flush=True)


if __name__ == "__main__":
    main()
