"""Runs without a fault, which those with faults must equal."""

from __future__ import annotations

import time
from typing import NamedTuple

import pytest

from tests._support.struck import Result, StruckRun


class Unbroken(NamedTuple):
    """A run that nothing has struck.

    Attributes:
        result: what it has left.
        events: how many events each phase has, for each rank.
        milliseconds: how long it took.
    """

    result: Result
    events: list
    milliseconds: int


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    """A function that trains without a stop, once per number of ranks."""
    runs = {}

    def train(ranks):
        if ranks not in runs:
            run, began = StruckRun(tmp_path_factory.mktemp("unbroken") / "run", ranks), time.monotonic()
            assert run.start() == (0, False), run.told()
            runs[ranks] = Unbroken(run.result(), run.events(), int(1000 * (time.monotonic() - began)))
        return runs[ranks]

    return train
