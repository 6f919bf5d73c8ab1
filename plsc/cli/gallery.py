"""`plsc gallery`: enroll embeddings under names, and search the most similar."""

from __future__ import annotations

import collections
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from plsc.cli.command import Command, tell
from plsc.cli.image_paths import images_at
from plsc.data.sources.folders import check_parts, is_part_name
from plsc.errors import ConfigError, DataError
from plsc.utils.atomic import check_new_folder, restore_folder
from plsc.utils.json_text import to_json
from plsc.utils.plural import counted

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
Index = Annotated[
    Literal["flat", "sq8", "hnsw"],
    typer.Option(
        help="flat: exact search. sq8: a quarter of the memory, cosines off by up to 0.003. hnsw: fast search of "
        "millions, which may miss entries; slow to build."
    ),
]
Report = Annotated[
    Path | None, typer.Option(help="JSON that plsc test printed. Its threshold of the best accuracy is used.")
]
ReportSet = Annotated[
    str | None, typer.Option(help="Verification set of the report. Needed if the report has several.")
]

_CAMERAS = "img|image|photo|pic|picture|face|frame|dsc|dscn|dscf|pxl"
_REMEDY = "To enroll one, rename it"  # of leftovers
_MOST_NAMED = 20  # names of what was enrolled that are printed


@app.command(cls=Command)
def build(model: Model, folder: Folder, images: Images, name: Name = None, index: Index = "flat") -> None:
    """Embed images and enroll them in a new gallery, under the names of their folders; single files under their own."""
    from plsc.inference.gallery import Gallery
    from plsc.inference.model import load_inference_model

    if os.path.lexists(folder) or restore_folder(folder):
        raise ConfigError(f"{folder} exists and is not overwritten; choose another name, or plsc gallery add")
    found = _named_files(images, name)
    check_new_folder(folder, ConfigError)
    loaded = load_inference_model(model)
    gallery = Gallery(loaded.emb_dim, loaded.card.weights, index=index)
    gallery.add([name for name, _ in found], loaded.embed([file for _, file in found]))
    gallery.save(folder)
    _print_enrolled(folder, gallery, found)


@app.command(cls=Command)
def add(model: Model, folder: Folder, images: Images, name: Name = None) -> None:
    """Embed images and enroll them in an existing gallery, under the same names as build."""
    from plsc.inference.gallery import Gallery

    found = _named_files(images, name)
    _, loaded = _open(folder, model)
    embeddings = loaded.embed([file for _, file in found])
    with Gallery.editing(folder) as gallery:  # what others have changed meanwhile is in it
        gallery.check_model(loaded.card)
        gallery.add([name for name, _ in found], embeddings)
    _print_enrolled(folder, gallery, found)


@app.command(cls=Command)
def remove(folder: Folder, names: Annotated[list[str], typer.Argument(help="Names to remove.")]) -> None:
    """Remove all entries of some names from a gallery."""
    from plsc.inference.gallery import Gallery

    with Gallery.editing(folder) as gallery:
        count = gallery.remove(names)
    tell(f"{folder}: {counted(count, 'entry')} removed, {len(gallery)} left")


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
    files = [file for path in images for file in images_at(path, remedy=_REMEDY)]
    cosine = read_threshold(threshold, report, report_set=report_set)
    for file, found in zip(files, gallery.search(loaded.embed(files), count, threshold=cosine)):
        matches = [match.as_dict() for match in found]
        # Not typer.echo, which writes ? for characters that ASCII lacks; main() has set the stream to escape them.
        print(to_json({"image": str(file), "matches": matches, "threshold": cosine}, ensure_ascii=False))


def read_threshold(threshold: float | None, report: Path | None, *, report_set: str | None) -> float | None:
    """The threshold given as a number, or read from a report of `plsc test`.

    Raises:
        ConfigError: both are given, or a set of a report and no report.
        ServingError: the report has no such threshold.
    """
    if report is None:
        if report_set is not None:
            raise ConfigError(f"--report-set {report_set} names a set of a report; give the report too, with --report")
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


def _print_enrolled(folder: Path, gallery: Gallery, found: list[tuple[str, Path]]) -> None:
    counts = collections.Counter(name for name, _ in found)
    named = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:_MOST_NAMED])
    others = f" and {len(counts) - _MOST_NAMED} more" if len(counts) > _MOST_NAMED else ""
    tell(f"enrolled {named}{others}")
    tell(f"{folder}: {counted(len(gallery), 'entry')} of {counted(len(set(gallery.names)), 'name')}")


