"""The bytes that a step moves, as `benchmarks/head_traffic.py` counts them by the operators of a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Bytes per logit at most. Before exponentials were kept: 64.6, 84.7, 68.7, 109.0, 129.0, 72.8.
MOST = {
    "float32": 34.0,
    "float32, s=128": 46.0,
    "float32, recompute": 54.0,
    "float16": 56.0,
    "float16, recompute": 94.0,
    "bfloat16": 36.0,
}


def test_a_logit_moves_no_more_bytes_than_said():
    output = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "head_traffic.py", "--modes", ";".join(MOST)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PLSC_FAKE_GPU": "0"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()[-len(MOST) :]
    for (mode, most), line in zip(MOST.items(), output, strict=True):
        assert line.startswith(mode)
        assert most - 2.0 < float(line[22:].split()[0]) <= most
