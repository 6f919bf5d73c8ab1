"""How much memory a process may still take."""

from __future__ import annotations

import resource
import sys

import pytest

from plsc.utils import memory
from tests._support.ranks import run

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that plays a machine with 8 GiB free: own control groups, and their files."""
    read = memory._lines

    def make(groups, files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        known = {"/proc/self/cgroup": groups, "/proc/meminfo": ["MemTotal: 1 kB", f"MemAvailable: {8 << 20} kB"]}
        monkeypatch.setattr(memory, "_GROUPS", tmp_path)
        monkeypatch.setattr(memory, "_lines", lambda path: known[path] if path in known else read(path))
        return memory.shared_memory()

    return make


@pytest.mark.parametrize(
    "files, expected",
    [
        ({}, 8 * GIB),
        ({"a/b/memory.max": "max", "a/b/memory.current": "7"}, 8 * GIB),
        ({"a/b/memory.max": f"{2 * GIB}", "a/b/memory.current": f"{GIB}"}, GIB),
        (
            {"a/b/memory.max": f"{2 * GIB}", "a/b/memory.current": f"{GIB}", "a/b/memory.stat": "inactive_file 9"},
            GIB + 9,
        ),
        ({"a/b/memory.max": f"{4 * GIB}", "a/memory.max": f"{3 * GIB}", "a/memory.current": f"{GIB}"}, 2 * GIB),
        ({"memory.max": f"{3 * GIB}", "memory.current": f"{GIB}"}, 2 * GIB),
        ({"a/b/memory.max": "5", "a/b/memory.current": "7"}, 0),
    ],
)
def test_the_smallest_limit_of_the_control_groups_counts(machine, files, expected):
    assert machine(["0::/a/b"], files) == expected


def test_files_that_were_read_are_counted_in_groups_of_the_first_version(machine):
    own, above = "memory/a/memory", "memory/memory"
    files = {
        f"{own}.limit_in_bytes": "9223372036854771712",
        f"{above}.limit_in_bytes": f"{3 * GIB}",
        f"{above}.usage_in_bytes": f"{2 * GIB}",
        f"{above}.stat": "inactive_file 5\ntotal_inactive_file 7",
    }
    assert machine(["4:memory:/a", "0::/"], files) == GIB + 7


SCRIPT = """
import mmap, resource, sys
from plsc.utils.memory import NO_LIMIT, available_memory, process_memory
assert process_memory() == NO_LIMIT
kind = getattr(resource, sys.argv[1])
resource.setrlimit(kind, (1 << 30, 1 << 30))
before = process_memory()
block = mmap.mmap(-1, 1 << 26, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
assert process_memory() == before - (1 << 26), before
assert available_memory() <= process_memory() < 1 << 30
try:
    mmap.mmap(-1, process_memory() + (1 << 22), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
except OSError:
    print("REFUSED")
"""


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_the_limit_of_a_process_leaves_what_the_kernel_grants(kind):
    if any(resource.getrlimit(getattr(resource, name))[0] != resource.RLIM_INFINITY for name in (kind, "RLIMIT_AS")):
        pytest.skip("this process has a limit")
    assert "REFUSED" in run([sys.executable, "-c", SCRIPT, kind])[1]
