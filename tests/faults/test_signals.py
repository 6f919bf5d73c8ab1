"""Signals at random moments: the same command, again and again, gives the run that nothing has struck.

The moments are drawn from a seed; `make faults` strikes 100 times, PLSC_FAULTS_SEED=7 draws others.
"""

from __future__ import annotations

import os
import random
import signal

import pytest

from tests._support.struck import Moment, StruckRun, assert_same

pytestmark = [pytest.mark.slow, pytest.mark.ranks]

SEED = int(os.environ.get("PLSC_FAULTS_SEED", "17"))
KILL_PHASES = ["start", "step", "snapshot", "write", "name", "prune", "verification", "record", "time"]
SAVE_PHASES = ["write", "name", "prune"]
_MOST_STARTS = 40


def forms(**numbers):
    """Numbers of strikes in `make test` and in `make faults`, each with the ranks."""
    return [
        pytest.param(int(ranks[-1]), strikes, marks=[pytest.mark.faults] if is_long else [], id=f"{ranks}-{strikes}")
        for ranks, both in numbers.items()
        for is_long, strikes in enumerate(both)
    ]


class Draw:
    """Draws moments: each phase once before any comes again."""

    def __init__(self, unbroken, phases, number, targets):
        self.random = random.Random(f"{SEED} {number} {len(unbroken.events)}")
        self.unbroken, self.phases, self.number, self.targets = unbroken, phases, number, targets
        self.left = []

    def __call__(self):
        if not self.left:
            self.left = self.random.sample(self.phases, len(self.phases))
        phase = self.left.pop()
        if phase == "time":
            return Moment(phase, self.random.randrange(self.unbroken.milliseconds), 0, "all", self.number)
        ranks = [rank for rank, events in enumerate(self.unbroken.events) if events.get(phase)]
        rank = self.random.choice(ranks)
        # Early moments come more often: the later ones are not reached by a run that goes on near its end.
        number = 1 + int(self.random.random() ** 2 * self.unbroken.events[rank][phase])
        return Moment(phase, number, rank, self.random.choice(self.targets), self.number)


@pytest.mark.parametrize("ranks, strikes", forms(ranks1=(7, 60), ranks2=(3, 40)))
def test_runs_that_are_killed_equal_one_that_is_not(ranks, strikes, unbroken, tmp_path):
    """SIGKILL of a rank, of all processes, or of the launcher, whose ranks end by themselves."""
    kill(ranks, strikes, unbroken(ranks), tmp_path, KILL_PHASES)


@pytest.mark.parametrize("ranks, strikes", forms(ranks1=(3, 20), ranks2=(2, 15)))
def test_runs_that_are_killed_while_they_wait_for_a_save_equal_one_that_copies(ranks, strikes, unbroken, tmp_path):
    kill(ranks, strikes, unbroken(ranks), tmp_path, SAVE_PHASES, async_save="off")


def kill(ranks, strikes, whole, tmp_path, phases, **settings):
    targets = ["rank", "all"] if ranks == 1 else ["rank", "rank", "all", "launcher"]
    draw, struck, number = Draw(whole, phases, signal.SIGKILL, targets), 0, 0
    while struck < strikes:
        run, number = StruckRun(tmp_path / str(number), ranks, **settings), number + 1
        for _ in range(_MOST_STARTS):
            moment = draw() if struck < strikes else None
            status, is_struck = run.start(moment)
            struck += is_struck
            print(f"{struck}: {moment}: status {status}{'' if is_struck else ', not reached'}", flush=True)
            if status == 0:
                break
            assert is_struck, run.told()
            # Half of the runs whose launcher was killed meet its ranks, and wait for their end.
            if moment.target != "launcher" or draw.random.random() < 0.5:
                run.wait_until_all_have_ended()
                run.check_files()
        run.wait_until_all_have_ended()
        assert status == 0
        assert_same(run.result(), whole.result)
        run.remove()


STORAGES = {
    "both bfloat16": {"center_storage": "bfloat16", "momentum_storage": "bfloat16"},
    "int8": {"center_storage": "bfloat16", "momentum_storage": "int8"},
    "none": {"center_storage": "bfloat16", "momentum_storage": "none", "sample_ratio": 0.5},
}


@pytest.mark.parametrize(
    "storage", [pytest.param(name, marks=[] if name == "int8" else [pytest.mark.faults]) for name in STORAGES]
)
def test_a_run_with_lean_centers_that_is_killed_within_an_update_equals_one_that_is_not(storage, tmp_path):
    """SIGKILL of one of two ranks between two blocks of rows, once before and once after the first checkpoint."""
    whole = StruckRun(tmp_path / "whole", 2, **STORAGES[storage])
    assert whole.start() == (0, False), whole.told()
    [events, _] = whole.events()
    run = StruckRun(tmp_path / "struck", 2, **STORAGES[storage])
    for share in (0.1, 0.6):
        status, is_struck = run.start(Moment("step", int(share * events["step"]), rank=0))
        assert is_struck and status != 0, run.told()
        run.wait_until_all_have_ended()
        run.check_files()
    assert run.start() == (0, False), run.told()
    assert_same(run.result(), whole.result())


@pytest.mark.parametrize("ranks, strikes", forms(ranks1=(2, 25), ranks2=(1, 15)))
def test_runs_that_are_stopped_repeat_nothing(ranks, strikes, unbroken, tmp_path):
    """SIGTERM to a rank, or to `plsc launch`: the status is 75 each time, and no step is done twice."""
    stop(ranks, strikes, unbroken(ranks), tmp_path, [phase for phase in KILL_PHASES if phase != "time"])


@pytest.mark.parametrize("ranks, strikes", forms(ranks1=(2, 12), ranks2=(1, 8)))
def test_runs_that_are_stopped_while_they_wait_for_a_save_repeat_nothing(ranks, strikes, unbroken, tmp_path):
    stop(ranks, strikes, unbroken(ranks), tmp_path, SAVE_PHASES, async_save="off")


def stop(ranks, strikes, whole, tmp_path, phases, **settings):
    draw, struck, number = Draw(whole, phases, signal.SIGTERM, ["rank" if ranks == 1 else "launcher"]), 0, 0
    while struck < strikes:
        run = StruckRun(tmp_path / str(number), ranks, launcher=("plsc", "launch"), **settings)
        number += 1
        for _ in range(_MOST_STARTS):
            moment = draw() if struck < strikes else None
            status, is_struck = run.start(moment)
            struck += is_struck
            print(f"{struck}: {moment}: status {status}{'' if is_struck else ', not reached'}", flush=True)
            run.wait_until_all_have_ended()
            run.check_files()
            if status == 0:
                break
            assert (status, is_struck) == (75, True), run.told()
        assert status == 0
        assert_same(run.result(), whole.result)
        for rank in range(ranks):
            assert run.steps(rank) == list(range(1, 11))
        run.remove()
