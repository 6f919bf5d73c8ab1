"""Which kernels MKL is told to take."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from plsc.distributed import topology
from plsc.distributed.topology import Topology, use_threads
from plsc.utils import processor
from plsc.utils.processor import mkl_kernels, share_of_cores, threads_of_user, usable_cores

ALL = "sse2 avx avx2 fma avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    "vendor, flags, expected",
    [
        ("AuthenticAMD", ALL, "7"),
        ("AuthenticAMD", "sse2 avx avx2 fma avx512f", "5"),
        ("HygonGenuine", "sse2 avx avx2 fma", "5"),
        ("AuthenticAMD", "sse2 avx", None),
        ("GenuineIntel", ALL, None),
    ],
)
def test_the_best_kernels_that_the_processor_has_where_mkl_does_not_look(vendor, flags, expected):
    one = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n"
    assert mkl_kernels(f"{one}\n{one}") == expected


def test_a_processor_of_another_kind_is_left_alone():
    assert mkl_kernels("processor\t: 0\nFeatures\t: fp asimd\n") is None


def test_the_users_own_choice_stays():
    code = "import os, plsc.utils.lazy as lazy; lazy.require_paddle(); print(os.environ['MKL_DEBUG_CPU_TYPE'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MKL_DEBUG_CPU_TYPE": "4"},
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.split()[-1] == "4"


# Threads

_COUNT = """
import os, time
from plsc.utils.lazy import require_paddle
paddle = require_paddle()
from plsc.distributed.topology import Topology, use_threads
from plsc.utils import processor
processor.usable_cores = lambda: 2
use_threads({threads!r}, Topology())
matrix = paddle.ones([1024, 1024])
matrix @ matrix
before = time.process_time() - time.thread_time()
for _ in range(8):
    matrix @ matrix
others = time.process_time() - time.thread_time() - before
print("OTHERS", others > 0.002)
"""


def computes_on_other_threads(threads, **variables):
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    code = _COUNT.format(threads=threads)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, **variables}, text=True, capture_output=True, check=True
    )
    return done.stdout.split("OTHERS ")[1].strip() == "True"


@pytest.mark.parametrize(
    "threads, variables, expected",
    [
        ("auto", {}, True),
        ("auto", {"OMP_NUM_THREADS": "1"}, False),
        (2, {"OMP_NUM_THREADS": "1"}, True),
        (1, {}, False),
    ],
)
def test_products_are_computed_on_the_threads_that_were_asked_for(threads, variables, expected):
    assert computes_on_other_threads(threads, **variables) == expected


def test_each_rank_gets_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(processor, "usable_cores", lambda: 7)
    assert [share_of_cores(ranks) for ranks in (1, 2, 3, 8)] == [7, 3, 2, 1]


@pytest.mark.parametrize(
    "files, expected",
    [
        ({}, 6),
        ({"cpu.max": "max 100000"}, 6),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "900000 100000"}, 6),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 6),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
    ],
)
def test_cores_are_those_of_the_affinity_and_of_the_control_group(monkeypatch, tmp_path, files, expected):
    monkeypatch.setattr(processor, "_GROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert usable_cores() == expected


@pytest.mark.parametrize(
    "omp, mkl, started_with, expected",
    [
        (None, None, "", None),
        ("1", None, "", None),  # Paddle's
        ("1", None, "OMP_NUM_THREADS=1", "OMP_NUM_THREADS=1"),
        ("4", None, "", "OMP_NUM_THREADS=4"),  # a script that sets it before it imports Paddle
        ("1", "3", "", "MKL_NUM_THREADS=3"),
    ],
)
@pytest.mark.parametrize("is_launched", [False, True])
def test_a_number_of_threads_is_the_users_or_that_of_paddle(monkeypatch, omp, mkl, started_with, expected, is_launched):
    for name, value in (("OMP_NUM_THREADS", omp), ("MKL_NUM_THREADS", mkl)):
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    environment = {"PATH": os.environ["PATH"], **dict([started_with.split("=")] if started_with else [])}
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()  # its environment is there to be read once it runs
            monkeypatch.setattr(os, "getpid", lambda: process.pid)
            assert threads_of_user(process.pid if is_launched else None) == expected
        finally:
            process.stdin.close()


@pytest.mark.parametrize(
    "threads, users, local, expected",
    [
        ("auto", None, None, [2]),  # 8 cores for the 4 ranks of the run
        ("auto", None, "2", [4]),  # of which 2 are on this machine
        ("auto", "OMP_NUM_THREADS=1", None, []),
        (3, "OMP_NUM_THREADS=1", None, [3]),
    ],
)
def test_a_rank_sets_its_threads(monkeypatch, caplog, threads, users, local, expected):
    found = []
    monkeypatch.setattr(processor, "usable_cores", lambda: 8)
    monkeypatch.setattr(topology, "threads_of_user", lambda launcher: users)
    monkeypatch.setattr(topology, "set_threads", found.append)
    monkeypatch.delenv("PADDLE_LOCAL_SIZE", raising=False)
    if local:
        monkeypatch.setenv("PADDLE_LOCAL_SIZE", local)
    with caplog.at_level(logging.INFO, "plsc"):
        use_threads(threads, Topology(0, 4))
        use_threads(threads, Topology(0, 4, device="gpu:0"))
    assert found == expected
    assert ("each rank computes on" in caplog.text) == bool(expected)
