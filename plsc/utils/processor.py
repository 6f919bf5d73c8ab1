"""MKL's kernels and the number of threads, so that Paddle computes at the processor's full speed.

Paddle's CPU build contains MKL 2019. On processors of other makers than Intel this version uses SSE2 kernels at
a third of the speed, also if the processor has newer instructions. The environment variable `MKL_DEBUG_CPU_TYPE`, which
MKL reads at its first matrix product, selects other kernels.

Paddle sets `OMP_NUM_THREADS` to 1 when it is imported where the variable is not set, so a process computes on one core.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")  # in a container its own group is mounted here
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


def set_threads(count: int) -> None:
    """Let this process compute on so many threads on the CPU: what OMP_NUM_THREADS would do before Paddle is imported.

    Args:
        count: 1 or more.
    """
    import paddle

    # Paddle has no public function for it. This one sets the threads of OpenMP and of MKL; `DataLoader` calls it too.
    paddle.base.core.set_num_threads(count)


def share_of_cores(ranks: int) -> int:
    """The threads of each of the ranks of this machine: its share of the cores that this process may use, 1 or more."""
    return max(1, usable_cores() // ranks)


def usable_cores() -> int:
    """Cores that this process may use: by its affinity, and by the limit of its control group."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # no Linux
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, core_quota())))


def core_quota() -> float:
    """Cores by the limit of the control group, of both versions; infinity without one."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((_GROUPS / name).read_text() for name in files).split()
        except (OSError, ValueError):
            continue
        if quota.isdigit():  # else 'max', or -1
            return int(quota) / int(period)
    return math.inf


def threads_of_user(launcher: int | None) -> str | None:
    """OMP_NUM_THREADS or MKL_NUM_THREADS as the user has set it, 'NAME=value'; None where nobody or Paddle has.

    A "1" is the user's where this process was started with it. A launcher of Paddle has imported Paddle, too, and
    passes on what that has set, so that there the launcher must have been started with it.

    Args:
        launcher: the id of the process that started this rank, None without one.
    """
    if value := os.environ.get("MKL_NUM_THREADS"):
        return f"MKL_NUM_THREADS={value}"
    value = os.environ.get("OMP_NUM_THREADS")
    if not value:
        return None
    if value == "1":
        try:
            started_with = Path(f"/proc/{launcher or os.getpid()}/environ").read_bytes().split(b"\0")
        except OSError:  # of another user, or no Linux: in doubt it is the user's
            started_with = [b"OMP_NUM_THREADS=1"]
        if b"OMP_NUM_THREADS=1" not in started_with:
            return None
    return f"OMP_NUM_THREADS={value}"
