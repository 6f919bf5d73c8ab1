"""`plsc` on the command line: the calls of `Entry` as commands. Every setting of `Config` is a flag."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from plsc.cli.checkpoint import app as checkpoint_app
from plsc.cli.command import Command, tell
from plsc.cli.data import app as data_app
from plsc.cli.doctor import doctor
from plsc.cli.gallery import app as gallery_app
from plsc.cli.launch import LaunchCommand, launch
from plsc.cli.lr_find import lr_find
from plsc.cli.models import models
from plsc.cli.report import report
from plsc.cli.serve import serve
from plsc.cli.settings import SettingsCommand, make_entry, with_settings
from plsc.config import Config
from plsc.distributed.launching.reports import report_end
from plsc.errors import ConfigError, NotSavedError, PLSCError
from plsc.utils.json_text import to_json
from plsc.utils.logging import guard_standard_error, guard_standard_output
from plsc.version import __version__

app = typer.Typer(
    name="plsc",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train classifiers whose last layer has too many classes for one device; verify, export and serve them. "
    "On several ranks:\n\n"
    "plsc launch --nproc_per_node 2 plsc train ...",
)


@app.command(cls=SettingsCommand)
@with_settings(Config)
def train(settings: dict[str, Any]) -> None:
    """Train, verify and save a checkpoint each epoch."""
    make_entry(settings).train()


@app.command(cls=SettingsCommand)
@with_settings(Config)
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


@app.command(cls=SettingsCommand)
@with_settings(Config)
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


@app.command(cls=Command)
def embed(
    model: Annotated[Path, typer.Argument(help="Folder that plsc export wrote.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    output: Annotated[Path, typer.Option("--output", help="Name of the .npy file to write.")] = Path("embeddings.npy"),
    device: Annotated[
        str | None, typer.Option(help="cpu or gpu:<index>. Default: the first GPU that Paddle finds, else the CPU.")
    ] = None,
) -> None:
    """Embed images with an exported model. Writes a .npy file: n x D float32, a row of unit length per image."""
    import numpy as np

    from plsc.inference.model import load_inference_model

    if os.path.exists(output):
        raise ConfigError(f"{output} exists and is not overwritten; choose another --output")
    if not os.path.isdir(output.parent):
        raise ConfigError(f"{output}: there is no folder {output.parent}; make it first")
    embeddings = load_inference_model(model, device=device).embed(images)
    try:
        with open(output, "xb") as file:
            np.save(file, embeddings)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror or error}") from None
    tell(f"{output}: {embeddings.shape[0]} embeddings of {embeddings.shape[1]}")


@app.command(cls=Command)
def predict(
    model: Annotated[Path, typer.Argument(help="Folder that plsc export --classifier wrote.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to print for each image.")] = 5,
    device: Annotated[
        str | None, typer.Option(help="cpu or gpu:<index>. Default: the first GPU that Paddle finds, else the CPU.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Classify images with an exported model: for each image the most probable classes of training."""
    from plsc.inference.model import load_inference_model

    loaded = load_inference_model(model, device=device)
    found = loaded.classify(images, top)
    if as_json:
        results = [
            {"image": str(image), "classes": [each.as_dict() for each in row]} for image, row in zip(images, found)
        ]
        over = loaded.classifier.normalized_over
        typer.echo(to_json({"normalized_over": over, "results": results}, indent=1))
        return
    for image, row in zip(images, found):
        typer.echo(str(image))
        for each in row:
            typer.echo(f"  {each.probability:8.4f}  {each.name}")


app.command(cls=LaunchCommand, context_settings={"allow_interspersed_args": False})(launch)
app.command(cls=SettingsCommand)(serve)
app.command(cls=Command)(models)
app.command(cls=Command)(doctor)
app.command("lr-find", cls=SettingsCommand)(lr_find)
app.command(cls=Command)(report)
app.add_typer(gallery_app, name="gallery")
app.add_typer(data_app, name="data")
app.add_typer(checkpoint_app, name="checkpoint")


@app.command(cls=Command)
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
