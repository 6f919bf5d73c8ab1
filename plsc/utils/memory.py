"""How much memory this process may still take, of the machine and of its GPU."""

from __future__ import annotations

import resource
from pathlib import Path

# A limit without a number, or one that stands for none.
NO_LIMIT = 1 << 60
_GROUPS = Path("/sys/fs/cgroup")
# The limits of a process's memory (ulimit -v, ulimit -d), and what /proc/self/status calls what counts against them.
_PROCESS_LIMITS = {resource.RLIMIT_AS: "VmSize:", resource.RLIMIT_DATA: "VmData:"}


def available_memory() -> int:
    """Bytes that this process can still allocate: the smaller of `shared_memory` and `process_memory`."""
    return min(shared_memory(), process_memory())


def shared_memory() -> int:
    """Bytes that processes of this machine, or of this container, can still allocate; 0 where it is not known.

    Of the kernel's estimate for the machine and of what the limits of control groups leave, the smallest.
    """
    return max(min([_machine_memory("MemAvailable:"), *_group_limits()]), 0)


def total_memory() -> int:
    """Bytes of memory of the machine, whatever limits there are; 0 where it is not known."""
    return _machine_memory("MemTotal:")


def process_memory() -> int:
    """Bytes that the limits of this process (ulimit -v, ulimit -d) leave to it; `NO_LIMIT` where there are none."""
    left, status = NO_LIMIT, _lines("/proc/self/status")
    for kind, field in _PROCESS_LIMITS.items():
        most = resource.getrlimit(kind)[0]
        used = next((int(line.split()[1]) * 1024 for line in status if line.startswith(field)), 0)
        if most != resource.RLIM_INFINITY:
            left = min(left, most - used)
    return max(left, 0)


def resident_memory() -> int:
    """Bytes of memory that this process holds; 0 where it is not known."""
    return next((int(line.split()[1]) * 1024 for line in _lines("/proc/self/status") if line.startswith("VmRSS:")), 0)


def reserved_gpu_memory() -> int:
    """Bytes of the current GPU that Paddle's pool holds. It waits for nothing."""
    import paddle

    return int(paddle.device.cuda.memory_reserved())


def available_gpu_memory() -> int:
    """Bytes that this process can still allocate on the current GPU: what the driver has, and Paddle's pool.

    The driver counts what other processes, the CUDA context, NCCL and cuDNN hold. Paddle's pool gives back to this
    process what its tensors have freed, and the driver counts that as taken. FLAGS_gpu_memory_limit_mb is kept.
    """
    import paddle

    # Paddle 3.2 and 3.3 have no public function for it: `paddle.nn.Layer.to` asks this one, which is cudaMemGetInfo
    # (paddle/phi/core/platform/device/gpu/gpu_info.cc, GpuMemoryUsage). It exists in builds for GPUs only.
    driver = paddle.base.core.gpu_memory_available()
    pool = paddle.device.cuda.memory_reserved() - paddle.device.cuda.memory_allocated()
    return int(driver + pool)


def _machine_memory(name: str) -> int:
    return next((int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith(name)), 0)


def _group_limits() -> list[int]:
    """What the memory limits of this process's control groups leave, of both versions of control groups."""
    left = []
    for entry in _lines("/proc/self/cgroup"):
        _, kinds, path = entry.split(":", 2)
        if not kinds:
            root, limit, used = _GROUPS, "memory.max", "memory.current"
        elif "memory" in kinds.split(","):
            root, limit, used = _GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # Groups above have limits too. In a container the group itself is mounted as the root.
        own = root / path.lstrip("/")
        for group in (own, *(above for above in own.parents if above.is_relative_to(root))):
            most = _number(group / limit)
            if most is not None and most < NO_LIMIT:
                left.append(most - (_number(group / used) or 0) + _cached(group))
    return left


def _cached(group: Path) -> int:
    """Bytes of files that were read: they count as used, and are given up when memory is needed."""
    found = dict(line.split() for line in _lines(group / "memory.stat"))
    # Version 1 has the group's own under the second name, which is that of the whole group in version 2.
    return int(found.get("total_inactive_file") or found.get("inactive_file") or 0)


def _number(path: Path) -> int | None:
    text = "".join(_lines(path))
    return int(text) if text.isdigit() else None


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