def _named_files(images: list[Path], name: str | None = None) -> list[tuple[str, Path]]:
    """The name and path of each file, and of each image file in folders, in a fixed order.

    Raises:
        ConfigError: a folder holds no image; no name is given, and none follows from the path, or the same one from
            different folders; or a name is not UTF-8.
        DataError: a folder holds the parts of a data set.
    """
    found: list[tuple[str, Path]] = []
    sources: dict[str, Path] = {}  # the folder or the file that each name comes from
    for path in images:
        files = images_at(path, remedy=_REMEDY)
        if name is not None:
            found += [(_fill_in(name, file), file) for file in files]
            continue
        for (file_name, source), file in zip(_names(path, files), files):
            other = sources.setdefault(file_name, source)
            if other != source and other.resolve() != source.resolve():
                raise ConfigError(
                    f"{file_name!r} is the name of {other} and of {source}, and the images of both would be enrolled "
                    f"as one; if they are one, enroll them one by one with plsc gallery add, else give one a --name"
                )
            found.append((file_name, file))
    _check_names([file_name for file_name, _ in found])
    return list(dict.fromkeys(found))


def _fill_in(name: str, file: Path) -> str:
    """A --name with {folder} and {file} filled in.

    Raises:
        ConfigError: another word is in braces.
    """
    values = {"{folder}": _folder_name(file.parent), "{file}": file.stem}
    unknown = [part for part in re.findall(r"{\w*}?", name) if part not in values]
    if unknown:
        raise ConfigError(
            f"--name {name}: got {unknown[0]}, expected {{folder}} for the name of an image's folder, {{file}} "
            f"for that of the image without its suffix, or text without braces"
        )
    return re.sub("{folder}|{file}", lambda found: values[found[0]], name)


def _check_names(names: list[str]) -> None:
    from plsc.inference.gallery import check_names

    try:
        check_names(names)
    except DataError as error:
        raise ConfigError(f"{error}; rename the folder or the file, or give a --name") from None


def _names(path: Path, files: list[Path]) -> list[tuple[str, Path]]:
    """For each of the files of a path, its name and the folder or file that the name comes from."""
    if os.path.isdir(path):
        return _names_by_folder(path, files)
    if path.stem.isdecimal():
        raise ConfigError(
            f"{path}: got no name to enroll it under, and {path.stem!r} is the number of an image; choose one of "
            f"--name {_folder_name(path.parent)}, --name '{{folder}}' (the name of each image's folder) and "
            f"--name '{{file}}' (the number), or give the folder"
        )
    return [(path.stem, path)]


def _names_by_folder(folder: Path, files: list[Path]) -> list[tuple[str, Path]]:
    """The names of images as training gives them: of the class folder that is given, or of those in the root given."""
    direct = [file for file in files if file.parent == folder]
    name = _folder_name(folder)
    if len(direct) == len(files):
        named = [file.name for file in files if not _is_numbering(file.stem, name)]
        if named:
            raise ConfigError(
                f"{folder}: holds images and no folders, {named[0]} the first; it cannot be told whether they are of "
                f"one name or of one each: choose --name {name} or --name '{{file}}' (the name of each file)"
            )
        if is_part_name(name):
            raise ConfigError(
                f"{folder}: holds images and no folders, and {name!r} is the name of a part of a data set and of no "
                f"class: choose --name NAME, or --name '{{file}}' (the name of each file)"
            )
        return [(name, folder)] * len(files)
    if direct:
        raise ConfigError(
            f"{folder}: holds images, {direct[0].name} the first, beside folders of images; expected a folder of one "
            f"name or one of folders: give its folders one by one, or a --name"
        )
    names = [file.relative_to(folder).parts[0] for file in files]
    check_parts(folder, sorted(set(names)))
    return [(name, folder / name) for name in names]


def _is_numbering(stem: str, folder: str) -> bool:
    """Whether a file's name only tells it from other images of its folder: ann/0007, ann/ann_2, ann/IMG_1234."""
    return re.fullmatch(rf"({re.escape(folder)}|{_CAMERAS})?[\W\d_]*", stem, re.IGNORECASE) is not None


def _folder_name(folder: Path) -> str:
    return os.path.basename(os.path.abspath(folder))
