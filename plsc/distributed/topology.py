"""The rank of this process, the number of ranks and the device. The only reader of the launcher's environment."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from plsc.errors import DistributedError
from plsc.utils.lazy import require_paddle

log = logging.getLogger("plsc")


@dataclass(frozen=True)
class Topology:
    """The rank and device of this process. `init_topology` makes one, which is passed to all code that needs it.

    Args:
        rank: index of this process among the ranks, 0 to world_size - 1.
        world_size: number of ranks, R.
        device: 'cpu' or 'gpu:<index>', as `paddle.set_device` takes it.

    Raises:
        DistributedError: a rank outside 0 to world_size - 1.

    Example:
        >>> Topology(rank=1, world_size=4).is_main
        False
    """

    rank: int = 0
    world_size: int = 1
    device: str = field(default="cpu", kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise DistributedError(
                f"got rank {self.rank} of world size {self.world_size}, expected 0 <= rank < world size; start the "
                f"ranks with python -m paddle.distributed.launch"
            )

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone logs and writes what is the same on all ranks."""
        return self.rank == 0

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.startswith("gpu")


def init_topology() -> Topology:
    """Choose the device, connect to the other ranks and return this process's `Topology`.

    Ranks communicate by NCCL on GPUs, else by Gloo. Further calls return the same topology without connecting again.

    Raises:
        DistributedError: the launcher's environment variables contradict each other, or the ranks cannot be reached.
        MissingDependencyError: paddle is not installed.
    """
    paddle = require_paddle()
    rank, world_size = place_from_environment()
    on_gpu = paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    device = f"gpu:{paddle.distributed.ParallelEnv().device_id}" if on_gpu else "cpu"
    topology = Topology(rank, world_size, device=device)
    paddle.set_device(device)
    if world_size > 1:
        if not on_gpu:
            os.environ.setdefault("PADDLE_DISTRI_BACKEND", "gloo")
        if not paddle.distributed.is_initialized():
            _connect()
    elif asked := devices_asked_of_launcher():
        log.warning(
            "The launcher was asked for %s but started one process: Paddle finds no GPU here. "
            "To train on several CPU ranks: python -m paddle.distributed.launch "
            "--nproc_per_node %d your_script.py",
            asked[0],
            asked[1],
        )
    return topology


def _connect() -> None:
    import paddle

    names = ("PADDLE_MASTER", "PADDLE_TRAINER_ENDPOINTS")
    where = ", ".join(f"{name} is {os.environ[name]!r}" for name in names if name in os.environ)
    try:
        paddle.distributed.init_parallel_env()
    except Exception as error:  # Paddle raises ValueError, RuntimeError and others
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DistributedError(
            f"the ranks cannot be connected: {reason}; {where or 'no address is in the environment'}; every machine "
            f"must resolve and reach the addresses: correct --master or --ips of python -m paddle.distributed.launch"
        ) from error


def place_from_environment() -> tuple[int, int]:
    """(rank, world size) from the launcher's environment variables; (0, 1) without a launcher.

    Raises:
        DistributedError: a variable is not an integer of 0 or more.
    """
    return _from_environment("PADDLE_TRAINER_ID", 0), _from_environment("PADDLE_TRAINERS_NUM", 1)


def is_restart() -> bool:
    """Whether the environment asks a run to go on by itself: PLSC_AUTO_RESUME, which `plsc launch` sets to 1.

    Raises:
        DistributedError: the variable is neither empty, 0 nor 1.
    """
    text = os.environ.get("PLSC_AUTO_RESUME", "")
    if text not in ("", "0", "1"):
        raise DistributedError(f"PLSC_AUTO_RESUME is {text!r}, expected 0 or 1")
    return text == "1"


def devices_asked_of_launcher(command: list[str] | None = None) -> tuple[str, int] | None:
    """(option, number of devices) where the launcher was started with an option for several devices; else None.

    Args:
        command: the launcher's command line as a list of words; by default that of the parent process.
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
