"""Time and memory of the head in two checkouts of PLSC, side by side in one run. CPU, one rank, one thread.

    python benchmarks/head_versions.py --old ../plsc-before --new .
    python benchmarks/head_versions.py --old ../plsc-before --new . --classes 1000000 --modes store

Both versions hold the same problem in a process of their own and take steps in turns, old first in one round and new
first in the next, so that a busier minute of the machine meets both. A step is `Classifier.forward` and `backward` of
an ArcFace head with Momentum. The ratio is the median of the rounds' ratios new / old; beside it are the ratios of the
medians and of the minima. Processor time leaves out the time in which other processes ran. The peak is resident memory
beyond what the process held before the head was made. The losses must agree.
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
    "store": {"logits": "store"},
    "recompute": {"logits": "recompute"},
    "sampled": {"logits": "store", "sample_ratio": 0.1},
    "softmax": {"logits": "store", "loss_type": "dist_softmax"},
    "unfused": {"optimizer": "clipped"},
}


def main() -> None:
    options = parse()
    if options.worker:
        work(options)
        return
    for mode in options.modes.split(","):
        compare(mode, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, help="folder of the one checkout")
    parser.add_argument("--new", type=Path, default=Path(__file__).parents[1], help="folder of the other")
    parser.add_argument("--modes", default="store,recompute,sampled", help=f"some of {','.join(MODES)}")
    parser.add_argument("--classes", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15, help="measured steps of each, after two of warm-up")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(mode: str, options: argparse.Namespace) -> None:
    workers = {name: start(tree, mode, options) for name, tree in (("old", options.old), ("new", options.new))}
    seconds: dict[str, list[float]] = {"old": [], "new": []}
    cpu: dict[str, list[float]] = {"old": [], "new": []}
    worst = 0.0
    try:
        for number in range(options.rounds + 2):
            found = {}
            for name in ("old", "new") if number % 2 else ("new", "old"):
                found[name] = ask(workers[name], "step")
            worst = max(worst, abs(found["new"]["loss"] / found["old"]["loss"] - 1.0))
            if number >= 2:
                for name, answer in found.items():
                    seconds[name].append(answer["seconds"])
                    cpu[name].append(answer["cpu"])
        peaks = {name: ask(worker, "memory")["peak"] for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    print(
        f"{mode:10s} {line('elapsed', seconds)}  {line('processor', cpu)}  "
        f"peak old {peaks['old'] / 2**20:.0f} MiB, new {peaks['new'] / 2**20:.0f} MiB, "
        f"{peaks['new'] / peaks['old']:.3f}  losses differ by {worst:.1e}",
        flush=True,
    )


def line(what: str, seconds: dict[str, list[float]]) -> str:
    old, new = (statistics.median(seconds[name]) for name in ("old", "new"))
    ratio = statistics.median(new / old for old, new in zip(seconds["old"], seconds["new"]))
    least = min(seconds["new"]) / min(seconds["old"])
    return (
        f"{what}: old {old * 1e3:.0f} ms, new {new * 1e3:.0f} ms, new / old {ratio:.3f} "
        f"(of medians {new / old:.3f}, of minima {least:.3f})"
    )


def start(tree: Path, mode: str, options: argparse.Namespace) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", mode]
    for name in ("classes", "dim", "batch"):
        command += [f"--{name}", str(getattr(options, name))]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    environment = {**os.environ, **threads, "PYTHONPATH": str(tree.resolve())}
    return subprocess.Popen(
        command, env=environment, cwd=tree, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def ask(worker: subprocess.Popen, question: str) -> dict[str, float]:
    worker.stdin.write(question + "\n")
    worker.stdin.flush()
    for line in worker.stdout:
        if line.startswith("ANSWER "):
            return json.loads(line[len("ANSWER ") :])
    sys.exit(f"the worker ended with status {worker.wait()}; its error is above")


# In the process of one version


def work(options: argparse.Namespace) -> None:
    import paddle

    from plsc.distributed.topology import init_topology

    init_topology()  # before the first product, since it chooses the kernels
    paddle.set_device("cpu")
    paddle.seed(0)
    paddle.matmul(paddle.ones([256, 256]), paddle.ones([256, 256]))
    base = memory("VmRSS")
    head = make_head(options)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of drawing the weight
    step = 0
    for question in sys.stdin:
        answer = {"peak": float(memory("VmHWM") - base)}
        if question.strip() == "step":
            paddle.seed(step)
            features = paddle.randn([options.batch, options.dim])
            labels = paddle.randint(0, options.classes, [options.batch])
            begin, begin_cpu = time.perf_counter(), time.process_time()
            loss = forward(head, features, labels, step)
            if hasattr(head, "update"):
                head.backward()
                head.update(0.01)
            else:  # 3.0 and before
                head.backward(0.01)
            ran = time.process_time() - begin_cpu
            answer = {"seconds": time.perf_counter() - begin, "cpu": ran, "loss": loss.item()}
            step += 1
        print("ANSWER " + json.dumps(answer), flush=True)


def make_head(options: argparse.Namespace):
    """The `Classifier` of the version on the path."""
    import functools

    import paddle

    from plsc.config import Config
    from plsc.distributed.collectives import Collectives
    from plsc.engine.optimizer import NamedOptimizer

    settings = {"loss_type": "dist_arcface", **MODES[options.worker]}
    if settings.pop("optimizer", None):
        clip = paddle.nn.ClipGradByValue(1e9)  # clips nothing, but makes the head unfused
        settings["optimizer"] = functools.partial(
            paddle.optimizer.Momentum, momentum=0.9, weight_decay=5e-4, grad_clip=clip
        )
    config = Config(
        num_classes=options.classes,
        emb_dim=options.dim,
        param_attr=paddle.ParamAttr(initializer=paddle.nn.initializer.Normal(0.0, 0.01)),
        **settings,
    )

    def make_optimizer(named):
        return NamedOptimizer(config, named)

    try:
        from plsc.losses.classifier import Classifier
    except ModuleNotFoundError:  # PLSC 1.0
        from plsc.models.classifier import Classifier

        return Classifier(config, Collectives(), make_optimizer)
    return Classifier(config, Collectives(), make_optimizer=make_optimizer)


def forward(head, features, labels, step: int):
    return head.forward(features, labels, step=step)


def memory(field: str) -> int:
    row = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(row.split()[1]) * 1024


if __name__ == "__main__":
    main()
