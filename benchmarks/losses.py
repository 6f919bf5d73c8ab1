"""What each loss costs over plain ArcFace: steps of the sharded head, on two CPU ranks of one thread each, in one run.

    python benchmarks/losses.py                              # every loss, 200,000 classes
    python benchmarks/losses.py --losses adaface,magface --classes 1000000

A head of ArcFace and one of the loss take steps in turns, on the same features, the one first in one round and second
in the next, so that a busier minute of the machine meets both. A step is `Classifier.forward`, `backward` and `update`
with Momentum; its time is that of the slower rank. The figures are the medians of the rounds' ratios, by the clock and
by the time that the processors spent, which leaves out the time in which other programs ran.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # this checkout
BASE = {"loss_type": "dist_arcface"}


def variants() -> dict[str, dict[str, Any]]:
    """Settings by the name of what is measured."""
    from plsc.loss_types import LOSSES

    margins = {"combined": {"margin1": 0.9, "margin2": 0.4, "margin3": 0.15}}
    found = {kind: {"loss_type": f"dist_{kind}", **margins.get(kind, {})} for kind in LOSSES}
    found["margin warm-up"] = {**BASE, "margin_warmup": 1000}
    found["label smoothing"] = {**BASE, "label_smoothing": 0.1}
    found["class weights"] = {**BASE, "class_weights": True}
    found["inter-class filter"] = {**BASE, "interclass_filter": 0.4}
    found |= {f"sub-centers K {k}": {**BASE, "subcenters": k} for k in (2, 3)}
    found["arcface again"] = BASE  # what the measurement itself is worth
    found["arcface s 80"] = {**BASE, "scale": 80.0}
    return found


def main() -> None:
    options = parse()
    if options.worker:
        work(options)
        return
    names = options.losses.split(",") if options.losses else list(variants())
    results = {}
    for name in names:
        found = results[name] = run(name, options)
        print(
            f"{name:22s} {found['ratio']:.3f} of arcface by the clock (rounds {found['least']:.3f} to "
            f"{found['most']:.3f}), {found['processor']:.3f} by processors; "
            f"medians {found['own'] * 1e3:.0f} ms and {found['arcface'] * 1e3:.0f} ms",
            flush=True,
        )
    if options.out:
        settings = {name: getattr(options, name) for name in ("classes", "dim", "batch", "ranks", "ratio", "rounds")}
        options.out.write_text(json.dumps({"settings": settings, "losses": results}, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", default="", help="some of the names that a run without it prints")
    parser.add_argument("--classes", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64, help="samples per rank")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--ratio", type=float, default=1.0, help="share of classes in a step")
    parser.add_argument("--rounds", type=int, default=9, help="measured steps of each, after two of warm-up")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(name: str, options: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "paddle.distributed.launch"]
        command += ["--nproc_per_node", str(options.ranks), "--log_dir", f"{folder}/log", str(HERE / "losses.py")]
        command += ["--worker", name, "--answer", str(answer)]
        for option in ("classes", "dim", "batch", "ranks", "ratio", "rounds"):
            command += [f"--{option}", str(getattr(options, option))]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, **threads, "PYTHONPATH": path}
        done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
        if not answer.exists():
            sys.exit(
                f"{name}: the ranks ended with status {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            )
        return json.loads(answer.read_text())


# Under the launcher


def work(options: argparse.Namespace) -> None:
    import numpy as np
    import paddle

    from plsc.distributed.collectives import Collectives
    from plsc.distributed.topology import init_topology

    collectives = Collectives(init_topology())
    paddle.seed(collectives.topology.rank)
    heads = {"arcface": make_head(BASE, options, collectives)}
    heads["own"] = make_head(variants()[options.worker], options, collectives)

    def seconds(head, features, labels, step: int) -> list[float]:
        """By the clock, and of the processor; of the slower rank."""
        collectives.barrier()
        start, start_processor = time.perf_counter(), time.process_time()
        head.forward(features, labels, step=step)
        head.backward()
        head.update(0.01)
        passed = [time.perf_counter() - start, time.process_time() - start_processor]
        return collectives.all_reduce_max(paddle.to_tensor(passed, "float64")).tolist()

    times: dict[str, list[list[float]]] = {name: [] for name in heads}
    for step in range(options.rounds + 2):
        features = paddle.randn([options.batch, options.dim])
        labels = paddle.randint(0, options.classes, [options.batch])
        for name in sorted(heads, reverse=bool(step % 2)):
            times[name].append(seconds(heads[name], features, labels, step))
    own, base = (np.array(times[name][2:]) for name in ("own", "arcface"))
    ratios = own / base
    if collectives.topology.is_main:
        answer = {
            "ratio": float(np.median(ratios[:, 0])),
            "least": float(ratios[:, 0].min()),
            "most": float(ratios[:, 0].max()),
            "processor": float(np.median(ratios[:, 1])),
            "own": float(np.median(own[:, 0])),
            "arcface": float(np.median(base[:, 0])),
        }
        options.answer.write_text(json.dumps(answer))


def make_head(settings: dict[str, Any], options: argparse.Namespace, collectives):
    import numpy as np

    from plsc.config import Config
    from plsc.engine.optimizer import NamedOptimizer
    from plsc.losses.classifier import Classifier

    counts = np.random.default_rng(0).integers(1, 500, options.classes)
    settings = {**settings, "class_counts": counts}
    if settings.get("class_weights"):
        settings["class_weights"] = 1.0 / counts
    config = Config(
        num_classes=options.classes, emb_dim=options.dim, sample_ratio=options.ratio, logits="store", **settings
    )
    return Classifier(config, collectives, make_optimizer=lambda named: NamedOptimizer(config, named))


if __name__ == "__main__":
    main()
