"""What fails on one rank fails on all: on threads, and in whole runs on real ranks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from plsc.distributed.agreement import agree
from plsc.distributed.collectives import Collectives
from plsc.errors import CheckpointError, ConfigError, DataError
from tests._support.ranks import ThreadRanks, launch


class Unusual(DataError):
    """A user's error, which needs more than a message."""

    def __init__(self, message, more):
        super().__init__(message, more)


def fail(error):
    raise error


def test_a_result_is_that_of_this_rank():
    ranks = ThreadRanks(3)
    with ThreadPoolExecutor(3) as pool:
        found = pool.map(lambda rank: agree(lambda: 10 * rank, ranks[rank], error=DataError), range(3))
        assert list(found) == [0, 10, 20]


@pytest.mark.parametrize(
    "error, raised, message",
    [
        (ConfigError("no"), ConfigError, "no"),
        (KeyError("pairs"), CheckpointError, "KeyError: 'pairs'"),
        (OSError(28, "No space left", "a/b"), CheckpointError, r"\[Errno 28\] No space left: 'a/b'"),
        (MemoryError(), CheckpointError, "MemoryError: "),
        (Unusual("odd", 1), CheckpointError, "odd"),
    ],
)
def test_whatever_a_rank_raises_is_raised_on_all(error, raised, message):
    ranks = ThreadRanks(3)

    def run(rank):
        return agree(lambda: fail(error) if rank == 1 else rank, ranks[rank], error=CheckpointError, prefix="saving: ")

    with ThreadPoolExecutor(3) as pool:
        for rank, future in enumerate([pool.submit(run, rank) for rank in range(3)]):
            with pytest.raises(raised, match=f"saving: rank 1: .*{message}") as found:
                future.result()
            assert type(found.value) is raised
            is_foreign = not isinstance(error, DataError | ConfigError)
            assert found.value.__cause__ is (error if rank == 1 and is_foreign else None)


def test_a_single_rank_is_not_named():
    with pytest.raises(DataError, match="^odd: KeyError: 1$"):
        agree(lambda: fail(KeyError(1)), Collectives(), error=DataError, prefix="odd: ")


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """{(name of the run, rank): the error}, of runs in which the last of two ranks alone finds a fault."""
    root = tmp_path_factory.mktemp("failing")
    _, output = launch(2, "failing_worker.py", root, log_dir=root / "log")
    found = {}
    for line in output.splitlines():
        if line.startswith(("FAILED ", "FINISHED ")):
            _, name, rank, *text = line.split(" ", 3)
            found[name, int(rank)] = " ".join(text)
    return root, found


RUNS = {
    "damaged_image": "DataError: verification set pixels: rank 1: image 7: 8 bytes that are no image",
    "other_sets": "DataError: ranks have different verification sets",
    "failing_reader": "DataError: rank 1: test_reader: calling it failed: KeyError: 'pairs'",
    "unshared_folder": "must name a folder that all machines share",
    "failing_schedule": "ConfigError: rank 1: lr_schedule: the function raised IndexError for step 2",
    "full_disk": "was not written: rank 1: ",
    "failing_part": "NotSavedError: the checkpoint {root}/part/0 was not written: rank 1: "
    "{root}/part/.0.plsc-partial/classes-000000032.safetensors: cannot be written: ZeroDivisionError: of a",
    "damaged_shard": "CheckpointError: rank 1: {root}/damaged/0/classes-000000032.safetensors: tensor 'head.weight'",
    "other_checkpoint": "DistributedError: the ranks do not agree: checkpoint is 1 (",
    "failing_test": "CheckpointError: rank 1: checkpoint '{root}/none' does not exist",
    "failing_export": "CheckpointError: rank 0: checkpoint '{root}/none' does not exist",
}


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("name", RUNS)
def test_ranks_fail_together(name, failures):
    root, found = failures
    for rank in (0, 1):
        assert RUNS[name].format(root=root) in found[name, rank]


@pytest.mark.slow
@pytest.mark.ranks
def test_runs_that_fail_at_the_start_or_while_saving_leave_no_part_of_a_checkpoint(failures):
    root, found = failures
    assert found["two", 0] == found["damaged", 1] == ""
    for name in ("image", "sets", "schedule", "full", "part", "shared/output", "unshared/output"):
        left = {path.name for path in (root / name).iterdir()} if (root / name).exists() else set()
        assert left <= {"findings.jsonl", "metrics.csv", "metrics.jsonl", "run.json"}, name
