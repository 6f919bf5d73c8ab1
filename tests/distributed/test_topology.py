"""The topology: rank and number of ranks from the launcher's environment."""

from __future__ import annotations

import pytest

from plsc.distributed.topology import Topology, place_from_environment
from plsc.errors import DistributedError


@pytest.mark.parametrize("rank, world_size", [(-1, 1), (1, 1), (4, 4), (0, 0)])
def test_a_rank_outside_of_the_world_is_refused(rank, world_size):
    with pytest.raises(DistributedError, match=f"got rank {rank} of world size {world_size}, expected 0 <= rank < wor"):
        Topology(rank, world_size)


def test_rank_0_is_the_main_rank():
    assert [Topology(rank, 3).is_main for rank in range(3)] == [True, False, False]
    assert [Topology(device=device).on_gpu for device in ("cpu", "gpu:0")] == [False, True]


def test_the_launcher_sets_rank_and_world_size(monkeypatch):
    monkeypatch.delenv("PADDLE_TRAINER_ID", raising=False)
    monkeypatch.delenv("PADDLE_TRAINERS_NUM", raising=False)
    assert place_from_environment() == (0, 1)
    monkeypatch.setenv("PADDLE_TRAINER_ID", "2")
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "4")
    assert place_from_environment() == (2, 4)
    monkeypatch.setenv("PADDLE_TRAINER_ID", "two")
    with pytest.raises(DistributedError, match="PADDLE_TRAINER_ID is 'two', expected an integer; start the ranks with"):
        place_from_environment()
