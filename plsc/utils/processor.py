"""The choice of MKL's kernels, so that Paddle multiplies matrices at the processor's full speed.

Paddle's CPU build contains MKL 2019. On processors of other makers than Intel this version uses SSE2 kernels at
a third of the speed, also if the processor has newer instructions. The environment variable `MKL_DEBUG_CPU_TYPE`, which
MKL reads at its first matrix product, selects other kernels.
"""

from __future__ import annotations

import os
from pathlib import Path

_VARIABLE = "MKL_DEBUG_CPU_TYPE"
# MKL's numbers for its kernels, the fastest first, with the instructions that each needs.
_KERNELS = (("7", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}), ("5", {"avx2", "fma"}))


def use_vector_kernels() -> None:
    """Select the fastest kernels, where MKL would not and the variable is not set already."""
    try:
        kernels = mkl_kernels(Path("/proc/cpuinfo").read_text())
    except OSError:  # some sandboxes have no /proc
        return
    if kernels:
        os.environ.setdefault(_VARIABLE, kernels)


def mkl_kernels(cpuinfo: str) -> str | None:
    """The value of `MKL_DEBUG_CPU_TYPE` for a processor.

    Args:
        cpuinfo: the text of /proc/cpuinfo.

    Returns:
        None where MKL chooses well by itself, or the processor has none of the instructions.
    """
    rows = dict(line.split(":", 1) for line in cpuinfo.partition("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.split() for name, value in rows.items()}
    if fields.get("vendor_id", ["GenuineIntel"]) == ["GenuineIntel"]:
        return None
    supported = set(fields.get("flags", []))
    return next((number for number, needed in _KERNELS if needed <= supported), None)
