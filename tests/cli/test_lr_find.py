"""`plsc lr-find`: its table, its suggestion and its file."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from typer.testing import CliRunner

from plsc.cli.lr_find import describe
from plsc.cli.main import app
from plsc.engine.rate_search import judge

RATES = np.logspace(-5, 1, 121).tolist()


@pytest.fixture
def flags(data_dir):
    """A search of a second."""
    return [
        *("lr-find", "--dataset-dir", str(data_dir), "--image-shape", "3,32,32", "--model-name", "ResNetTiny"),
        *("--emb-dim", "16", "--train-batch-size", "10", "--num-workers", "0", "--scale", "16", "--steps", "20"),
    ]


def test_the_command_prints_a_table_and_writes_a_file(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*flags, "--from", "1e-4", "--to", "1", "--output", "lr.csv"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["rate", "as", "--lr", "loss"] and lines[1].split()[:2] == ["0.0001", "0.01"]
    assert "suggestion" in lines[-2] and lines[-1] == "wrote lr.csv"
    with open("lr.csv") as file:
        rows = list(csv.DictReader(file))
    assert 1 < len(rows) <= 20 and float(rows[0]["rate"]) == 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "lr.csv"]


def test_a_file_that_exists_is_found_out_before_the_search(flags, tmp_path):
    (tmp_path / "lr.csv").write_text("kept")
    done = CliRunner().invoke(app, [*flags, "--output", str(tmp_path / "lr.csv")])
    assert "exists and is not overwritten" in str(done.exception) and (tmp_path / "lr.csv").read_text() == "kept"
    done = CliRunner().invoke(app, [*flags, "--output", str(tmp_path / "none" / "lr.csv")])
    assert "there is no folder" in str(done.exception)


@pytest.mark.parametrize("flag", ["--lr", "--lr-schedule", "--auto-resume"])
def test_what_the_search_sets_itself_is_no_flag(flags, flag):
    done = CliRunner().invoke(app, [*flags, flag, "1"])
    assert done.exit_code == 2 and f"No such option: {flag}" in done.output


def test_the_table_has_few_lines_and_says_what_was_found():
    loss = [40 - 30 / (1 + 10 ** (-2 * (np.log10(rate) + 3))) for rate in RATES]
    told = describe(judge(RATES, loss, global_batch=512))
    assert len(told.splitlines()) <= 16 and "the loss does not diverge" in told
    assert "suggestion: --lr 0.002, which is 0.001 at the global batch of 512" in told
    told = describe(judge(RATES, [*loss[:100], float("nan")], global_batch=512))
    assert f"the loss diverges at {RATES[100]:.3g}" in told
    told = describe(judge(RATES, [40.0] * 121, global_batch=512))
    assert "no suggestion: the loss does not fall" in told
