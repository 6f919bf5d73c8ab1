"""The images that a command is given: files, folders and lists of paths."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from plsc.data.images import IMAGE_SUFFIXES
from plsc.data.sources.folders import image_files
from plsc.data.sources.leftovers import warn_of_leftovers
from plsc.errors import ConfigError
from plsc.utils.files import text_lines


def images_at(path: Path, *, remedy: str = "To take one, rename it") -> list[Path]:
    """A single file; or the images of a folder, sorted, leftovers of other programs left out.

    Args:
        path: file or folder.
        remedy: for the warning of leftovers: what to do where one of them is an image that is meant.

    Raises:
        ConfigError: a folder without an image.
    """
    if not os.path.isdir(path):
        return [path]
    left: list[str] = []
    inside = [Path(file) for file in image_files(path, left)]
    warn_of_leftovers(path, [os.path.relpath(other, path) for other in left], remedy=remedy)
    if not inside:
        raise ConfigError(f"{path}: no image in it, expected files of {', '.join(IMAGE_SUFFIXES)}")
    return inside


def images_of(paths: Sequence[Path], lists: Sequence[Path]) -> list[Path]:
    """The images of files and folders, then those of the lists, which hold a path per line.

    A path that is not absolute is relative to the folder of its list. Empty lines are skipped.

    Raises:
        ConfigError: no image is given.
        DataError: a list cannot be read.
    """
    listed = [
        file.parent / line.rstrip("\r\n") for file in lists for line in text_lines(file, "the list") if line.strip()
    ]
    found = [image for path in [*paths, *listed] for image in images_at(path)]
    if not found:
        raise ConfigError("no image is given; name files or folders, or a list of paths with --list FILE")
    return found
