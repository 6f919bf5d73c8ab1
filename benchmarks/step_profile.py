"""What a step of the sharded head consists of, and how far it is over its floor. One CPU rank of one thread.

    python benchmarks/step_profile.py
    python benchmarks/step_profile.py --classes 1000000 --batches 128,512 --ratio 0.1 --centers bfloat16

The floor is three matrix products, and each of the 8 C D bytes of float32 centers and momentum read and written once.
Both are measured between the steps, on arrays of their own: the products on chunks as the head has them, the bytes as
`a += b` on a piece of 256 MiB. The parts are shares of other steps, by the processor time that cProfile gives their
operators; "the rest" is Python, what cProfile itself takes, and operators on small tensors.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout

# Operators and functions of a step by the part that they are of; what is in no part is "the rest".
PARTS = {
    "products": ("matmul", "addmm_"),
    "exponentials": ("exp_",),
    "rows times numbers": ("affine_channel", "reshape", "multiply", "multiply_"),
    "optimizer": ("momentum_",),
    "norms": ("squared_norms", "row_products"),
    "copies of blocks": ("split",),
    "gather and scatter": ("take_rows", "put_rows", "index_select", "scatter_", "highest", "uniform"),
    "widen and round": ("widen", "round_to_bfloat16", "unpack_int8", "round_to_int8", "greatest_magnitudes", "pieces"),
}
CHUNK, PIECE = 2048, 64 << 20  # rows of a product; numbers of the piece that is read and written
STEPS = 5


def main() -> None:
    options = parse()
    from plsc.distributed.topology import init_topology

    init_topology()  # before the first product, since it chooses the kernels
    for classes in (int(number) for number in options.classes.split(",")):
        for batch in (int(number) for number in options.batches.split(",")):
            report(classes, batch, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", default="100000,1000000", help="of this rank")
    parser.add_argument("--batches", default="64,128,256,512", help="gathered batches")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--ratio", type=float, default=1.0, help="sample_ratio")
    parser.add_argument("--logits", default="store")
    parser.add_argument("--centers", default="float32", help="center_storage")
    parser.add_argument("--momentum", default="float32", help="momentum_storage")
    return parser.parse_args()


def report(classes: int, batch: int, options: argparse.Namespace) -> None:
    floor, profile = Floor(batch, options.dim), cProfile.Profile(time.process_time)
    head, steps, profiled, products, traffic = make_head(classes, options), [], [], [], []
    step(head, classes, batch, options.dim, 0)
    for number in range(1, STEPS + 1):
        products.append(floor.products(classes * options.ratio))
        traffic.append(floor.traffic(classes * options.dim * options.ratio))
        steps.append(step(head, classes, batch, options.dim, number))
        profiled.append(step(head, classes, batch, options.dim, number, profile))
    own, bare, state = (statistics.median(seconds) for seconds in (steps, products, traffic))
    print(
        f"{classes} x {options.dim}, batch {batch}, ratio {options.ratio:g}, {options.logits}, {options.centers} and "
        f"{options.momentum}: {own * 1e3:.0f} ms, {own / bare:.2f} of the products ({bare * 1e3:.0f} ms), "
        f"{own / (bare + state):.2f} of products and bytes ({state * 1e3:.0f} ms)"
    )
    parts = parts_of(profile)
    print("   " + ", ".join(f"{name} {seconds / sum(profiled):.2f}" for name, seconds in parts.items()), flush=True)


def step(head, classes: int, batch: int, dim: int, number: int, profile: cProfile.Profile | None = None) -> float:
    """Seconds of the processor."""
    import paddle

    paddle.seed(number)
    features, labels = paddle.randn([batch, dim]), paddle.randint(0, classes, [batch])
    if profile is not None:
        profile.enable()
    begin = time.process_time()
    head.forward(features, labels, step=number)
    head.backward()
    head.update(0.01)
    seconds = time.process_time() - begin
    if profile is not None:
        profile.disable()
    return seconds


def parts_of(profile: cProfile.Profile) -> dict[str, float]:
    """Seconds of all steps by part, in descending order."""
    found = dict.fromkeys([*PARTS, "the rest"], 0.0)
    for (_, _, function), (_, _, own, _, _) in pstats.Stats(profile).stats.items():
        name = function.strip("<>").removeprefix("built-in method ").rpartition(".")[2]
        part = next((part for part, names in PARTS.items() if name in names), "the rest")
        found[part] += own
    return dict(sorted(found.items(), key=lambda item: -item[1]))


class Floor:
    """What no exact step can do without, measured for a part and multiplied."""

    def __init__(self, batch: int, dim: int) -> None:
        import numpy as np
        import paddle

        self._rows, self._features = paddle.randn([CHUNK, dim]), paddle.randn([batch, dim])
        self._e = paddle.randn([CHUNK, batch])
        self._a, self._b = np.ones([PIECE], np.float32), np.ones([PIECE], np.float32)

    def products(self, rows: float) -> float:
        """Seconds of the three products with so many rows."""
        import paddle

        turns, begin = 10, time.process_time()
        for _ in range(turns):
            paddle.matmul(self._rows, self._features, transpose_y=True)
            paddle.matmul(self._e, self._rows, transpose_x=True)
            paddle.matmul(self._e, self._features)
        return (time.process_time() - begin) / turns * rows / CHUNK

    def traffic(self, numbers: float) -> float:
        """Seconds to read centers and momentum of so many numbers each, and to write them: 16 bytes a number."""
        begin = time.process_time()
        self._a += self._b  # 12 bytes a number
        return (time.process_time() - begin) * numbers / PIECE * 16 / 12


def make_head(classes: int, options: argparse.Namespace):
    from plsc.config import Config
    from plsc.distributed.collectives import Collectives
    from plsc.engine.optimizer import NamedOptimizer
    from plsc.losses.classifier import Classifier

    config = Config(
        num_classes=classes,
        emb_dim=options.dim,
        sample_ratio=options.ratio,
        logits=options.logits,
        center_storage=options.centers,
        momentum_storage=options.momentum,
    )
    return Classifier(config, Collectives(), make_optimizer=lambda named: NamedOptimizer(config, named))


if __name__ == "__main__":
    main()
