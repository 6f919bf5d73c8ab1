"""`plsc` on the command line: the calls of `Entry` as commands. Every setting of `Config` is a flag."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from plsc.cli.checkpoint import app as checkpoint_app
from plsc.cli.command import Command, tell
from plsc.cli.data import app as data_app
from plsc.cli.doctor import doctor
from plsc.cli.embedding import embed, predict
from plsc.cli.gallery import app as gallery_app
from plsc.cli.launch import LaunchCommand, launch
from plsc.cli.lr_find import lr_find
from plsc.cli.models import models
from plsc.cli.report import report
from plsc.cli.serve import serve
from plsc.cli.settings import SettingsCommand, make_entry, with_settings
from plsc.config import Config
from plsc.distributed.launching.reports import report_end
from plsc.errors import NotSavedError, PLSCError
from plsc.utils.json_text import to_json
from plsc.utils.logging import guard_standard_error, guard_standard_output
from plsc.version import __version__

_TRAINING, _DATA, _MODELS = "Train and test", "Data", "Models and checkpoints"
_SERVING, _TOOLS = "Embeddings and serving", "Tools"


class Commands(TyperGroup):
    """The commands in the order of their headings."""

    def list_commands(self, ctx: Any) -> list[str]:
        headings: list[Any] = [_TRAINING, _DATA, _MODELS, _SERVING, _TOOLS]
        found = {name: headings.index(getattr(each, "rich_help_panel", None)) for name, each in self.commands.items()}
        return sorted(found, key=found.__getitem__)


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

# Headings of the settings that mean something in training only.
OF_TRAINING = [Config.groups[first] for first in ("loss_type", "augment_crop", "train_epochs", "use_fp16")]


@app.command(
    cls=SettingsCommand,
    rich_help_panel=_TRAINING,
    epilog="Example: plsc train --dataset-dir ./train_data --train-epochs 20 --auto-resume",
)
@with_settings(Config)
def train(
    settings: dict[str, Any],
    dump_config: Annotated[
        bool, typer.Option("--dump-config", help="Print all settings as a file for --config, and do not train.")
    ] = False,
) -> None:
    """Train, verify and save a checkpoint each epoch."""
    entry = make_entry(settings)
    if dump_config:
        typer.echo(entry.config.to_yaml(), nl=False)
    else:
        entry.train()


@app.command(
    cls=SettingsCommand,
    rich_help_panel=_TRAINING,
    epilog="Example: plsc test --checkpoint-dir output --dataset-dir ./train_data",
)
@with_settings(Config, hidden=OF_TRAINING)
def test(
    settings: dict[str, Any],
    tables: Annotated[
        Path | None,
        typer.Option(help="Folder to write classes.csv and confusions.csv of the validation data to."),
    ] = None,
) -> None:
    """Verify a checkpoint on the verification sets of the data folder; classify validation data.

    Prints JSON, with null for a metric that a set does not give. Settings of the network come from the checkpoint
    unless they are given. Settings of the training have no effect. With --val-split as in training, the images are
    those that training held out.
    """
    typer.echo(to_json(make_entry(settings).test(tables), indent=1))


@app.command(
    cls=SettingsCommand,
    rich_help_panel=_MODELS,
    epilog="Example: plsc export --checkpoint-dir output --to model --format paddle,onnx",
)
@with_settings(Config, hidden=OF_TRAINING)
def export(
    settings: dict[str, Any],
    to: Annotated[
        str | None, typer.Option(help="Folder to write, also a URL. Default: inference_model in model_save_dir.")
    ] = None,
    format: Annotated[
        str, typer.Option(help="Formats to write, separated by commas: paddle (always written), legacy, serving, onnx.")
    ] = "paddle",
    bake: Annotated[str, typer.Option(help="Steps to add to the network: preprocess,normalize.")] = "",
    bgr: Annotated[
        bool,
        typer.Option("--bgr", help="With --bake preprocess: pixels are blue, green, red."),
    ] = False,
    classifier: Annotated[
        bool,
        typer.Option("--classifier", help="Write class centers and names of classes too, for plsc predict."),
    ] = False,
) -> None:
    """Export a checkpoint's backbone for Paddle inference, Paddle Serving and ONNX.

    Settings of the network come from the checkpoint unless they are given. Settings of the training have no effect.
    """
    formats, parts = ([part.strip() for part in text.split(",") if part.strip()] for text in (format, bake))
    tell(make_entry(settings).convert_for_prediction(to, formats, bake=parts, bgr=bgr, classifier=classifier))


app.command(
    cls=Command, rich_help_panel=_SERVING, epilog="Example: plsc embed model one.jpg faces/ --output embeddings.npy"
)(embed)
app.command(cls=Command, rich_help_panel=_SERVING, epilog="Example: plsc predict model one.jpg another.jpg --top 3")(
    predict
)
app.command(
    cls=LaunchCommand,
    rich_help_panel=_TRAINING,
    epilog="Example: plsc launch --nproc_per_node 2 train.py",
    context_settings={"allow_interspersed_args": False},
)(launch)
app.command(cls=SettingsCommand, rich_help_panel=_SERVING, epilog="Example: plsc serve model --port 8866")(serve)
app.command(cls=Command, rich_help_panel=_MODELS, epilog="Example: plsc models --json")(models)
app.add_typer(gallery_app, name="gallery", rich_help_panel=_SERVING)
app.add_typer(data_app, name="data", rich_help_panel=_DATA)
app.add_typer(checkpoint_app, name="checkpoint", rich_help_panel=_MODELS)
app.command(cls=Command, rich_help_panel=_TOOLS, epilog="Example: plsc doctor --save-dir output")(doctor)
app.command(
    "lr-find",
    cls=SettingsCommand,
    rich_help_panel=_TRAINING,
    epilog="Example: plsc lr-find --dataset-dir ./train_data",
)(lr_find)
app.command(cls=Command, rich_help_panel=_TOOLS, epilog="Example: plsc report output --output report.html")(report)


@app.command(cls=Command, rich_help_panel=_TOOLS, epilog="Example: plsc demo --size small")
def demo(
    output: Annotated[Path, typer.Option("--output", help="Folder to create.")] = Path("demo_output"),
    size: Annotated[
        Literal["full", "small"],
        typer.Option(help="full: several minutes, 98 % accuracy. small: under a minute, lower accuracy."),
    ] = "full",
    ranks: Annotated[int, typer.Option(min=1, max=4, help="Number of CPU ranks.")] = 2,
) -> None:
    """Train, verify, resume, export and embed on generated glyphs."""
    from plsc.demo import run_demo

    run_demo(output, size, ranks=ranks)


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
        report_end(error)
        if not isinstance(error, NotSavedError):  # it was logged when it was raised
            print(f"plsc: {error}", file=sys.stderr)
        sys.exit(getattr(error, "code", 1))  # `NotSavedError` has a status of its own


if __name__ == "__main__":
    main()
