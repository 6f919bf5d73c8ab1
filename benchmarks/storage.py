"""Time and memory of a training step by how class centers and their momentum are kept, side by side in one run.

    python benchmarks/storage.py
    python benchmarks/storage.py --classes 1000000 --ratio 0.1 --modes float32,bf16+bf16

Each mode is a process of its own that holds the shard of one of two ranks: half of the classes, with the gathered batch
of both. The processes take steps in turns, in another order in each round, so that a busier minute of the machine meets
all. A step is `forward`, `backward` and `update` of an ArcFace head with Momentum, one thread. Ratios are medians over
the rounds, of the same round's float32 step. Processor time leaves out the time in which other processes ran, but not
that they took the cache; the ratio of the least times has the least of it.

`state` is what the checkpoint holds of centers and momentum; `peak` is resident memory beyond that of the process
before the head was made, in training steps; `made` the same while the head is made. Paddle, MKL and Numba are loaded
before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

MODES = {
    "float32": {},
    "f32+bf16": {"momentum_storage": "bfloat16"},
    "f32+none": {"momentum_storage": "none"},
    "bf16+bf16": {"center_storage": "bfloat16", "momentum_storage": "bfloat16"},
    "bf16+int8": {"center_storage": "bfloat16", "momentum_storage": "int8"},
    "bf16+none": {"center_storage": "bfloat16", "momentum_storage": "none"},
}
RANKS = 2
GIB = 2**30


def main() -> None:
    options = parse()
    if options.worker:
        work(options)
        return
    names = options.modes.split(",")
    workers = {name: start(name, options) for name in names}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    try:
        for number in range(options.rounds + 2):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                answer = ask(workers[name], "step")
                if number >= 2:
                    found[name].append(answer)
        memory_of = {name: ask(worker, "memory") for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    report(names, found, memory_of, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", default=",".join(MODES), help="the first is what the others are compared with")
    parser.add_argument("--classes", type=int, default=1_000_000, help="of both ranks")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64, help="samples of one rank")
    parser.add_argument("--ratio", type=float, default=1.0, help="sample_ratio")
    parser.add_argument("--logits", default="store")
    parser.add_argument("--rounds", type=int, default=11, help="measured steps of each, after two of warm-up")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def report(names, found, memory_of, options) -> None:
    numbers = options.classes // RANKS * options.dim
    print(f"{options.classes} x {options.dim}, one of {RANKS} ranks, batch {RANKS} x {options.batch}, {options.logits}")
    titles = (f"{'mode':10s}", f"{'elapsed':>16s}", f"{'processor':>16s}", f"{'its least':>16s}")
    print(" ".join([*titles, f"{'state':>16s}", f"{'GiB a million':>14s}", f"{'peak':>16s}", f"{'made':>8s}"]))
    for name in names:
        cells = [f"{name:10s}"]
        for kind in ("seconds", "cpu"):
            ratio = statistics.median(own[kind] / first[kind] for own, first in zip(found[name], found[names[0]]))
            cells.append(f"{statistics.median(own[kind] for own in found[name]) * 1e3:8.0f} ms {ratio:5.3f}")
        least = [min(answer["cpu"] for answer in found[each]) for each in (name, names[0])]
        cells.append(f"{least[0] * 1e3:8.0f} ms {least[0] / least[1]:5.3f}")
        own, first = memory_of[name], memory_of[names[0]]
        cells.append(f"{own['state'] / numbers:5.3f} B {own['state'] / first['state']:8.3f}")
        cells.append(f"{own['state'] * RANKS / GIB / (options.classes / 1e6):14.2f}")
        cells.append(f"{own['peak'] / numbers:5.3f} B {own['peak'] / first['peak']:8.3f}")
        cells.append(f"{own['made'] / numbers:6.3f} B")
        print(" ".join(cells), flush=True)


def start(mode: str, options: argparse.Namespace) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", mode]
    for name in ("classes", "dim", "batch", "ratio", "logits"):
        command += [f"--{name}", str(getattr(options, name))]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    environment = {**os.environ, **threads, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def ask(worker: subprocess.Popen, question: str) -> dict[str, float]:
    worker.stdin.write(question + "\n")
    worker.stdin.flush()
    for line in worker.stdout:
        if line.startswith("ANSWER "):
            return json.loads(line[len("ANSWER ") :])
    sys.exit(f"the worker ended with status {worker.wait()}; its error is above")


# In the process of one mode


def work(options: argparse.Namespace) -> None:
    import paddle

    from plsc.distributed.topology import init_topology

    init_topology()  # before the first product, since it chooses the kernels
    paddle.set_device("cpu")
    paddle.matmul(paddle.ones([256, 256]), paddle.ones([256, 256]))
    load_compiler()
    base = memory("VmRSS")
    reset_peak()
    head = make_head(options)
    made = memory("VmHWM") - base
    reset_peak()
    step = 0
    for question in sys.stdin:
        state = sum(value.size * value.element_size() for value in head.state().values())
        answer = {"peak": float(memory("VmHWM") - base), "made": float(made), "state": float(state)}
        if question.strip() == "step":
            paddle.seed(step)
            features = paddle.randn([RANKS * options.batch, options.dim])
            labels = paddle.randint(0, options.classes // RANKS, [RANKS * options.batch])
            begin, begin_cpu = time.perf_counter(), time.process_time()
            head.forward(features, labels, step=step)
            head.backward()
            head.update(0.01)
            answer["cpu"], answer["seconds"] = time.process_time() - begin_cpu, time.perf_counter() - begin
            step += 1
        print("ANSWER " + json.dumps(answer), flush=True)


def load_compiler() -> None:
    """Numba takes 160 MiB of every process, which are no part of the shard."""
    import numpy as np

    from plsc.losses.rounding import widen

    widen(np.zeros([1, 8], np.uint16), out=np.zeros([1, 8], np.float32))


def make_head(options: argparse.Namespace):
    from plsc.config import Config
    from plsc.distributed.collectives import Collectives
    from plsc.engine.optimizer import NamedOptimizer
    from plsc.losses.classifier import Classifier

    config = Config(
        num_classes=options.classes // RANKS,
        emb_dim=options.dim,
        loss_type="dist_arcface",
        sample_ratio=options.ratio,
        logits=options.logits,
        **MODES[options.worker],
    )
    return Classifier(config, Collectives(), make_optimizer=lambda named: NamedOptimizer(config, named))


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def memory(field: str) -> int:
    row = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(row.split()[1]) * 1024


if __name__ == "__main__":
    main()
