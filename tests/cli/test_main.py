"""The commands of `plsc`, each as a process of its own."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from plsc.cli.main import app
from plsc.version import __version__
from tests._support.images import CLASSES, SIDE
from tests._support.ranks import run


def plsc_command(*arguments, check=True, cwd=None):
    return run([sys.executable, "-m", "plsc", *arguments], check=check, cwd=cwd)


def settings_flags(entry):
    return [
        "--dataset-dir",
        entry.dataset_dir,
        "--num-classes",
        CLASSES,
        "--image-shape",
        f"3,{SIDE},{SIDE}",
        "--model-name",
        "ResNetTiny",
        "--emb-dim",
        16,
        "--model-save-dir",
        entry.model_save_dir,
    ]


@pytest.mark.slow
def test_train_test_export_and_embed(entry, tmp_path, data_dir):
    assert plsc_command("--version")[1].strip() == f"plsc {__version__}"
    (tmp_path / "run.yaml").write_text("train-batch-size: 10\ntrain_epochs: 7\nscale: 16\nnum_workers: 0\n")
    _, output = plsc_command("train", "--config", tmp_path / "run.yaml", "--train-steps", 3, *settings_flags(entry))
    assert "saved" in output
    _, output = plsc_command("test", "--model-save-dir", entry.model_save_dir, "--dataset-dir", data_dir)
    assert json.loads(output[output.index("{") : output.rindex("}") + 1])["lfw/pairs"] == 20
    plsc_command("export", "--model-save-dir", entry.model_save_dir, "--to", tmp_path / "model")
    plsc_command("embed", tmp_path / "model", data_dir / "images/00000000.png", "--output", tmp_path / "e.npy")
    assert np.load(tmp_path / "e.npy").shape == (1, 16)
    # A data set given by its file has its verification sets beside it.
    _, output = plsc_command("test", "--model-save-dir", entry.model_save_dir, "--dataset-dir", data_dir / "label.txt")
    assert '"lfw/pairs": 20' in output
    # Mistakes are found before the work begins, and the message names the file.
    for output_file, image, message in (
        (tmp_path / "none" / "e.npy", "images/00000000.png", "there is no folder"),
        (tmp_path / "e2.npy", "label.txt", f"{data_dir / 'label.txt'}: "),
    ):
        status, output = plsc_command(
            "embed", tmp_path / "model", data_dir / image, "--output", output_file, check=False
        )
        assert status == 1 and message in output and "Traceback" not in output
    _, output = plsc_command(
        "train", "--train-steps", 3, "--checkpoint-dir", entry.model_save_dir, *settings_flags(entry)
    )
    assert "nothing is left to train after 3 steps; to train on, give more: --train-steps" in output


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train", "--num-classes", "0"], "plsc: --num-classes: got '0' (str); expected greater than"),
        (["train", "--config", "none.yaml"], "plsc: none.yaml: the configuration file cannot be read"),
        (["embed", "nowhere", "image.png"], "plsc: nowhere: no exported model there (the folder does not exist); make"),
        (["serve", "nowhere"], "plsc: nowhere: no exported model there (the folder does not exist); make one with"),
        (["serve", "x" * 300], f"plsc: {'x' * 300}: no exported model can be read there: File name too long"),
        (["gallery", "remove", "nowhere", "ann"], "plsc: nowhere: no gallery there (the folder does not exist); make"),
        (["gallery", "build", "nowhere", "x" * 300, "a.png"], f"plsc: {'x' * 300}: cannot be written: File name too"),
        (["embed", "nowhere", "a.png", "--output", "x" * 300], "plsc: nowhere: no exported model there"),
        (
            ["test", "--model-save-dir", "nowhere"],
            "plsc: nothing to test on: no verification set is given, and ./train_data does not exist; name the data "
            "with --dataset-dir, or name one with --val-targets; for top-1 of the classes of training "
            "--val-dataset-dir, or --val-split as in training",
        ),
        (
            ["test", "--model-save-dir", "nowhere", "--dataset-dir", "."],
            "plsc: nothing to test on: no verification set is given, and . holds no lfw.bin; make one",
        ),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_and_status_one(arguments, words, tmp_path):
    status, output = plsc_command(*arguments, check=False, cwd=tmp_path)
    assert status == 1
    assert words in output and len(output.splitlines()) == 1


def test_a_signal_at_the_start_of_a_training_has_its_status(tmp_path):
    """While Paddle is imported, whose own handler would end the process with another one."""
    script = (
        "import os, signal, sys\n"
        "from plsc.cli import main, settings\n"
        "find = settings.find_backbone\n"
        "def signal_and_find(name):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return find(name)\n"
        "settings.find_backbone = signal_and_find\n"
        "sys.argv = ['plsc', 'train', '--model-name', 'ResNetTiny']\n"
        "main.main()\n"
    )
    status, output = run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    assert status == 75 and "stopped by SIGTERM before the first step" in output
    assert "Traceback" not in output


def test_the_help_has_each_command_under_a_heading():
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100"}).output
    headings = ["Train and test", "Data", "Models and checkpoints", "Embeddings and serving", "Tools"]
    places = [text.index(f"─ {heading} ─") for heading in headings]
    assert places == sorted(places)
    assert "─ Commands ─" not in text  # where a command without a heading would be
    assert "Exit status: 0 done" in text


def test_each_command_ends_its_help_with_an_example():
    for name, command in typer.main.get_command(app).commands.items():
        if not hasattr(command, "commands"):
            assert command.epilog.startswith(f"Example: plsc {name}"), name
            text = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80"}).output
            assert "Example: plsc" in " ".join(text.split()[-30:])
