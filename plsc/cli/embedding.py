"""`plsc embed` and `plsc predict`: an exported model on images."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Annotated

import typer

from plsc.cli.command import tell
from plsc.cli.image_paths import images_of
from plsc.errors import ConfigError
from plsc.utils.atomic import write_file
from plsc.utils.files import check_has_folder
from plsc.utils.json_text import to_json

Images = Annotated[list[Path] | None, typer.Argument(help="Image files, and folders of them.")]
Lists = Annotated[
    list[Path] | None,
    typer.Option("--list", help="Text file with the path of an image per line, relative to the file's folder."),
]
Device = Annotated[
    str | None, typer.Option(help="cpu or gpu:<index>. Default: the first GPU that Paddle finds, else the CPU.")
]


def embed(
    model: Annotated[Path, typer.Argument(help="Folder that plsc export wrote.")],
    images: Images = None,
    lists: Lists = None,
    output: Annotated[Path, typer.Option("--output", help="Name of the .npy file to write.")] = Path("embeddings.npy"),
    force: Annotated[bool, typer.Option("--force", help="Replace files of the same name.")] = False,
    device: Device = None,
) -> None:
    """Embed images with an exported model.

    Writes a .npy file, n x D float32 with a row of unit length per image, and beside it a .csv file with the path of
    each row's image.
    """
    import numpy as np

    from plsc.inference.model import load_inference_model

    names = output.with_suffix(".csv")
    if names == output:
        raise ConfigError(f"{output}: the paths of the images are written there; choose another --output, as e.npy")
    existing = [file for file in (output, names) if os.path.lexists(file)]
    if existing and not force:
        raise ConfigError(f"{existing[0]} exists and is not overwritten; choose another --output, or give --force")
    check_has_folder(output, ConfigError)
    loaded = load_inference_model(model, device=device)
    files = images_of(images or [], lists or [])
    embeddings = loaded.embed(files)
    rows = io.StringIO()
    csv.writer(rows, lineterminator="\n").writerows([["row", "image"], *enumerate(map(str, files))])
    try:
        with write_file(output) as file:
            np.save(file, embeddings)
        with write_file(names) as file:
            file.write(rows.getvalue().encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror or error}") from None
    tell(f"{output}: {embeddings.shape[0]} embeddings of {embeddings.shape[1]}; {names}: their images")


def predict(
    model: Annotated[Path, typer.Argument(help="Folder that plsc export --classifier wrote.")],
    images: Images = None,
    lists: Lists = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to print for each image.")] = 5,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Classify images with an exported model: for each image the most probable classes of training."""
    from plsc.inference.model import load_inference_model

    loaded = load_inference_model(model, device=device)
    files = images_of(images or [], lists or [])
    found = loaded.classify(files, top)
    if as_json:
        results = [
            {"image": str(image), "classes": [each.as_dict() for each in row]} for image, row in zip(files, found)
        ]
        over = loaded.classifier.normalized_over
        typer.echo(to_json({"normalized_over": over, "results": results}, indent=1))
        return
    for image, row in zip(files, found):
        typer.echo(str(image))
        for each in row:
            typer.echo(f"  {each.probability:8.4f}  {each.name}")
