"""Let Paddle multiply as fast as the processor can.

Paddle's CPU build brings MKL 2019, which asks who made the processor instead of what it can do: on any but
Intel's it takes kernels of SSE2, at a third of the speed. MKL reads `MKL_DEBUG_CPU_TYPE` at its first product.
"""

from __future__ import annotations

import os
from pathlib import Path

_VARIABLE = "MKL_DEBUG_CPU_TYPE"
# MKL's numbers of its kernels, best first, with the instructions that they need.
_KERNELS = (("7", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}), ("5", {"avx2", "fma"}))


def use_vector_kernels() -> None:
    """Name the best kernels to MKL, where it would not find them itself and nobody has named others."""
    try:
        kernels = mkl_kernels(Path("/proc/cpuinfo").read_text())
    except OSError:  # not Linux
        return
    if kernels:
        os.environ.setdefault(_VARIABLE, kernels)


def mkl_kernels(cpuinfo: str) -> str | None:
    """What MKL is to be told on the processor of this `/proc/cpuinfo`; None to leave the choice to it."""
    rows = dict(line.split(":", 1) for line in cpuinfo.partition("\n\n")[0].splitlines() if ":" in line)
    facts = {name.strip(): value.split() for name, value in rows.items()}
    if facts.get("vendor_id", ["GenuineIntel"]) == ["GenuineIntel"]:
        return None
    able = set(facts.get("flags", []))
    return next((number for number, needed in _KERNELS if needed <= able), None)
