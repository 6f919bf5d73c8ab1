"""Checks of what several ranks need: collectives between two of them, and a name that the machine knows itself by."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

from plsc.distributed.topology import free_ports, rank_environment
from plsc.doctor.children import Child, run_children
from plsc.doctor.findings import Finding, Request, check, fault, ok, warning
from plsc.doctor.paddle_facts import SECONDS
from plsc.utils.files import size_text

# Seconds for two ranks to import Paddle, to connect and to sum; each ends by itself a little later.
RANK_SECONDS = 60


@check("all-reduce", seconds=SECONDS + RANK_SECONDS + 30.0)
def all_reduce(request: Request) -> Iterator[Finding]:
    """Two ranks of this machine sum 4 MB over the loopback interface: by NCCL on two GPUs, else by Gloo on the CPU."""
    found = request.paddle.found
    if found is None:
        return  # the check of Paddle has said so
    on_gpus = len(found.devices) >= 2
    name = "NCCL on gpu:0 and gpu:1" if on_gpus else "Gloo on the CPU"
    ranks = _run_ranks(on_gpus=on_gpus)
    answers = [rank.answer() for rank in ranks]
    reasons = [f"rank {number}: {rank.reason()}" for number, rank in enumerate(ranks) if rank.answer() is None]
    if reasons:
        yield fault(
            f"two ranks by {name}: {'; '.join(reasons)}",
            means="training on several ranks of this machine will fail or hang; on one it may work",
            cure="a firewall or sandbox that forbids connections to 127.0.0.1 is the usual cause"
            + ("; NCCL_DEBUG=INFO says more of NCCL; try NCCL_P2P_DISABLE=1" if on_gpus else ""),
        )
        return
    if not all(answer and answer["right"] for answer in answers):
        yield fault(
            f"two ranks by {name}: the sum is wrong",
            means="gradients would be wrong",
            cure="install Paddle again" + ("; test the cards; try NCCL_P2P_DISABLE=1" if on_gpus else ""),
        )
        return
    first = answers[0] or {}
    yield ok(
        f"two ranks by {name}: {size_text(first['bytes'])} in {1e3 * first['seconds']:.1f} ms, the sum is right"
        + ("; NCCL needs two GPUs" if found.devices and not on_gpus else "")
    )


@check("host name", seconds=30.0)
def host_name(request: Request) -> Iterator[Finding]:
    """Whether the machine's name has an address, by which Gloo chooses its network interface."""
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError as error:
        yield warning(
            f"the machine's own name has no address: {error.strerror or error}",
            means="ranks find their network interface by it, and may not connect",
            cure="add the name to /etc/hosts, or name the interface: GLOO_SOCKET_IFNAME=eth0 (NCCL_SOCKET_IFNAME)",
        )
    else:
        yield ok("the machine's own name has an address")


def _run_ranks(*, on_gpus: bool) -> list[Child]:
    ports = free_ports(2)
    environments = [rank_environment(rank, ports) for rank in range(2)]
    if not on_gpus:
        environments = [{**each, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} for each in environments]
    command = [sys.executable, "-m", "plsc.doctor.rank_probe", str(RANK_SECONDS)]
    return run_children([command, command], environments=environments, seconds=RANK_SECONDS)
