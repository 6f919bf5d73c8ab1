"""`plsc data`: look at, convert, shuffle and split data sets, and make verification pairs."""

# No postponed annotations here: on Python 3.9 typer reads them as they stand.

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from plsc.data.alignment import read_landmarks
from plsc.data.convert.conversion import Converted, Redraw, convert_split
from plsc.data.convert.conversion import convert as convert_records
from plsc.data.convert.inspection import inspect as inspect_records
from plsc.data.convert.inspection import plot as plot_records
from plsc.data.convert.inspection import plot_files
from plsc.data.convert.writers import SINKS
from plsc.data.pairs import make_verification_set
from plsc.data.records import Records
from plsc.data.sources import open_records
from plsc.data.subset import shuffled, with_min_images, without_classes_of
from plsc.errors import DataError
from plsc.utils.logging import show_log

app = typer.Typer(no_args_is_help=True, help="Look at, convert, shuffle and split data sets; make verification pairs.")

Source = Annotated[str, typer.Argument(help="file or folder of any known format; see docs/data.md")]
Target = Annotated[Path, typer.Argument(help="folder to write, which does not exist yet")]
Format = Annotated[str, typer.Option("--to", help=f"format to write: {', '.join(SINKS)}")]
Recover = Annotated[bool, typer.Option("--recover", help="of a damaged .rec, read what lies before the damage")]
Seed = Annotated[int, typer.Option(min=0, help="the same seed gives the same result")]
Parts = Annotated[int, typer.Option(min=1, help="files to spread the images over in equal shares (base64, tar)")]
MinImages = Annotated[int, typer.Option(min=0, help="leave out classes with fewer images, renumber the rest; 0: none")]
SkipBad = Annotated[bool, typer.Option("--skip-bad-images", help="leave out and count undecodable images; else stop")]


@app.callback()
def _show_log() -> None:
    show_log(is_main=True)


@app.command()
def inspect(
    source: Source,
    limit: Annotated[int | None, typer.Option(min=1, help="decode only so many, evenly spread")] = None,
    plot: Annotated[
        str | None, typer.Option(help="save PREFIX-classes.png and PREFIX-images.png", metavar="PREFIX")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Count images and classes, decode the images and name the damaged ones. Status 1 where something is damaged."""
    is_damaged = False
    if plot:
        plot_files(plot)  # a mistake is told before the work
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
    typer.echo(json.dumps(dataclasses.asdict(found), indent=1) if as_json else str(found))
    if plot:
        typer.echo("saved " + " and ".join(map(str, plot_records(records, plot))), err=as_json)
    if is_damaged or found.num_damaged or found.damage:
        raise typer.Exit(1)


@app.command()
def convert(
    source: Source,
    target: Target,
    to: Format = "rec",
    size: Annotated[int | None, typer.Option(min=1, help="resize to SIZE x SIZE pixels")] = None,
    landmarks: Annotated[
        Path | None, typer.Option(help="align faces: .npy of n x 5 x 2, or a line x1 y1 ... x5 y5 per image in order")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="jpg or png: encode anew")] = None,
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="of JPEG; 95 unless given")] = None,
    parts: Parts = 1,
    min_images: MinImages = 0,
    skip_bad_images: SkipBad = False,
    recover: Recover = False,
) -> None:
    """Write a data set in another format. Interrupted, the same command goes on where it stopped."""
    if quality is not None and encoding != "jpg" and (encoding or not (size or landmarks)):
        raise DataError("--quality needs images that are encoded anew: by --encoding jpg, --size or --landmarks")
    records = open_records(source, recover)
    if landmarks is not None and min_images:
        raise DataError("landmarks are in the order of the whole set: align first, then leave classes out")
    marks = None if landmarks is None else read_landmarks(landmarks, len(records))
    _tell(
        convert_records(
            _enough(records, min_images),
            target,
            to,
            Redraw(size, marks, encoding, quality or 95),
            parts,
            skip_bad_images,
        )
    )


@app.command()
def shuffle(
    source: Source,
    target: Target,
    to: Format = "rec",
    seed: Seed = 0,
    parts: Parts = 1,
    skip_bad_images: SkipBad = False,
    recover: Recover = False,
) -> None:
    """Write a data set in a random order. Memory is sixteen bytes an image, however large the set."""
    if to == "folders":
        raise DataError("class folders have no order that could be shuffled: they are read class by class")
    records = shuffled(open_records(source, recover), seed)
    _tell(convert_records(records, target, to, parts=parts, skip_bad_images=skip_bad_images))


@app.command()
def split(
    source: Source,
    target: Target,
    held_out: Annotated[float, typer.Option(min=0, help="classes to hold out: below 1 a share, else a number")],
    to: Format = "rec",
    seed: Seed = 0,
    min_images: MinImages = 0,
    skip_bad_images: SkipBad = False,
    recover: Recover = False,
) -> None:
    """Write TARGET/train and TARGET/held_out, which have no class in common."""
    records = _enough(open_records(source, recover), min_images)
    for done in convert_split(records, target, to, held_out, seed, skip_bad_images=skip_bad_images):
        _tell(done)


@app.command()
def pairs(
    source: Source,
    output: Annotated[Path, typer.Argument(help="the .bin to write")],
    num_pairs: Annotated[int, typer.Option("--pairs", min=2, help="same and different together")] = 6000,
    folds: Annotated[int, typer.Option(min=1, help="folds; no identity is in two")] = 10,
    seed: Seed = 0,
    exclude: Annotated[str | None, typer.Option(help="training set whose identities to leave out")] = None,
    recover: Recover = False,
) -> None:
    """Make a verification set of a labeled one, half the pairs of the same identity."""
    if output.exists():
        raise DataError(f"{output} exists already; nothing is overwritten: choose another name")
    if output.suffix != ".bin" or not output.parent.is_dir():
        raise DataError(f"{output}: expected a name that ends in .bin, as training looks for it, in an existing folder")
    records = open_records(source, recover)
    if exclude is not None:
        records = without_classes_of(records, open_records(exclude))
    made = make_verification_set(records, num_pairs, folds=folds, seed=seed, name=output.stem)
    made.save(output)
    typer.echo(
        f"{output}: {len(made)} pairs in {folds} folds of {len(records)} images, {records.count_classes()} classes"
    )


@app.command()
def index(source: Source) -> None:
    """Keep the offsets of base64 parts or tar shards beside them, so that they open at once."""
    records = open_records(source)
    written = records.save_index()
    if not written:
        raise DataError(f"{source} is {records.format}, which needs no index: only base64 parts and tar shards do")
    for path in written:
        typer.echo(path)


def _enough(records: Records, min_images: int) -> Records:
    return with_min_images(records, min_images) if min_images else records


def _tell(done: Converted) -> None:
    left_out = f", {done.skipped} unreadable ones left out" if done.skipped else ""
    typer.echo(f"{done.target}: {done.images} images{left_out}")
