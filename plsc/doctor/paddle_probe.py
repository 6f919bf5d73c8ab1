"""Prints what `plsc.doctor.paddle_facts` asks, as a JSON object. Run as a process, with its time limit in seconds."""

from __future__ import annotations

import json
import signal
import sys
import time
from typing import Any

import numpy as np

from plsc.utils.lazy import require_paddle

# Sides of the matrices whose product is computed: long enough to be timed, a tenth of a second on a slow core.
_SIDE = 1024


def main() -> None:
    """Ask Paddle, and print the answer."""
    signal.alarm(int(sys.argv[1]))  # so that it ends also where the process that has started it is gone
    paddle = require_paddle()
    count = paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0
    device = "gpu:0" if count else "cpu"
    paddle.set_device(device)
    deviation, rate = _multiply(paddle)
    answer = {
        "version": paddle.__version__,
        "commit": str(getattr(paddle.version, "commit", ""))[:12],
        "cuda": _version(paddle, "cuda"),
        "cudnn": _version(paddle, "cudnn"),
        "nccl": _version(paddle, "nccl"),
        "devices": [_device(paddle, index) for index in range(count)],
        "device": device,
        "deviation": deviation,
        "rate": rate,
    }
    print(json.dumps(answer))


def _version(paddle: Any, name: str) -> str | None:
    """The version of a library that Paddle was built for; None for none. Paddle says 'False' or '0' of a CPU build."""
    found = getattr(paddle.version, name, lambda: None)()
    return None if str(found) in ("None", "False", "0") else str(found)


def _device(paddle: Any, index: int) -> tuple[str, int, tuple[int, int]]:
    found = paddle.device.cuda.get_device_properties(index)
    return found.name, int(found.total_memory), (int(found.major), int(found.minor))


def _multiply(paddle: Any) -> tuple[float, float]:
    """The deviation of a product of matrices from NumPy's, and its operations per second."""
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((_SIDE, _SIDE)).astype(np.float32) for _ in range(2))
    on_device = [paddle.to_tensor(matrix) for matrix in (left, right)]
    found = paddle.matmul(*on_device).numpy()
    expected = left.astype(np.float64) @ right.astype(np.float64)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        float(paddle.matmul(*on_device)[0, 0])
        seconds.append(time.perf_counter() - start)
    deviation = float(np.abs(found - expected).max() / np.abs(expected).max())
    return deviation, 2 * _SIDE**3 / sorted(seconds)[1]


if __name__ == "__main__":
    main()
