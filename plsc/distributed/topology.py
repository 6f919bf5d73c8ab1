"""The rank of this process, the number of ranks and the device. The only reader of the launcher's environment."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from plsc.errors import DistributedError
from plsc.utils.hints import setter
from plsc.utils.lazy import require_paddle
from plsc.utils.paddle_noise import without_flags
from plsc.utils.plural import counted
from plsc.utils.processor import set_threads, share_of_cores, threads_of_user

log = logging.getLogger("plsc")

_RANK_TIMEOUT = 10.0  # minutes
# Paddle's launcher leaves these out of a rank's environment where they are too long, and writes them to a file.
LONG_VARIABLES = ("TRAINER_IP_PORT_LIST", "PADDLE_TRAINER_ENDPOINTS")


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


def init_topology(rank_timeout: float | None = None) -> Topology:
    """Choose the device, connect to the other ranks and return this process's `Topology`.

    Ranks communicate by NCCL on GPUs, else by Gloo. From here on they watch each other: `plsc.distributed.watch`.
    Further calls return the same topology without connecting again.

    Args:
        rank_timeout: minutes without progress after which a rank counts as hanging; 0 sets no limit. By default that of
            the call before, or 10.

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
            _connect(_RANK_TIMEOUT if rank_timeout is None else rank_timeout)
    elif asked := devices_asked_of_launcher():
        log.warning(
            "The launcher was asked for %s but started one process: Paddle finds no GPU here. "
            "To train on several CPU ranks: python -m paddle.distributed.launch "
            "--nproc_per_node %d your_script.py",
            asked[0],
            asked[1],
        )
    from plsc.distributed import watch

    watch.start(
        rank,
        world_size,
        address=_store_address() if world_size > 1 else None,
        launcher=launcher_of_this_rank(),
        minutes=rank_timeout,
    )
    return topology


def _connect(rank_timeout: float) -> None:
    import paddle

    if rank_timeout:
        # Milliseconds; of NCCL only, and for its own log: the ranks' watch is what ends a job.
        os.environ.setdefault("PADDLE_PG_TIMEOUT", str(int((rank_timeout + 1.0) * 60_000)))
    if _meet_on_loopback():
        # Gloo would look for the interface by the machine's name, which has no address in some containers.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    names = ("PADDLE_MASTER", "PADDLE_TRAINER_ENDPOINTS")
    where = ", ".join(f"{name} is {os.environ[name]!r}" for name in names if name in os.environ)
    try:
        with without_flags():
            paddle.distributed.init_parallel_env()
    except Exception as error:  # Paddle raises ValueError, RuntimeError and others
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DistributedError(
            f"the ranks cannot be connected: {reason}; {where or 'no address is in the environment'}; every machine "
            f"must resolve and reach the addresses: correct --master or --ips of python -m paddle.distributed.launch"
        ) from error


def _meet_on_loopback() -> bool:
    endpoints = os.environ.get("PADDLE_TRAINER_ENDPOINTS", "")
    return bool(endpoints) and all(endpoint.startswith("127.") for endpoint in endpoints.split(","))


def use_threads(threads: int | Literal["auto"], topology: Topology) -> None:
    """Let this rank compute on so many threads, where it computes on a CPU.

    Args:
        threads: a number, or 'auto' for this rank's share of the cores, unless the user has set an environment variable
            for it.
        topology: of this rank.
    """
    if topology.on_gpu:
        return
    if threads == "auto":
        if threads_of_user(launcher_of_this_rank()):
            return
        threads = share_of_cores(_ranks_here(topology.world_size))
    set_threads(threads)
    if topology.is_main:
        log.info("each rank computes on %s (%s)", counted(threads, "thread"), setter("cpu_threads"))


def _ranks_here(world_size: int) -> int:
    """Ranks on this machine, as the launcher says; all ranks where it does not."""
    found = os.environ.get("PADDLE_LOCAL_SIZE", "")
    return int(found) if found.isdigit() and int(found) else world_size


def place_from_environment() -> tuple[int, int]:
    """(rank, world size) from the launcher's environment variables; (0, 1) without a launcher.

    Raises:
        DistributedError: a variable is not an integer of 0 or more.
    """
    return _from_environment("PADDLE_TRAINER_ID", 0), _from_environment("PADDLE_TRAINERS_NUM", 1)


def rank_environment(rank: int, ports: Sequence[int]) -> dict[str, str]:
    """The environment of one of several ranks that all run on this machine and meet on its loopback interface.

    Args:
        rank: from 0.
        ports: one for each rank, free ones.
    """
    endpoints = [f"127.0.0.1:{port}" for port in ports]
    return {
        **without_launcher(),
        "PADDLE_TRAINER_ID": str(rank),
        "PADDLE_TRAINERS_NUM": str(len(ports)),
        "PADDLE_LOCAL_SIZE": str(len(ports)),
        "PADDLE_RANK_IN_NODE": str(rank),
        "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
        "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
        "PADDLE_MASTER": endpoints[0],
        "FLAGS_selected_gpus": str(rank),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def free_ports(count: int) -> list[int]:
    """So many different ports of this machine that nothing listens at now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def without_launcher() -> dict[str, str]:
    """The environment of this process, without what makes it a rank of a launcher."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PADDLE_") and name not in ("MASTER_ADDR", "MASTER_PORT", "FLAGS_selected_gpus")
    }


def is_restart() -> bool:
    """Whether the environment asks a run to go on by itself: PLSC_AUTO_RESUME, which `plsc launch` sets to 1.

    Raises:
        DistributedError: the variable is neither empty, 0 nor 1.
    """
    text = os.environ.get("PLSC_AUTO_RESUME", "")
    if text not in ("", "0", "1"):
        raise DistributedError(f"PLSC_AUTO_RESUME is {text!r}, expected 0 or 1")
    return text == "1"


def _store_address() -> tuple[str, int]:
    """(host, port) of the ranks' key-value store, as `paddle.distributed.init_parallel_env` finds it."""
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    first = os.environ.get("PADDLE_MASTER") or os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")[0]
    host, _, port = first.rpartition(":")
    return host, int(port)


def host_of_this_rank() -> str:
    """The address of this machine that the launcher gave to the other ranks; its name where there is none."""
    return os.environ.get("PADDLE_CURRENT_ENDPOINT", "").rpartition(":")[0] or socket.gethostname()


def launcher_of_this_rank() -> int | None:
    """The id of the process that started this rank, if that is a launcher; else None."""
    command = " ".join(_command_of_parent())
    found = re.search(r"(?:paddle|plsc)[./]distributed[./]launch|fleetrun|plsc launch", command)
    return os.getppid() if found else None


def _command_of_parent() -> list[str]:
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")
    except (OSError, UnicodeDecodeError):
        return []


def rank_in_environment(environment: bytes) -> tuple[int, int] | None:
    """(rank, rank on its machine) in the environment of a process as /proc shows it; None where it is no rank."""
    variables = dict(entry.partition(b"=")[::2] for entry in environment.split(b"\0"))
    ranks = [variables.get(name, b"") for name in (b"PADDLE_TRAINER_ID", b"PADDLE_RANK_IN_NODE")]
    return (int(ranks[0]), int(ranks[1])) if all(rank.isdigit() for rank in ranks) else None


def devices_asked_of_launcher(command: list[str] | None = None) -> tuple[str, int] | None:
    """(option, number of devices) where the launcher was started with an option for several devices; else None.

    Args:
        command: the launcher's command line as a list of words; by default that of the parent process.
    """
    words = " ".join(_command_of_parent() if command is None else command)
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
