"""How much memory this process may still take, of the machine and of its GPU."""

from __future__ import annotations

from pathlib import Path

# A limit without a number, or one that stands for none.
_NO_LIMIT = 1 << 60


def available_memory() -> int:
    """Bytes that processes of this machine, or of this container, can still allocate; 0 where it is not known.

    Of the kernel's estimate for the machine and of what the control group's limit leaves, the smaller.
    """
    machine = next((int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAv")), 0)
    return max(min([machine, *_group_limits()]), 0)


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


def _group_limits() -> list[int]:
    """What the memory limits of this process's control groups leave, of both versions of control groups."""
    left = []
    for entry in _lines("/proc/self/cgroup"):
        _, kinds, path = entry.split(":", 2)
        if not kinds:
            folder, limit, used = Path("/sys/fs/cgroup"), "memory.max", "memory.current"
        elif "memory" in kinds.split(","):
            folder, limit, used = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # In a container the group is mounted as the root.
        for group in (folder / path.lstrip("/"), folder):
            most = _number(group / limit)
            if most is not None and most < _NO_LIMIT:
                # Pages of files that were read count as used, and are given up when memory is needed.
                cached = [
                    int(text.split()[1]) for text in _lines(group / "memory.stat") if text.startswith("inactive_file ")
                ]
                left.append(most - (_number(group / used) or 0) + sum(cached))
                break
    return left


def _number(path: Path) -> int | None:
    text = "".join(_lines(path))
    return int(text) if text.isdigit() else None


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
