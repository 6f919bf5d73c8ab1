"""The range test of learning rates: what it reads off made-up courses, and that it leaves nothing behind."""

from __future__ import annotations

import csv
import io
import json
import math
import tempfile

import numpy as np
import pytest

import plsc
from plsc import ConfigError
from plsc.engine.rate_search import RatePoint, judge, search_rate, smooth
from tests._support.ranks import launch

RATES = np.logspace(-5, 1, 121).tolist()


def course(fall=-3.0, rise=0.0, start=40.0, end=10.0):
    """A loss that falls around 10^fall and rises again around 10^rise."""
    logs = np.log10(RATES)
    falls = (start - end) / (1 + np.exp(-4 * (logs - fall)))
    rises = 0.0 if rise is None else start / (1 + np.exp(-8 * (logs - rise)))
    return (start - falls + rises).tolist()


def test_the_loss_is_averaged_over_as_many_on_either_side():
    losses = np.random.default_rng(0).standard_normal(100).tolist()
    found = smooth(losses)
    for place in range(100):
        reach = min(5, place, 99 - place)
        assert found[place] == pytest.approx(np.mean(losses[place - reach : place + reach + 1]), abs=1e-12)


def test_the_steepest_fall_and_the_divergence_are_found():
    found = judge(RATES, course(), global_batch=512)
    assert math.log10(found.steepest) == pytest.approx(-3.0, abs=0.051)
    assert math.log10(found.diverged) == pytest.approx(-0.06, abs=0.051)  # 25 of 40 is above half of the fall
    assert found.suggestion == found.steepest
    assert found.setting == float(f"{2 * found.steepest:.2g}")


def test_a_tenth_of_the_rate_of_divergence_is_suggested_where_it_is_less():
    found = judge(RATES, course(fall=-1.0, rise=-0.2), global_batch=1024)
    assert found.suggestion == found.diverged / 10 < found.steepest


def test_noise_is_not_taken_for_the_steepest_fall():
    noise = np.random.default_rng(0).normal(0, 0.3, len(RATES))
    found = judge(RATES, (np.asarray(course()) + noise).tolist(), global_batch=512)
    assert math.log10(found.steepest) == pytest.approx(-3.0, abs=0.4)


def test_a_loss_that_becomes_nan_has_diverged_there():
    losses = course(rise=None)
    losses[100:] = [math.nan] * 21
    found = judge(RATES, losses, global_batch=512)
    assert found.diverged == RATES[100] and len(found.points) == 100
    ended = judge(RATES[:101], losses[:101], global_batch=512)  # as a search that ends there
    assert ended == found


def test_a_loss_that_does_not_rise_has_not_diverged():
    found = judge(RATES, course(rise=None), global_batch=512)
    assert found.diverged is None and math.log10(found.suggestion) == pytest.approx(-3.0, abs=0.051)


@pytest.mark.parametrize("end, is_found", [(39.1, True), (39.3, False)])
def test_a_loss_must_fall_by_two_percent(end, is_found):
    found = judge(RATES, course(end=end, rise=None), global_batch=512)
    assert (found.suggestion is not None) == (found.setting is not None) == is_found


@pytest.mark.parametrize("losses", [[], [math.nan], [3.0], np.linspace(1, 9, 121).tolist()])
def test_a_course_without_a_fall_gives_no_suggestion(losses):
    found = judge(RATES[: len(losses)], losses, global_batch=512)
    assert found.suggestion is found.setting is found.diverged is None


