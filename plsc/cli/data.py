"""`plsc data`: inspect, convert, shuffle and split data sets, and make verification pairs."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import typer

from plsc.cli.command import Command, tell
from plsc.data.alignment import read_landmarks
from plsc.data.convert.conversion import Converted, convert_split
from plsc.data.convert.conversion import convert as convert_records
from plsc.data.convert.inspection import inspect as inspect_records
from plsc.data.convert.inspection import plot as plot_records
from plsc.data.convert.inspection import plot_files
from plsc.data.convert.preprocessing import Preprocessing
from plsc.data.convert.writers import WRITERS
from plsc.data.pairs import make_verification_set
from plsc.data.records import Records
from plsc.data.sources import open_records
from plsc.data.subset import shuffled, with_min_images, without_classes_of
from plsc.errors import DataError
from plsc.utils.json_text import to_json
from plsc.utils.logging import show_log
from plsc.utils.plural import counted

app = typer.Typer(
    no_args_is_help=True, help="Inspect, convert, shuffle and split data sets, and make verification pairs."
)

_WITH_PARTS = " and ".join(name for name, writer in WRITERS.items() if writer.has_parts)

Source = Annotated[str, typer.Argument(help="File or folder of any known format; docs/data.md lists the formats.")]
Target = Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.")]
Format = Annotated[str, typer.Option("--to", help=f"Format to write: {', '.join(WRITERS)}.")]
Recover = Annotated[
    bool, typer.Option("--recover", help="Read a damaged .rec up to the damage instead of refusing it.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random choices; the same seed gives the same result.")]
Parts = Annotated[
    int, typer.Option(min=1, help=f"Number of files to spread the images over in equal shares ({_WITH_PARTS} only).")
]
MinImages = Annotated[
    int,
    typer.Option(
        min=0, help="Leave out classes with fewer images than this, and renumber the others; 0 keeps all classes."
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad-images", help="Leave out and count images that cannot be decoded; by default such an image stops."
    ),
]

Strict = Annotated[
    bool,
    typer.Option(
        "--strict-images",
        help="Count images that are damaged but can be decoded in part as images that cannot be decoded; by default "
        "there is a warning.",
    ),
]


@app.callback()
def _show_log() -> None:
    show_log(is_main=True)


@app.command(cls=Command)
def inspect(
    source: Source,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Decode at most this many images, evenly spread; by default all.")
    ] = None,
    *,
    plot: Annotated[
        str | None,
        typer.Option(
            help="Save a histogram as PREFIX-classes.png and sample images as PREFIX-images.png.", metavar="PREFIX"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Count images and classes, decode the images and name the damaged ones. Exits with 1 if anything is damaged."""
    is_damaged = False
    if plot:
        plot_files(plot)  # raises before the images are read
    try:
        records = open_records(source)
        found = inspect_records(records, limit)
    except DataError as error:
        try:
            records = open_records(source, recover=True)
        except DataError:
            raise error from None
        typer.echo(f"plsc: {error}", err=True)
        is_damaged, found = True, inspect_records(records, limit)
    typer.echo(to_json(dataclasses.asdict(found), indent=1) if as_json else str(found))
    if plot:
        typer.echo("saved " + " and ".join(map(str, plot_records(records, plot))), err=as_json)
    if is_damaged or found.num_damaged or found.damage:
        raise typer.Exit(1)


@app.command(cls=Command)
def convert(
    source: Source,
    target: Target,
    *,
    to: Format = "rec",
    size: Annotated[int | None, typer.Option(min=1, help="Resize images to SIZE x SIZE pixels.")] = None,
    landmarks: Annotated[
        Path | None,
        typer.Option(
            help="Align faces by five points per image: a .npy file of n x 5 x 2 numbers, or a text file with a line "
            "x1 y1 ... x5 y5 per image, in the order of the images."
        ),
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Re-encode all images as jpg or png.")] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="JPEG quality of images that are re-encoded; 95 by default.")
    ] = None,
    parts: Parts = 1,
    min_images: MinImages = 0,
    skip_bad_images: SkipBad = False,
    strict_images: Strict = False,
    recover: Recover = False,
) -> None:
    """Write a data set in another format. After an interruption, the same command continues where it stopped."""
    if quality is not None and encoding != "jpg" and (encoding or not (size or landmarks)):
        raise DataError("--quality needs images that are re-encoded: by --encoding jpg, --size or --landmarks")
    records = open_records(source, recover)
    if landmarks is not None and min_images:
        raise DataError(
            "--landmarks and --min-images: got both, but landmarks are in the order of the whole set; align first, "
            "then leave classes out in a second conversion"
        )
    marks = None if landmarks is None else read_landmarks(landmarks, len(records))
    done = convert_records(
        _without_small_classes(records, min_images),
        target,
        to=to,
        preprocessing=Preprocessing(size, marks, encoding=encoding, quality=quality or 95),
        parts=parts,
        skip_bad_images=skip_bad_images,
        strict_images=strict_images,
    )
    _print_result(done)


