"""`plsc` on the command line. The commands are imported when they are called; see `plsc.cli.commands`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from plsc.cli.commands import LazyGroup, Place
from plsc.errors import NotSavedError, PLSCError
from plsc.utils.logging import guard_standard_error, guard_standard_output
from plsc.version import __version__

_TRAINING, _DATA, _MODELS = "Train and test", "Data", "Models and checkpoints"
_SERVING, _TOOLS = "Embeddings and serving", "Tools"
_SETTINGS = "plsc.cli.settings:SettingsCommand"


class Commands(LazyGroup):
    """All commands, in the order of their headings."""

    places = {
        "train": Place(
            _TRAINING,
            "plsc.cli.training:train",
            "Train, verify and save a checkpoint each epoch.",
            "Example: plsc train --dataset-dir ./train_data --train-epochs 20 --auto-resume",
            "plsc.cli.training:TrainCommand",
        ),
        "test": Place(
            _TRAINING,
            "plsc.cli.training:test",
            "Verify a checkpoint on the verification sets of the data folder; classify validation data.",
            "Example: plsc test --checkpoint-dir output --dataset-dir ./train_data",
            _SETTINGS,
        ),
        "launch": Place(
            _TRAINING,
            "plsc.cli.launch:launch",
            "Start the ranks of a script, and start them again from the newest checkpoint where they fail.",
            "Example: plsc launch --nproc_per_node 2 train.py",
            "plsc.cli.launch:LaunchCommand",
            {"allow_interspersed_args": False},
        ),
        "lr-find": Place(
            _TRAINING,
            "plsc.cli.lr_find:lr_find",
            "Find a learning rate: train some steps while it grows, and suggest one by the course of the loss.",
            "Example: plsc lr-find --dataset-dir ./train_data",
            _SETTINGS,
        ),
        "data": Place(
            _DATA, "plsc.cli.data:app", "Inspect, convert, shuffle and split data sets, and make verification pairs."
        ),
        "export": Place(
            _MODELS,
            "plsc.cli.training:export",
            "Export a checkpoint's backbone for Paddle inference, Paddle Serving and ONNX.",
            "Example: plsc export --checkpoint-dir output --to model --format paddle,onnx",
            _SETTINGS,
        ),
        "models": Place(
            _MODELS,
            "plsc.cli.models:models",
            "List backbones with parameters, multiply-adds and memory per image.",
            "Example: plsc models --json",
        ),
        "checkpoint": Place(
            _MODELS,
            "plsc.cli.checkpoint:app",
            "Import, list, inspect, verify, re-shard, merge, average, edit and prune checkpoints.",
        ),
        "embed": Place(
            _SERVING,
            "plsc.cli.embedding:embed",
            "Embed images with an exported model.",
            "Example: plsc embed model one.jpg faces/ --output embeddings.npy",
        ),
        "predict": Place(
            _SERVING,
            "plsc.cli.embedding:predict",
            "Classify images with an exported model: for each image the most probable classes of training.",
            "Example: plsc predict model one.jpg another.jpg --top 3",
        ),
        "serve": Place(
            _SERVING,
            "plsc.cli.serve:serve",
            "Serve an exported model over HTTP. See docs/serving.md.",
            "Example: plsc serve model --port 8866",
            _SETTINGS,
        ),
        "gallery": Place(
            _SERVING, "plsc.cli.gallery:app", "Enroll embeddings under names, and search the most similar."
        ),
        "doctor": Place(
            _TOOLS,
            "plsc.cli.doctor:doctor",
            "Examine Paddle, devices, ranks, memory, decoding, the save folder and the data; say what is wrong and its "
            "cure.",
            "Example: plsc doctor --save-dir output",
        ),
        "report": Place(
            _TOOLS,
            "plsc.cli.report:report",
            "Write one HTML page on training runs: curves, ROC, thresholds, hardest pairs, worst classes, settings, "
            "warnings.",
            "Example: plsc report output --output report.html",
        ),
        "demo": Place(
            _TOOLS,
            "plsc.cli.training:demo",
            "Train, verify, resume, export and embed on generated glyphs.",
            "Example: plsc demo --size small",
        ),
    }


app = typer.Typer(
    name="plsc",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train classifiers whose last layer has too many classes for one device; verify, export and serve them. "
    "On several ranks:\n\n"
    "plsc launch --nproc_per_node 2 plsc train ...",
    epilog="Exit status: 0 done; 1 an error, in one message; 2 a wrong command line; 74 and 75 a training that stopped "
    "before its end: docs/reliability.md.",
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(f"plsc {__version__}")
        raise typer.Exit


def main() -> None:
    """Run `plsc`. An error of the library is one message and status 1, not a traceback."""
    guard_standard_error()
    if sys.stderr is None:  # closed, as by `2>&-`; then print would take standard output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    guard_standard_output()
    try:
        app()
    except PLSCError as error:
        from plsc.distributed.launching.reports import report_end

        report_end(error)
        if not isinstance(error, NotSavedError):  # it was logged when it was raised
            print(f"plsc: {error}", file=sys.stderr)
        sys.exit(getattr(error, "code", 1))  # `NotSavedError` has a status of its own


if __name__ == "__main__":
    main()
