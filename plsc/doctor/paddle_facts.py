"""What Paddle says of itself, asked in a process of its own, since a Paddle that crashes ends the process."""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

from plsc.distributed.topology import without_launcher
from plsc.doctor.children import Child, run_children

# Importing Paddle takes a second from memory, and much longer from a cold network file system.
SECONDS = 90


class Device(NamedTuple):
    """A GPU: its name, its memory in bytes, and its compute capability as (major, minor)."""

    name: str
    memory: int
    capability: tuple[int, int]


class Facts(NamedTuple):
    """Attributes of Paddle.

    Attributes:
        version: as '3.3.1'.
        commit: of its source.
        cuda: the version of CUDA that it was built for; None for a build for CPUs.
        cudnn: of cuDNN; None for a build for CPUs.
        nccl: of NCCL; None where it has none.
        devices: the GPUs that it finds.
        device: that a product of matrices was computed on, 'cpu' or 'gpu:0'.
        deviation: the greatest deviation of that product from NumPy's in float64, relative to its greatest number.
        rate: floating-point operations per second of that product, on one thread where it was a CPU.
    """

    version: str
    commit: str
    cuda: str | None
    cudnn: str | None
    nccl: str | None
    devices: list[Device]
    device: str
    deviation: float
    rate: float


class PaddleFacts:
    """Asks Paddle once.

    Example:
        >>> PaddleFacts().found.version
        '3.3.1'
    """

    @functools.cached_property
    def child(self) -> Child:
        """The process that asked, which has ended."""
        command = [sys.executable, "-m", "plsc.doctor.paddle_probe", str(SECONDS)]
        return run_children([command], environments=[without_launcher()], seconds=SECONDS)[0]

    @functools.cached_property
    def found(self) -> Facts | None:
        """The answer; None where Paddle cannot be imported or used."""
        answer: dict[str, Any] | None = self.child.answer()
        if answer is None:
            return None
        devices = [Device(name, memory, (major, minor)) for name, memory, (major, minor) in answer.pop("devices")]
        return Facts(devices=devices, **answer)
