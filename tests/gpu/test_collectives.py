"""The collectives over ranks, by NCCL on GPUs, and that each is beside its adjoint."""

from __future__ import annotations

import numpy as np
import pytest

from tests._support import fake_gpu
from tests._support.ranks import launch
from tests._support.workers.collectives_worker import ROWS, own
from tests.gpu.conftest import cards


@pytest.fixture(
    scope="module",
    params=[("cpu", 2), ("cpu", 4), *(pytest.param(("gpu", count), marks=pytest.mark.gpu) for count in (1, 2, 4, 8))],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def results(request, tmp_path_factory):
    """(ranks, what each of them holds)."""
    device, ranks = request.param
    if device == "gpu" and cards() < ranks:
        pytest.skip(f"needs {ranks} GPUs; found {cards()}")
    folder = tmp_path_factory.mktemp("collectives")
    launch(ranks, "collectives_worker.py", folder, log_dir=folder / "log", on_gpus=device == "gpu")
    found = [np.load(folder / f"{rank}.npz") for rank in range(ranks)]
    assert all(one["on_gpu"] == (device == "gpu" or fake_gpu.is_asked_for()) for one in found)
    return ranks, found


pytestmark = [pytest.mark.ranks, pytest.mark.slow]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64"])
def test_collectives_are_those_of_the_definition(results, dtype):
    ranks, found = results
    rows = [own(rank, ranks, "rows") for rank in range(ranks)]
    total = np.sum([own(rank, ranks, "all") for rank in range(ranks)], axis=0)
    for rank, got in enumerate(found):
        np.testing.assert_array_equal(got[f"all_gather/{dtype}"], np.concatenate(rows))
        np.testing.assert_array_equal(got[f"reduce_scatter_sum/{dtype}"], total[rank * ROWS : (rank + 1) * ROWS])
        for name, reduce in (("sum", np.sum), ("max", np.max), ("min", np.min)):
            np.testing.assert_array_equal(got[f"all_reduce_{name}/{dtype}"], reduce(rows, axis=0))


def test_those_of_groups_are_over_their_ranks_only(results):
    """Ranks 0 and 1 and ranks 2 and 3 hold all shards; 0 and 2, and 1 and 3, are replicas."""
    ranks, found = results
    if ranks != 4:
        pytest.skip("groups of two ranks need four")
    for rank, got in enumerate(found):
        for name, members in (("shards", [rank // 2 * 2, rank // 2 * 2 + 1]), ("replicas", [rank % 2, rank % 2 + 2])):
            rows, place = [own(each, ranks, "rows") for each in members], members.index(rank)
            np.testing.assert_array_equal(got[f"{name}/all_gather"], np.concatenate(rows))
            np.testing.assert_array_equal(got[f"{name}/all_reduce"], sum(rows))
            total = sum(own(each, ranks, "all") for each in members)
            np.testing.assert_array_equal(got[f"{name}/reduce_scatter"], np.split(total, 2)[place])


def test_reduce_scatter_is_the_adjoint_of_all_gather(results):
    """<all_gather(x), y> summed over ranks is <x, reduce_scatter(y)>, the two sums over each rank's own."""
    ranks, found = results
    left = sum((got["all_gather/float32"] * own(rank, ranks, "all")).sum() for rank, got in enumerate(found))
    right = sum((got["reduce_scatter_sum/float32"] * own(rank, ranks, "rows")).sum() for rank, got in enumerate(found))
    assert left == right != 0.0
