"""`plsc gallery`: enroll embeddings under names, and search the most similar."""

from __future__ import annotations

import collections
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plsc.cli.command import Command
from plsc.data.images import IMAGE_SUFFIXES
from plsc.data.sources.folders import check_parts, image_files
from plsc.data.sources.leftovers import warn_of_leftovers
from plsc.errors import ConfigError
from plsc.utils.atomic import restore_folder
from plsc.utils.json_text import to_json

if TYPE_CHECKING:
    from plsc.inference.gallery import Gallery
    from plsc.inference.model import InferenceModel

app = typer.Typer(no_args_is_help=True, help="Enroll embeddings under names, and search the most similar.")

Model = Annotated[Path, typer.Argument(help="Exported model: a folder that plsc export wrote.")]
Folder = Annotated[Path, typer.Argument(help="Folder of the gallery.")]
Images = Annotated[list[Path], typer.Argument(help="Image files, or folders NAME/ of image files.")]
Name = Annotated[
    str | None,
    typer.Option(
        help="Name to enroll the images under; {folder} stands for the name of an image's folder, {file} for that of "
        "the image without its suffix. By default images in folders have the folders' names, and single ones their own."
    ),
]
Report = Annotated[
    Path | None, typer.Option(help="JSON that plsc test printed. Its threshold of the best accuracy is used.")
]
ReportSet = Annotated[
    str | None, typer.Option(help="Verification set of the report. Needed if the report has several.")
]

_MOST_NAMED = 20  # names of what was enrolled that are printed


@app.command(cls=Command)
def build(model: Model, folder: Folder, images: Images, name: Name = None) -> None:
    """Embed images and enroll them in a new gallery, under the names of their folders; single files under their own."""
    from plsc.inference.gallery import Gallery
    from plsc.inference.model import load_inference_model

    if folder.exists() or restore_folder(folder):
        raise ConfigError(f"{folder} exists and is not overwritten; choose another name, or plsc gallery add")
    found = _named_files(images, name)
    loaded = load_inference_model(model)
    gallery = Gallery(loaded.emb_dim, loaded.card.weights)
    _enroll(gallery, loaded, found)
    gallery.save(folder)
    _print_enrolled(folder, gallery, found)


@app.command(cls=Command)
def add(model: Model, folder: Folder, images: Images, name: Name = None) -> None:
    """Embed images and enroll them in an existing gallery, under the same names as build."""
    found = _named_files(images, name)
    gallery, loaded = _open(folder, model)
    _enroll(gallery, loaded, found)
    gallery.save(folder, replace=True)
    _print_enrolled(folder, gallery, found)


@app.command(cls=Command)
def remove(folder: Folder, names: Annotated[list[str], typer.Argument(help="Names to remove.")]) -> None:
    """Remove all entries of some names from a gallery."""
    from plsc.inference.gallery import Gallery

    gallery = Gallery.open(folder)
    count = sum(gallery.remove(name) for name in names)
    gallery.save(folder, replace=True)
    typer.echo(f"{folder}: {count} entries removed, {len(gallery)} left")


@app.command(cls=Command)
def search(
    model: Model,
    folder: Folder,
    images: Images,
    count: Annotated[int, typer.Option("-k", min=1, help="Entries to show per image.")] = 5,
    threshold: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Lowest cosine at which two images count as the same.")
    ] = None,
    report: Report = None,
    report_set: ReportSet = None,
) -> None:
    """Find the entries most similar to each image; one line of JSON per image."""
    gallery, loaded = _open(folder, model)
    files = [file for path in images for file in _files(path)]
    cosine = read_threshold(threshold, report, report_set=report_set)
    for file, found in zip(files, gallery.search(loaded.embed(files), count, threshold=cosine)):
        matches = [match.as_dict() for match in found]
        typer.echo(to_json({"image": str(file), "matches": matches, "threshold": cosine}, ensure_ascii=False))


def read_threshold(threshold: float | None, report: Path | None, *, report_set: str | None) -> float | None:
    """The threshold given as a number, or read from a report of `plsc test`.

    Raises:
        ConfigError: both are given.
        ServingError: the report has no such threshold.
    """
    if report is None:
        return threshold
    if threshold is not None:
        raise ConfigError("--threshold and --report both give a threshold; expected one of them")
    from plsc.inference import gallery

    return gallery.read_threshold(report, report_set)


def _open(folder: Path, model: Path) -> tuple[Gallery, InferenceModel]:
    from plsc.inference.gallery import Gallery
    from plsc.inference.model import load_inference_model

    gallery, loaded = Gallery.open(folder), load_inference_model(model)
    gallery.check_model(loaded.card)
    return gallery, loaded


def _enroll(gallery: Gallery, model: InferenceModel, found: list[tuple[str, Path]]) -> None:
    gallery.add([name for name, _ in found], model.embed([file for _, file in found]))


def _print_enrolled(folder: Path, gallery: Gallery, found: list[tuple[str, Path]]) -> None:
    counts = collections.Counter(name for name, _ in found)
    named = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:_MOST_NAMED])
    others = f" and {len(counts) - _MOST_NAMED} more" if len(counts) > _MOST_NAMED else ""
    typer.echo(f"enrolled {named}{others}")
    typer.echo(f"{folder}: {len(gallery)} entries of {len(set(gallery.names))} names")


def _named_files(images: list[Path], name: str | None = None) -> list[tuple[str, Path]]:
    """The name and path of each file, and of each image file in folders, in a fixed order.

    Raises:
        ConfigError: a folder holds no image; or no name is given, and none follows from the path.
        DataError: a folder holds the parts of a data set.
    """
    found: list[tuple[str, Path]] = []
    for path in images:
        files = _files(path)
        if name is not None:
            found += [
                (name.replace("{folder}", _folder_name(file.parent)).replace("{file}", file.stem), file)
                for file in files
            ]
        elif path.is_dir():
            found += zip(_names_by_folder(path, files), files)
        elif path.stem.isdecimal():
            raise ConfigError(
                f"{path}: got no name to enroll it under, and {path.stem!r} is the number of an image; choose one of "
                f"--name {_folder_name(path.parent)}, --name '{{folder}}' (the name of each image's folder) and "
                f"--name '{{file}}' (the number), or give the folder"
            )
        else:
            found.append((path.stem, path))
    return found


def _names_by_folder(folder: Path, files: list[Path]) -> list[str]:
    """The names of images as training gives them: of the class folder that is given, or of those in the root given."""
    direct = [file for file in files if file.parent == folder]
    if len(direct) == len(files):
        return [_folder_name(folder)] * len(files)
    if direct:
        raise ConfigError(
            f"{folder}: holds images, {direct[0].name} the first, beside folders of images; expected a folder of one "
            f"name or one of folders: give its folders one by one, or a --name"
        )
    names = [file.relative_to(folder).parts[0] for file in files]
    check_parts(folder, sorted(set(names)))
    return names


def _folder_name(folder: Path) -> str:
    return os.path.basename(os.path.abspath(folder))


def _files(path: Path) -> list[Path]:
    """A single file; or the images of a folder, leftovers of other programs left out."""
    if not path.is_dir():
        return [path]
    left: list[str] = []
    inside = [Path(file) for file in image_files(path, left)]
    warn_of_leftovers(path, [os.path.relpath(other, path) for other in left], remedy="To enroll one, rename it")
    if not inside:
        raise ConfigError(f"{path}: no image in it, expected files of {', '.join(IMAGE_SUFFIXES)}")
    return inside
