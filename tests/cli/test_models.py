"""`plsc models`: the backbones and what they cost."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from plsc.cli.main import app
from plsc.models.complexity import measure_backbone


def plsc_models(*arguments):
    return CliRunner().invoke(app, ["models", *arguments])


def test_a_row_for_each_name_with_parameters_multiply_adds_and_memory():
    done = plsc_models("ResNetTiny", "EdgeFace-XXS")
    assert done.exit_code == 0
    assert [line.split() for line in done.stdout.splitlines()[1:]] == [
        ["ResNetTiny", "13.15", "M", "0.211", "G", "8.5", "MB"],
        ["EdgeFace-XXS", "1.24", "M", "0.047", "G", "8.0", "MB"],
    ]


def test_json_of_another_size_names_what_cannot_be_made():
    flags = ["--emb-dim", "16", "--image-shape", "3,30,30", "--json"]
    done = plsc_models("ResNetTiny", "EdgeFace-XXS", "r50", *flags)
    tiny, edge, unknown = json.loads(done.stdout)
    measured = measure_backbone("ResNetTiny", emb_dim=16, image_shape=(3, 30, 30))
    assert tiny == {"name": "ResNetTiny", **vars(measured)}
    assert "at least 32 x 32 pixels" in edge["error"]
    assert "did you mean 'IResNet50'" in unknown["error"]
    assert done.exit_code == 0 and plsc_models("r50", *flags).exit_code == 1


def test_all_that_are_built_in_are_listed_by_default(monkeypatch):
    monkeypatch.setattr("plsc.cli.models.list_backbones", lambda: ["ResNetTiny"])
    assert "ResNetTiny" in plsc_models().stdout


def test_a_wrong_image_shape_is_an_error_of_ours():
    done = plsc_models("ResNetTiny", "--image-shape", "3,30")
    assert done.exit_code == 1 and "expected three numbers" in str(done.exception)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_says_what_is_counted(flag):
    assert "memory per image" in plsc_models(flag).stdout
