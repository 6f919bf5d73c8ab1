"""Every script of docs/extending.md trains on two ranks, uses its extension point, and is short."""

from __future__ import annotations

import ast
import json
import math
import re
from pathlib import Path

import pytest

from plsc import list_backbones
from plsc.checkpoint import Checkpoint
from tests._support.ranks import launch

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
SECTIONS = ("Backbone", "Margin", "Margin on other classes", "Head", "Row optimizer", "Records", "Schedule", "Observer")
LIMIT = 20


def scripts():
    """{heading: python blocks of its section}."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    return {
        heading: re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for heading, text in zip(parts[1::2], parts[2::2])
    }


def code_lines(script):
    """Lines of the classes and functions in a script, without docstrings, comments and blank lines.

    The other lines are imports and the settings of a run, which any script has.
    """
    definitions = [node for node in ast.parse(script).body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    text = "\n".join(ast.get_source_segment(script, node) for node in definitions)
    without_docstrings = re.sub(r'""".*?"""', "", text, flags=re.DOTALL)
    return [line for line in without_docstrings.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_every_extension_point_has_one_script():
    assert {heading: len(blocks) for heading, blocks in scripts().items()} == dict.fromkeys(SECTIONS, 1)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_script_is_short(section):
    for script in scripts()[section]:
        assert len(code_lines(script)) <= LIMIT


def saved(folder, name):
    return Checkpoint(folder / "output").read(name)


def used_backbone(folder, about, output):
    assert about["settings"]["model_name"] == "SmallNet" not in list_backbones()


def used_margin(folder, about, output):
    (mean,) = saved(folder, "head.margin:mean")
    assert 0.0 < mean < 10.0  # from 0 towards the norms


def used_negatives(folder, about, output):
    assert about["objects"]["margin_function"] == "__main__.MVArc(m=0.5, t=0.2, negatives_bound=1.4)"


def used_head(folder, about, output):
    assert about["head_optimizer"] == "SmoothSoftmax"
    assert saved(folder, "head.weight").shape == (10, 16)


def used_row_optimizer(folder, about, output):
    assert about["head_optimizer"] == "Lion"
    assert saved(folder, "head.weight:average").any()


def used_records(folder, about, output):
    assert "stripes:10:200: records, 200 images" in output


def used_schedule(folder, about, output):
    last = re.search(r"learning rate of the last step: ([\d.]+)", output)
    assert float(last[1]) == pytest.approx(0.025 * (1 + math.cos(math.pi * 3 / 4)))


def used_observer(folder, about, output):
    losses = (folder / "losses.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in losses] == ["2", "4", "6"]


# What the script of a section leaves behind if its extension point was used.
EVIDENCE = {
    "Backbone": used_backbone,
    "Margin": used_margin,
    "Margin on other classes": used_negatives,
    "Head": used_head,
    "Row optimizer": used_row_optimizer,
    "Records": used_records,
    "Schedule": used_schedule,
    "Observer": used_observer,
}


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_a_script_trains_on_two_ranks(section, tmp_path):
    for script in scripts()[section]:
        (tmp_path / "train.py").write_text(script)
        _, output = launch(2, tmp_path / "train.py", log_dir=tmp_path / "log", cwd=tmp_path)
        (path,) = (tmp_path / "output").glob("*/manifest.json")
        about = json.loads(path.read_text())["about"]
        assert 4 <= about["step"] <= 8
        # Two ranks of 10 images each trained together, to a finite loss.
        assert about["images_in_epoch"] == about["step"] * 20
        assert math.isfinite(float(re.findall(r"loss ([\d.]+)", output)[-1]))
        EVIDENCE[section](tmp_path, about, output)
