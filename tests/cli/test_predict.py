"""`plsc predict`, `plsc export --classifier` and `plsc test --tables`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from plsc import load_inference_model
from plsc.cli.main import app
from tests._support.closed_sets import make_classifier
from tests.cli.test_main import plsc_command
from tests.engine.test_closed_set import NAMES, write_folders

CLASSES = [f"class {number}" for number in range(8)]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(an export with a classifier, images)."""
    root = tmp_path_factory.mktemp("predict")
    make_classifier(root / "m", names=CLASSES)
    return root / "m", sorted(write_folders(root / "images", count=1).rglob("*.png"))


def test_names_and_probabilities_are_printed(exported):
    model, images = exported
    expected = load_inference_model(model).classify(images, 3)
    lines = run("predict", model, *images, "--top", 3).stdout.splitlines()
    wanted = []
    for image, row in zip(images, expected):
        wanted += [str(image), *(f"  {each.probability:8.4f}  {each.name}" for each in row)]
    assert lines == wanted


def test_json(exported):
    model, images = exported
    found = json.loads(run("predict", model, *images, "--json").stdout)
    assert found["normalized_over"] == 8
    assert [entry["image"] for entry in found["results"]] == list(map(str, images))
    assert all(len(entry["classes"]) == 5 for entry in found["results"])
    assert set(found["results"][0]["classes"][0]) == {"name", "number", "probability", "score"}


def test_mistakes(exported, model, tmp_path):
    for arguments, message in (
        ((model, exported[1][0]), "the export has no classifier; export the checkpoint with plsc export --classifier"),
        ((tmp_path, exported[1][0]), "exported model"),
        ((exported[0], tmp_path / "no.png"), "no.png"),
    ):
        result = run("predict", *arguments)
        assert result.exit_code and message in str(result.exception)
    assert "Invalid value for '--top'" in run("predict", exported[0], exported[1][0], "--top", 0).stderr


@pytest.mark.slow
def test_from_training_to_predictions(tmp_path):
    data, held_out = write_folders(tmp_path / "data"), write_folders(tmp_path / "new", first=6, count=4)
    network = ["--image-shape", "3,16,16", "--model-name", "ResNetTiny", "--emb-dim", 16]
    plsc_command(
        *("train", "--dataset-dir", data, "--model-save-dir", tmp_path / "out", "--num-workers", 0, *network),
        *("--train-batch-size", 10, "--train-epochs", 4, "--scale", 16, "--val-split", 0.34, "--lr", 0.5),
    )
    given = ("--model-save-dir", tmp_path / "out")
    _, output = plsc_command("test", *given, "--val-dataset-dir", held_out, "--tables", tmp_path / "tables")
    assert json.loads(output[output.index("{") : output.rindex("}") + 1])["val/images"] == 24
    assert (
        (tmp_path / "tables/classes.csv").read_text().startswith("class,images,top1,most_confused_with,times\nant,4,")
    )
    assert (tmp_path / "tables/confusions.csv").exists()
    _, output = plsc_command("test", *given, "--dataset-dir", data, "--val-split", 0.34)
    assert json.loads(output[output.index("{") : output.rindex("}") + 1])["val/images"] == 12
    plsc_command("export", *given, "--to", tmp_path / "model", "--classifier")
    _, output = plsc_command("predict", tmp_path / "model", held_out / "cow/0038.png", "--top", 6)
    assert sorted(line.split()[1] for line in output.splitlines() if line.startswith("   ")) == NAMES