def test_the_table_of_all_steps():
    found = judge(RATES, course(), global_batch=512)
    rows = list(csv.reader(io.StringIO(found.to_csv())))
    assert tuple(rows[0]) == RatePoint._fields and len(rows) == 122
    assert [float(number) for number in rows[7]] == pytest.approx(found.points[6], rel=1e-7)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_search_trains_as_the_schedule_says_and_leaves_nothing_behind(entry, tmp_path, temporary, monkeypatch):
    """Its first losses are those of a run with these rates; epochs follow each other; a run's folder is not touched."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    found = entry.find_lr(20, least=1e-4, most=1.0)
    assert sorted(tmp_path.rglob("*")) == before and list(temporary.iterdir()) == []
    assert [point.rate for point in found.points] == pytest.approx(np.logspace(-4, 0, 20).tolist())
    assert entry.config.lr_schedule == "step" and entry.config.train_steps is None
    losses = []

    class Losses(plsc.engine.observers.Observer):
        def on_step(self, step):
            losses.append((step.values["loss"], step.values["lr"]))

    entry.set_lr(lambda step: 1e-4 * 1e4 ** (step / 19))
    entry.set_train_steps(20)
    entry.add_observer(Losses())
    entry.train()
    for point, (loss, rate) in zip(found.points, losses):
        assert point.loss == loss and point.rate == pytest.approx(rate)


def test_a_search_ends_where_the_loss_is_not_finite(entry, temporary):
    entry.set_loss_type("softmax")
    entry.set_optimizer("sgd")
    found = entry.find_lr(40, least=1e-3, most=1e30)
    assert len(found.points) < 40 and all(math.isfinite(point.loss) for point in found.points)


def test_a_checkpoint_is_started_from_and_not_resumed(entry, tmp_path, temporary):
    entry.set_save_period(minutes=None)
    entry.train()
    entry.set_checkpoint_dir(tmp_path / "output")
    entry.set_auto_resume(True)
    before = {path: path.read_bytes() for path in (tmp_path / "output").rglob("*") if path.is_file()}
    found = entry.find_lr(20, least=1e-6, most=1e-4)
    assert len(found.points) == 20
    assert {path: path.read_bytes() for path in (tmp_path / "output").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "numbers, message",
    [
        ({"steps": 19}, "steps: got 19; expected 20 to 10,000"),
        ({"steps": 10_001}, "steps: got 10001"),
        ({"least": 0.0}, "run from 0 to 10"),
        ({"least": 1.0, "most": 0.1}, "run from 1 to 0.1"),
        ({"most": math.inf}, "run from 1e-05 to inf"),
    ],
)
def test_numbers_outside_of_their_range_are_refused(entry, numbers, message):
    with pytest.raises(ConfigError, match=message):
        search_rate(entry.config, **numbers)


@pytest.mark.ranks
def test_two_ranks_find_what_one_does(entry, data_dir, tmp_path):
    script = tmp_path / "find.py"
    script.write_text(
        "import json, sys\n"
        "from plsc import Entry\n"
        "from plsc.distributed.topology import place_from_environment\n"
        "entry = Entry()\n"
        "for name, value in json.loads(sys.argv[1]).items():\n"
        "    setattr(entry, name, tuple(value) if isinstance(value, list) else value)\n"
        "found = entry.find_lr(20, least=1e-4, most=1.0)\n"
        "rank = place_from_environment()[0]\n"
        "open(f'{sys.argv[2]}.{rank}', 'w').write(json.dumps([point.loss for point in found.points]))\n"
    )
    entry.set_train_batch_size(5)
    names = ("dataset_dir", "num_classes", "image_shape", "model_name", "emb_dim", "num_workers", "scale", "frozen")
    settings = {name: getattr(entry.config, name) for name in (*names, "train_batch_size")}
    launch(2, str(script), json.dumps(settings), tmp_path / "found", log_dir=tmp_path / "log")
    first, second = (json.loads((tmp_path / f"found.{rank}").read_text()) for rank in range(2))
    assert first == second and len(first) == 20
    entry.set_train_batch_size(10)
    alone = [point.loss for point in entry.find_lr(20, least=1e-4, most=1.0).points]
    assert first[0] == pytest.approx(alone[0], rel=0.2)  # batch normalization is of each rank's own batch
