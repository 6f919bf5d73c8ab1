"""`plsc train`, `test`, `export` and `demo`: the calls of `Entry` as commands. Every setting of `Config` is a flag."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from plsc.cli.command import tell
from plsc.cli.settings import SettingsCommand, make_entry, with_settings
from plsc.config import Config
from plsc.engine.stopping import held_back
from plsc.utils.json_text import to_json
from plsc.utils.lazy import require_paddle
from plsc.utils.logging import be_quiet

# Headings of the settings that mean something in training only.
OF_TRAINING = [Config.groups[first] for first in ("loss_type", "augment_crop", "train_epochs", "use_fp16")]


class TrainCommand(SettingsCommand):
    """`plsc train`, whose `--resume` may be given without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments, with `--resume` as `--resume=` where no value follows it."""
        follows = [*args[1:], "-"]
        alone = [arg == "--resume" and next_.startswith("-") for arg, next_ in zip(args, follows)]
        return super().parse_args(ctx, [f"{arg}=" if is_alone else arg for arg, is_alone in zip(args, alone)])


@with_settings(Config)
def train(
    settings: dict[str, Any],
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[PATH]",
            help="Go on with the run that saved into this folder (default: model_save_dir), or from one of its "
            "checkpoints, with the settings that are stored there. Settings that are given go before them.",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show warnings and errors only, and no progress.")
    ] = False,
    dump_config: Annotated[
        bool, typer.Option("--dump-config", help="Print all settings as a file for --config, and do not train.")
    ] = False,
) -> None:
    """Train, verify and save a checkpoint each epoch."""
    if quiet:
        be_quiet()
    if resume is not None:
        settings = _resumed(resume, settings)
    entry = make_entry(settings)
    if dump_config:
        typer.echo(entry.config.to_yaml(), nl=False)
    else:
        entry.train()


def _resumed(place: str, settings: dict[str, Any]) -> dict[str, Any]:
    with held_back():
        require_paddle()
        from plsc.engine.saved_run import resumed_settings

        place = place or settings.get("checkpoint_dir") or settings.get("model_save_dir") or Config().model_save_dir
        return resumed_settings(str(place), settings)


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
