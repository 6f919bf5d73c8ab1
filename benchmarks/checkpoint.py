"""Seconds and memory of saving, loading, re-sharding and verifying a checkpoint. CPU.

    python benchmarks/checkpoint.py --classes 500000 --folder /disk/scratch
    python -m paddle.distributed.launch --nproc_per_node 2 benchmarks/checkpoint.py --folder /disk/scratch

The state is the head's: class centers and their momentum, float32. "plain write" writes and flushes as many bytes from
memory, each rank its share. A peak is the most resident memory of a rank over what it had before, which is the state
and the program. Re-sharding reads, on rank 0, the rows of the middle one of three ranks into a head of that size.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle

from plsc import Config
from plsc.checkpoint import Checkpoint, save_checkpoint
from plsc.checkpoint.digests import digest_of
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology, init_topology
from plsc.engine.optimizer import NamedOptimizer
from plsc.engine.state import head_parts
from plsc.engine.tensor_rows import CheckpointState
from plsc.losses.classifier import Classifier
from plsc.losses.ops import host_view
from plsc.utils.ranges import shard_range

BLOCK = 1 << 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, required=True, help="a folder to write to; what is written is removed")
    options = parser.parse_args()
    topology = init_topology()
    collectives = Collectives(topology)
    constant = paddle.ParamAttr(initializer=paddle.nn.initializer.Constant(0.5))  # drawing numbers takes longer
    config = Config(num_classes=options.classes, emb_dim=options.dim, loss_type="dist_arcface", param_attr=constant)
    head = make_head(config, collectives)
    total = sum(value.numpy().nbytes for value in head.state().values()) * topology.world_size
    root = options.folder / "plsc-benchmark"
    for number in range(options.rounds):
        measure(root, head, config=config, collectives=collectives, total=total, number=number)


def measure(root: Path, head: Classifier, *, config: Config, collectives: Collectives, total: int, number: int) -> None:
    topology = collectives.topology
    is_main, share = topology.is_main, total // topology.world_size
    if is_main:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
    collectives.barrier()
    results = {}
    results["plain write"] = timed(lambda: plain_write(root / f"plain-{topology.rank}", share), collectives)

    def save() -> None:
        parts = head_parts(head, is_main, num_classes=config.num_classes)
        save_checkpoint(root, "0", parts=parts, about={}, collectives=collectives)

    results["save"] = timed(save, collectives)
    saved = Checkpoint(root)
    results["load"] = timed(lambda: load(head, saved), collectives)
    if is_main:
        results["verify"] = timed(saved.verify, Collectives())
        rows = shard_range(config.num_classes, 3, shard=1)
        other = make_head(config, Collectives(Topology(1, 3)))
        assert other.classes == rows
        results["re-shard"] = timed(lambda: load(other, saved), Collectives())
        print(
            f"round {number}: {total / 2**30:.2f} GiB on {topology.world_size} ranks, digest {digest_speed():.1f} GB/s"
        )
        for what, (seconds, peak) in results.items():
            print(f"  {what:12} {seconds:6.2f} s   peak over the state {peak / 2**20:6.0f} MiB", flush=True)
        shutil.rmtree(root)
    collectives.barrier()


def make_head(config: Config, collectives: Collectives) -> Classifier:
    head = Classifier(config, collectives, make_optimizer=lambda named: NamedOptimizer(config, named))
    for value in head.state().values():  # memory that was never written to is not resident
        view = host_view(value)
        assert view is not None
        view[...] = 0.5
    return head


def load(head: Classifier, saved: Checkpoint) -> None:
    names = [name[len("head.") :] for name in saved.names("head.")]
    head.load(CheckpointState(saved, "head.", names, rows_of=lambda name: head.classes))


def timed(action: Callable[[], None], collectives: Collectives) -> tuple[float, int]:
    """Seconds until all ranks are done, and the highest peak of a rank over its memory before, in bytes."""
    before = reset_peak()
    collectives.barrier()
    start = time.perf_counter()
    action()
    collectives.barrier()
    seconds = time.perf_counter() - start
    return seconds, max(collectives.gather_objects(memory("VmHWM") - before))


def reset_peak() -> int:
    """Resident memory now; the peak that the system keeps begins anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def plain_write(path: Path, size: int) -> None:
    block = np.random.default_rng(0).integers(0, 255, BLOCK, np.uint8)
    with open(path, "wb") as file:
        for _ in range(0, size, BLOCK):
            file.write(block.data)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def digest_speed() -> float:
    block, start = np.ones(BLOCK, np.uint8), time.perf_counter()
    for _ in range(16):
        digest_of(block.data)
    return 16 * BLOCK / (time.perf_counter() - start) / 1e9


if __name__ == "__main__":
    main()
