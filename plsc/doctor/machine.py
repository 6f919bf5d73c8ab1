"""Checks of the machine: cores and threads, memory, shared memory, open files."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from plsc.doctor.findings import Finding, Request, check, fault, ok, warning
from plsc.doctor.paddle_facts import SECONDS
from plsc.utils.files import size_text
from plsc.utils.hints import setter
from plsc.utils.memory import NO_LIMIT, process_memory, shared_memory, total_memory
from plsc.utils.plural import counted
from plsc.utils.processor import core_quota, threads_of_user, usable_cores

SHARED = Path("/dev/shm")
# Importing Paddle takes 0.4 GB; ResNet50 with 16 images of 112 x 112 and 10,000 classes takes about 2 GB on a CPU.
_NO_MEMORY, _LITTLE_MEMORY = 1e9, 4e9
# NCCL makes its buffers between the GPUs of a machine in /dev/shm, about 10 MB for each pair and direction; a container
# has 64 MB where nothing else is asked for.
_LITTLE_SHARED = 1 << 30
# Sources of many shards hold each open, and so does each reader process; the usual limit of a login is 1024.
_FEW_FILES, _NO_FILES = 1024, 256


@check("cores")
def cores(request: Request) -> Iterator[Finding]:
    every, usable, quota = os.cpu_count() or 1, usable_cores(), core_quota()
    by = [] if quota == math.inf else [f"the control group leaves {quota:g}"]
    by += [] if usable == every or by else ["by the affinity of this process"]
    seen = f"{counted(usable, 'usable core')} of {every}" + (f" ({by[0]})" if by else "")
    user = threads_of_user(None)
    if user is not None:
        yield _threads(seen, user, usable)
    elif usable == 1:
        yield warning(
            seen,
            means="computing and reading images share one core",
            cure="give the process more cores: --cpus of the container, --cpus-per-task of Slurm, taskset",
        )
    else:
        yield ok(f"{seen}; no number of threads is set, so that ranks share them")


def _threads(seen: str, user: str, usable: int) -> Finding:
    """What a number of threads that the user has set means."""
    name, _, text = user.partition("=")
    count = int(text) if text.isdigit() else usable
    if count > usable:
        return warning(
            f"{seen}; {user}",
            means="more threads than cores wait for each other: a step may take several times as long",
            cure=f"unset {name}: each rank then takes its share of the cores",
        )
    if count < usable:
        return warning(
            f"{seen}; {user}",
            means=f"a rank on a CPU computes on {counted(count, 'thread')}; that is right for {usable // count} ranks",
            cure=f"with fewer ranks unset {name}: each rank then takes its share of the cores",
        )
    return ok(f"{seen}; {user}")


@check("memory")
def memory(request: Request) -> Iterator[Finding]:
    every, left, own = total_memory(), shared_memory(), process_memory()
    limits = [f"the limits of this process leave {size_text(own)}"] if own < NO_LIMIT else []
    seen = "; ".join([f"{size_text(left)} available of {size_text(every)}", *limits])
    left = min(left, own)
    more = "end other programs; raise the limit of the container (--memory) or of the job (--mem)"
    if left <= 0:
        yield warning("the free memory is not known", means="/proc is not readable here", cure="look at free -h")
    elif left < _NO_MEMORY:
        yield fault(seen, means="the system ends training for want of memory", cure=more)
    elif left < _LITTLE_MEMORY:
        yield warning(
            seen,
            means="small networks and batches fit; the system ends a process that takes more",
            cure=f"{more}; or {setter('recompute', True)}, {setter('center_storage', 'bfloat16')}, a smaller "
            f"{setter('train_batch_size')}",
        )
    else:
        yield ok(seen)


@check("shared memory", seconds=SECONDS + 30.0)
def shared(request: Request) -> Iterator[Finding]:
    found = request.paddle.found
    needs = found is not None and len(found.devices) >= 2
    try:
        size = os.statvfs(SHARED)
    except OSError as error:
        seen, room = f"{SHARED}: {error.strerror}", 0
    else:
        room = size.f_frsize * size.f_bavail
        seen = f"{SHARED} has {size_text(room)} free of {size_text(size.f_frsize * size.f_blocks)}"
    if needs and room < _LITTLE_SHARED:
        yield warning(
            seen,
            means="NCCL passes data between GPUs through it, and fails where it is full",
            cure="start the container with --shm-size=8g or --ipc=host; in Kubernetes mount an emptyDir of medium "
            "Memory there",
        )
    else:
        yield ok(seen if needs else f"{seen}; without several GPUs nothing here needs it")


@check("open files")
def open_files(request: Request) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = f"a process may open {_limit(soft)} files (at most {_limit(hard)})"
    cure = "ulimit -n 65536 before the start; LimitNOFILE of systemd; --ulimit nofile=65536 of a container"
    if 0 <= soft < _NO_FILES:
        yield fault(seen, means="data in many files cannot be opened, nor checkpoints of many shards", cure=cure)
    elif 0 <= soft < _FEW_FILES:
        yield warning(seen, means="data in many shards, or many reader processes, may reach the limit", cure=cure)
    else:
        yield ok(seen)


def _limit(number: int) -> str:
    return "any number of" if number == resource.RLIM_INFINITY else f"{number:,}"
