"""Median time of a step and peak memory of this process. Imports no framework, so every contender can use it."""

from __future__ import annotations

import json
import resource
import statistics
import time
from pathlib import Path
from typing import Callable, List, NamedTuple


class Problem(NamedTuple):
    """Two ranks' worth of a last layer: C classes over R ranks, D wide, N samples per rank, a share sampled."""

    classes: int
    dim: int
    batch: int
    ranks: int
    ratio: float = 1.0
    steps: int = 5

    @property
    def shard(self) -> int:
        return self.classes // self.ranks

    @property
    def gathered(self) -> int:
        return self.batch * self.ranks

    @property
    def state_bytes(self) -> int:
        """Weights and momentum of one shard, float32."""
        return 2 * 4 * self.shard * self.dim


def resident_bytes() -> int:
    """What this process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_bytes() -> int:
    """The most that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(problem: Problem, footprint: int, step: Callable[[], None], warm_up: int = 2) -> dict:
    """Run warm-up steps, then `problem.steps`, and return seconds and memory.

    Args:
        footprint: `resident_bytes()` before the layer was made: the interpreter, the framework, its threads.
    """
    for _ in range(warm_up):
        step()
    seconds: List[float] = []
    for _ in range(problem.steps):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return {"median_s": statistics.median(seconds), "seconds": seconds, "footprint": footprint,
            "peak_over_state": (peak_bytes() - footprint) / problem.state_bytes}


def write_result(path: str, result: dict) -> None:
    Path(path).write_text(json.dumps(result))
