"""What one rank holds in memory beyond class centers and momentum, item by item, on a CPU.

    python benchmarks/memory.py                                   # 1 M x 512, batch 64, both ways of logits
    python benchmarks/memory.py --classes 100000 --batch 128

Each way runs in a process of its own. The peak is VmHWM of /proc/self/status, which is set back before an item begins,
so that it is the peak of that item. The state is float32 centers and momentum, 8 bytes a parameter. Features are given,
so the backbone has no part in it.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WAYS = ("store", "recompute")
MIB = 2**20


def main() -> None:
    options = parse()
    if options.way:
        measure(options)
        return
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)}
    for way in options.logits.split(","):
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--way", way], check=True, env=environment)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64, help="samples of all ranks, G")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--logits", default=",".join(WAYS))
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace) -> None:
    state = 8 * options.classes * options.dim / MIB
    print(
        f"\n{options.classes:,} x {options.dim}, batch {options.batch}, logits '{options.way}': {state:.0f} MiB state"
    )
    print(f"{'MiB':38}{'after':>9}{'peak':>9}{'Paddle':>9}")
    item = Items()
    from plsc.utils.lazy import require_paddle

    require_paddle()
    import paddle

    from plsc import Config
    from plsc.distributed.collectives import Collectives
    from plsc.engine.optimizer import NamedOptimizer
    from plsc.losses.classifier import Classifier

    item.paddle = paddle
    item.end("import of Paddle and PLSC")
    paddle.matmul(paddle.ones([64, 64]), paddle.ones([64, 64]))
    item.end("first product (MKL's buffers)")
    base = item.resident
    config = Config(num_classes=options.classes, emb_dim=options.dim, loss_type="dist_arcface", logits=options.way)
    head = Classifier(config, Collectives(), make_optimizer=lambda named: NamedOptimizer(config, named))
    item.end("centers and momentum")
    print(f"{'  peak of it over the state':38}{item.peak - base - state:18.0f}")
    features = paddle.randn([options.batch, options.dim])
    labels = paddle.randint(0, options.classes, [options.batch])
    highest = 0.0
    for step in range(options.steps):
        for name, work in (
            ("forward", lambda at=step: head.forward(features, labels, step=at)),
            ("feature gradient", head.backward),
            ("update", lambda: head.update(0.1)),
        ):
            work()
            item.end(f"step {step}: {name}")
            highest = max(highest, item.peak)
    over = highest - base - state
    print(f"peak of the steps over state and import: {over:.0f} MiB, {over / state:.1%} of the state")
    shard = head._head._shard
    count = sum(len(chunk.blocks) for chunk in shard.chunks)
    gc.collect()
    before = resident("VmRSS")
    shard._chunks = None
    gc.collect()
    print(f"  views of {count} blocks: {before - resident('VmRSS'):.0f} MiB given back")
    head._head._softmax._buffer = None
    gc.collect()
    item.end("after the buffer of logits was freed")


class Items:
    """Prints what each item has added to this process."""

    paddle: Any = None

    def __init__(self) -> None:
        self.resident = self.peak = 0.0
        self._begin()

    def end(self, name: str) -> None:
        """Print the memory after `name`, its peak, and what Paddle has allocated."""
        self.resident, self.peak = resident("VmRSS"), resident("VmHWM")
        allocated = self.paddle.base.core.host_memory_stat_current_value("Allocated", 0) / MIB if self.paddle else 0.0
        print(f"{name:38}{self.resident:9.0f}{self.peak:9.0f}{allocated:9.0f}", flush=True)
        self._begin()

    def _begin(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back


def resident(kind: str) -> float:
    """VmRSS or VmHWM of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind))


if __name__ == "__main__":
    main()
