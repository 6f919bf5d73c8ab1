"""One of the ranks of the check of all-reduce. Run as a process, with its time limit in seconds; prints JSON."""

from __future__ import annotations

import json
import signal
import statistics
import sys
import time

# Numbers that are summed over ranks: 4 MB, as much as a small network's gradients.
_COUNT = 1 << 20
_REPEATS = 5


def main() -> None:
    """Sum over the ranks, and print what came out."""
    signal.alarm(int(sys.argv[1]))  # so that it ends also where the process that has started it is gone
    from plsc.distributed.collectives import Collectives
    from plsc.distributed.topology import init_topology
    from plsc.utils.lazy import require_paddle

    paddle = require_paddle()
    topology = init_topology(rank_timeout=1.0)
    collectives = Collectives(topology)
    expected = topology.world_size * (topology.world_size + 1) / 2
    seconds, right = [], True
    for _ in range(_REPEATS):
        numbers = paddle.full([_COUNT], topology.rank + 1.0, "float32")
        start = time.perf_counter()
        total = collectives.all_reduce_sum(numbers)
        least, most = float(total.min()), float(total.max())  # waits for the device
        seconds.append(time.perf_counter() - start)
        right = right and least == most == expected
    answer = {
        "right": right,
        "device": topology.device,
        "bytes": 4 * _COUNT,
        "seconds": statistics.median(seconds),
    }
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
