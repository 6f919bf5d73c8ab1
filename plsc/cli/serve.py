"""`plsc serve` and `plsc gallery`: an exported model as a service, and what to find in its embeddings."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from plsc.data.images import IMAGE_SUFFIXES, is_image_name
from plsc.errors import ConfigError, ServingError
from plsc.serving.settings import ServeSettings
from plsc.utils.logging import show_log

gallery = typer.Typer(no_args_is_help=True, help="Enrol embeddings under names, and find who is most similar.")

Model = Annotated[Path, typer.Argument(help="exported model, as plsc export wrote it")]
Folder = Annotated[Path, typer.Argument(help="folder of the gallery")]
Images = Annotated[list[Path], typer.Argument(help="image files, or folders NAME/ of image files")]
Threshold = Annotated[float | None, typer.Option(min=-1, max=1, help="cosine from which on two are the same")]
Report = Annotated[Path | None, typer.Option(help="what plsc test printed: takes the threshold from it")]
ReportSet = Annotated[str | None, typer.Option(help="verification set of the report, where it has several")]


def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="address to listen on")] = ServeSettings.host,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = ServeSettings.port,
    workers: Annotated[int, typer.Option(min=1, help="predictor processes")] = ServeSettings.workers,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each; default: share the cores")] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="images per forward pass")] = ServeSettings.max_batch,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, help="how long a batch waits to fill under load")
    ] = ServeSettings.max_wait_ms,
    max_queue: Annotated[int, typer.Option(min=1, help="images waiting; past it, 503")] = ServeSettings.max_queue,
    max_body: Annotated[int, typer.Option(min=1, help="bytes of a request")] = ServeSettings.max_body,
    max_images: Annotated[int, typer.Option(min=1, help="images of a request")] = ServeSettings.max_images,
    max_pixels: Annotated[int, typer.Option(min=1, help="pixels of an image")] = ServeSettings.max_pixels,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="seconds for a request to come, and for its answer")
    ] = ServeSettings.timeout,
    drain: Annotated[
        float, typer.Option(min=0, help="seconds between SIGTERM and taking no connection")
    ] = ServeSettings.drain,
    api_key_file: Annotated[Path | None, typer.Option(help="file with the API key; or set PLSC_API_KEY")] = None,
    gallery: Annotated[Path | None, typer.Option(help="gallery, for /identify")] = None,
    threshold: Threshold = None,
    report: Report = None,
    report_set: ReportSet = None,
    access_log: Annotated[bool, typer.Option(help="a line of JSON per request on standard output")] = True,
) -> None:
    """Serve an exported model over HTTP. See docs/serving.md."""
    from plsc.serving.server import serve as run

    show_log(is_main=True)
    run(
        ServeSettings(
            model=model,
            host=host,
            port=port,
            workers=workers,
            threads=threads,
            max_batch=max_batch,
            max_wait_ms=max_wait_ms,
            max_queue=max_queue,
            max_body=max_body,
            max_images=max_images,
            max_pixels=max_pixels,
            timeout=timeout,
            drain=drain,
            api_key=_api_key(api_key_file),
            gallery=gallery,
            threshold=_threshold(threshold, report, report_set),
            access_log=access_log,
        )
    )


@gallery.command()
def build(model: Model, folder: Folder, images: Images) -> None:
    """Embed images and enrol them in a new gallery. An image in a folder NAME/ is of NAME, others of their file."""
    from plsc.inference.gallery import Gallery
    from plsc.inference.model import load_inference_model

    if folder.exists():
        raise ConfigError(f"{folder} exists and is not overwritten; choose another name, or plsc gallery add")
    loaded = load_inference_model(model)
    made = Gallery(loaded.emb_dim, loaded.card.weights)
    _enrol(made, loaded, images)
    made.save(folder)
    typer.echo(f"{folder}: {len(made)} entries of {len(set(made.names))} names")


@gallery.command()
def add(model: Model, folder: Folder, images: Images) -> None:
    """Embed images and enrol them in a gallery that is there."""
    from plsc.inference.gallery import Gallery
    from plsc.inference.model import load_inference_model

    opened, loaded = Gallery.open(folder), load_inference_model(model)
    opened.check_model(loaded.card)
    _enrol(opened, loaded, images)
    opened.save(folder, replace=True)
    typer.echo(f"{folder}: {len(opened)} entries of {len(set(opened.names))} names")


@gallery.command()
def remove(folder: Folder, names: Annotated[list[str], typer.Argument(help="names to take out")]) -> None:
    """Take all entries of some names out of a gallery."""
    from plsc.inference.gallery import Gallery

    opened = Gallery.open(folder)
    count = sum(opened.remove(name) for name in names)
    opened.save(folder, replace=True)
    typer.echo(f"{folder}: {count} entries removed, {len(opened)} left")


@gallery.command()
def search(
    model: Model,
    folder: Folder,
    images: Images,
    count: Annotated[int, typer.Option("-k", min=1, help="entries to show for each image")] = 5,
    threshold: Threshold = None,
    report: Report = None,
    report_set: ReportSet = None,
) -> None:
    """Find the entries most similar to each image; one line of JSON per image."""
    from plsc.inference.gallery import Gallery
    from plsc.inference.model import load_inference_model

    opened, loaded = Gallery.open(folder), load_inference_model(model)
    opened.check_model(loaded.card)
    files = [file for _, file in _files(images)]
    cosine = _threshold(threshold, report, report_set)
    for file, found in zip(files, opened.search(loaded.embed(files), count, threshold=cosine)):
        matches = [match.as_dict() for match in found]
        typer.echo(json.dumps({"image": str(file), "matches": matches, "threshold": cosine}, ensure_ascii=False))


def _enrol(opened, loaded, images: list[Path]) -> None:
    found = _files(images)
    opened.add([name for name, _ in found], loaded.embed([file for _, file in found]))


def _files(images: list[Path]) -> list:
    """(name, file) of files and folders, in a fixed order."""
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


def _threshold(threshold: float | None, report: Path | None, name: str | None) -> float | None:
    from plsc.inference.gallery import read_threshold

    if threshold is not None and report is not None:
        raise ConfigError("--threshold and --report both say the threshold; give one of them")
    return read_threshold(report, name) if report is not None else threshold


def _api_key(file: Path | None) -> str | None:
    """From a file or the environment, never from an argument, which every user of the machine can read."""
    if file is None:
        return os.environ.get("PLSC_API_KEY") or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServingError(f"{file}: the API key cannot be read: {reason}") from None