@app.command(cls=Command)
def shuffle(
    source: Source,
    target: Target,
    *,
    to: Format = "rec",
    seed: Seed = 0,
    parts: Parts = 1,
    skip_bad_images: SkipBad = False,
    strict_images: Strict = False,
    recover: Recover = False,
) -> None:
    """Write a data set in a random order. Needs sixteen bytes of memory per image."""
    if to == "folders":
        raise DataError(
            "--to folders: class folders have no order, they are read class by class; choose another format to shuffle"
        )
    records = shuffled(open_records(source, recover), seed)
    _print_result(
        convert_records(
            records, target, to=to, parts=parts, skip_bad_images=skip_bad_images, strict_images=strict_images
        )
    )


@app.command(cls=Command)
def split(
    source: Source,
    target: Target,
    *,
    held_out: Annotated[
        float, typer.Option(min=0, help="Classes to hold out: a share of the classes if below 1, else their number.")
    ],
    to: Format = "rec",
    seed: Seed = 0,
    min_images: MinImages = 0,
    skip_bad_images: SkipBad = False,
    strict_images: Strict = False,
    recover: Recover = False,
) -> None:
    """Write TARGET/train and TARGET/held_out, which have no class in common."""
    records = _without_small_classes(open_records(source, recover), min_images)
    for done in convert_split(
        records,
        target,
        to=to,
        held_out=held_out,
        seed=seed,
        skip_bad_images=skip_bad_images,
        strict_images=strict_images,
    ):
        _print_result(done)


@app.command(cls=Command)
def pairs(
    source: Source,
    output: Annotated[Path, typer.Argument(help="File to write, which must not exist yet; its name ends in .bin.")],
    *,
    num_pairs: Annotated[
        int, typer.Option("--pairs", min=2, help="Number of pairs to make, half of them of the same identity.")
    ] = 6000,
    folds: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of folds, which the file describes; no identity is in two folds. With 1, evaluation divides "
            "the pairs itself.",
        ),
    ] = 10,
    seed: Seed = 0,
    exclude: Annotated[
        str | None, typer.Option(help="Training set, file or folder, whose identities are left out of the pairs.")
    ] = None,
    recover: Recover = False,
) -> None:
    """Make a verification set from a labeled data set. Half the pairs are of the same identity."""
    if os.path.exists(output):
        raise DataError(f"{output} exists already; nothing is overwritten: choose another name")
    if output.suffix != ".bin" or not os.path.isdir(output.parent):
        raise DataError(
            f"{output}: expected a name that ends in .bin, by which training finds verification sets, in an existing "
            f"folder"
        )
    records = open_records(source, recover)
    if exclude is not None:
        records = without_classes_of(records, open_records(exclude))
    made = make_verification_set(records, num_pairs, folds=folds, seed=seed, name=output.stem)
    made.save(output)
    made_of = f"{counted(len(records), 'image')}, {counted(records.count_classes(), 'class')}"
    tell(f"{output}: {counted(len(made), 'pair')} in {counted(folds, 'fold')} of {made_of}")
    for shortcoming in made.shortcomings():
        typer.echo(f"{output}: {shortcoming}", err=True)


@app.command(cls=Command)
def index(source: Source) -> None:
    """Write the offsets of base64 parts or tar shards beside them, so that they open without being read through."""
    records = open_records(source)
    written = records.save_index()
    if not written:
        raise DataError(f"{source} is {records.format}, which needs no index: only base64 parts and tar shards do")
    for path in written:
        tell(path)


def _without_small_classes(records: Records, min_images: int) -> Records:
    return with_min_images(records, min_images) if min_images else records


def _print_result(done: Converted) -> None:
    damaged = f", {done.damaged} of them damaged" if done.damaged else ""
    left_out = f", {counted(done.skipped, 'unreadable one')} left out" if done.skipped else ""
    tell(f"{done.target}: {counted(done.images, 'image')}{damaged}{left_out}")
