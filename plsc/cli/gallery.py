"""`plsc gallery`: enroll embeddings under names, and search the most similar."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plsc.data.images import IMAGE_SUFFIXES, is_image_name
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
Report = Annotated[
    Path | None, typer.Option(help="JSON that plsc test printed. Its threshold of the best accuracy is used.")
]
ReportSet = Annotated[
    str | None, typer.Option(help="Verification set of the report. Needed if the report has several.")
]


@app.command()
def build(model: Model, folder: Folder, images: Images) -> None:
    """Embed images and enroll them in a new gallery, under the names of their folders; single files under their own."""
    from plsc.inference.gallery import Gallery
    from plsc.inference.model import load_inference_model

    if folder.exists() or restore_folder(folder):
        raise ConfigError(f"{folder} exists and is not overwritten; choose another name, or plsc gallery add")
    loaded = load_inference_model(model)
    gallery = Gallery(loaded.emb_dim, loaded.card.weights)
    _enroll(gallery, loaded, images)
    gallery.save(folder)
    typer.echo(f"{folder}: {len(gallery)} entries of {len(set(gallery.names))} names")


@app.command()
def add(model: Model, folder: Folder, images: Images) -> None:
    """Embed images and enroll them in an existing gallery."""
    gallery, loaded = _open(folder, model)
    _enroll(gallery, loaded, images)
    gallery.save(folder, replace=True)
    typer.echo(f"{folder}: {len(gallery)} entries of {len(set(gallery.names))} names")


@app.command()
def remove(folder: Folder, names: Annotated[list[str], typer.Argument(help="Names to remove.")]) -> None:
    """Remove all entries of some names from a gallery."""
    from plsc.inference.gallery import Gallery

    gallery = Gallery.open(folder)
    count = sum(gallery.remove(name) for name in names)
    gallery.save(folder, replace=True)
    typer.echo(f"{folder}: {count} entries removed, {len(gallery)} left")


@app.command()
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
    files = [file for _, file in _named_files(images)]
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


def _enroll(gallery: Gallery, model: InferenceModel, images: list[Path]) -> None:
    found = _named_files(images)
    gallery.add([name for name, _ in found], model.embed([file for _, file in found]))


def _named_files(images: list[Path]) -> list[tuple[str, Path]]:
    """The name and path of each file, and of each image file in folders, in a fixed order."""
    found = []
    for path in images:
        if not path.is_dir():
            found.append((path.stem, path))
            continue
        inside = sorted(file for file in path.rglob("*") if is_image_name(file.name))
        if not inside:
            raise ConfigError(f"{path}: no image in it, expected files of {', '.join(IMAGE_SUFFIXES)}")
        found += [(path.name if file.parent == path else file.parent.name, file) for file in inside]
    return found
