"""Who this process is among the ranks. The only reader of the launcher's environment."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from plsc.errors import DistributedError
from plsc.utils.lazy import require_paddle

log = logging.getLogger("plsc")


@dataclass(frozen=True)
class Topology:
    """This process's place. Made once by `init_topology`, then passed; nobody looks it up.

    Attributes:
        rank: 0 to world_size - 1.
        world_size: number of ranks, R.
        device: 'cpu' or 'gpu:<index>', as `paddle.set_device` takes it.
    """

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise DistributedError(
                f"rank {self.rank} of world size {self.world_size} cannot be; expected 0 <= rank < world size"
            )

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("gpu")


def init_topology() -> Topology:
    """Choose the device, join the other ranks and return this process's `Topology`.

    Gloo connects ranks on CPU, NCCL on GPUs; the launcher sets both up. May be called again: the
    ranks are joined once per process.

    Raises:
        DistributedError: the launcher's environment is contradictory.
        MissingDependencyError: paddle is not installed.
    """
    paddle = require_paddle()
    rank, world_size = place_from_environment()
    on_gpu = paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    device = f"gpu:{paddle.distributed.ParallelEnv().device_id}" if on_gpu else "cpu"
    topology = Topology(rank, world_size, device)
    paddle.set_device(device)
    if world_size > 1:
        if not on_gpu:
            os.environ.setdefault("PADDLE_DISTRI_BACKEND", "gloo")
        if not paddle.distributed.is_initialized():
            paddle.distributed.init_parallel_env()
    elif asked := devices_asked_of_launcher():
        log.warning(
            "The launcher was asked for %s but started one process: Paddle finds no GPU here. "
            "To train on several CPU ranks: python -m paddle.distributed.launch "
            "--nproc_per_node %d your_script.py",
            asked[0],
            asked[1],
        )
    return topology


def place_from_environment() -> tuple[int, int]:
    """(rank, world size) as the launcher set them; (0, 1) without a launcher.

    Raises:
        DistributedError: one of them is no integer.
    """
    return _from_environment("PADDLE_TRAINER_ID", 0), _from_environment("PADDLE_TRAINERS_NUM", 1)


def devices_asked_of_launcher(command: list[str] | None = None) -> tuple[str, int] | None:
    """The option that asked the launcher for more than one device, and how many; else None.

    Args:
        command: the launcher's command line; read from the parent process (Linux) when not given.
    """
    if command is None:
        try:
            command = Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")
        except (OSError, UnicodeDecodeError):
            return None
    words = " ".join(command)
    if "paddle.distributed.launch" not in words and "fleetrun" not in words:
        return None
    found = re.search(r"--(?:selected_)?(?:gpus|devices)[= ](\d+(?:,\d+)+)", words)
    return (found.group(0), found.group(1).count(",") + 1) if found else None


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise DistributedError(
            f"{name} is {text!r}, expected an integer; start the ranks with python -m paddle.distributed.launch"
        )
    return int(text)
