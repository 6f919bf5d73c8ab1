"""A folder of class folders as records."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from plsc.data.images import is_image_name
from plsc.data.records import Record, Records, read_image
from plsc.data.sources.string_table import StringTable
from plsc.errors import DataError

log = logging.getLogger("plsc")

# Folders that desktops, notebooks and network disks make, often with copies of images in them.
_LEFTOVERS = ("__MACOSX", ".ipynb_checkpoints", "@eaDir", ".Trash", ".git")


class FolderRecords(Records):
    """The images of a folder of class folders. The names of the class folders in sorted order are classes 0 ... C - 1.

    Args:
        root: the folder. Images may also lie in folders inside a class folder. Files without the suffix of an image
            are ignored, and counted in the log.

    Raises:
        DataError: no class folder holds an image, or a folder cannot be read.

    Example:
        >>> FolderRecords("people").class_names[:2]
        ['ann', 'bob']
    """

    uses_global_random = False
    format = "class folders"

    def __init__(self, root: str | Path) -> None:
        self.root: Path = Path(root)
        self.class_names: list[str] = []
        counts = array("q")
        self._paths = StringTable(self._walk(counts))
        if not self.class_names:
            raise DataError(
                f"{self.root}: found no images in class folders, expected "
                f"{self.root}/<class>/<image>, or a label.txt beside images/"
            )
        if len(counts) == 1:
            log.warning(
                "%s: there is one class only, %r; a list of the images is recognized by the name label.txt",
                self.root,
                self.class_names[0],
            )
        self.labels = np.repeat(np.arange(len(counts)), counts)
        self.num_classes = len(counts)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Record:
        return Record(read_image(self.path_of(index)), int(self.labels[index]))

    def path_of(self, index: int) -> str:
        return os.path.join(self.root, self._paths[index])

    def describe(self, index: int) -> str:
        return str(self.root / self._paths[index])

    def _walk(self, counts: array[int]) -> Iterator[str]:
        """The paths of all images, class by class; the number of images of each class is appended to `counts`."""
        others = 0
        empty: list[str] = []
        left: list[str] = []
        folders, loose = _entries(self.root, left)
        for folder in sorted(folders):
            files = _files_below(os.path.join(self.root, folder), (os.path.realpath(self.root),), left)
            images = sorted(file for file in files if is_image_name(file))
            others += len(files) - len(images)
            if images:
                self.class_names.append(folder)
                counts.append(len(images))
                yield from (os.path.relpath(image, self.root) for image in images)
            else:
                empty.append(folder)
        if others:
            log.info("%s: ignored %d files that are no images by their suffix", self.root, others)
        if left:
            log.warning(
                "%s: ignored %d files and folders that other programs left behind, %s the first",
                self.root,
                len(left),
                min(left),
            )
        if empty:
            log.warning("%s: %d folders hold no image and are no classes: %s", self.root, len(empty), empty[:6])
        loose = [name for name in loose if is_image_name(name)]
        if loose:
            log.warning(
                "%s: ignored %d images that lie in no class folder, %s the first", self.root, len(loose), min(loose)
            )


def _entries(folder: str | Path, left: list[str]) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files in a folder, links included; the paths of leftovers go to `left`."""
    try:
        is_folder = {entry.name: entry.is_dir() for entry in os.scandir(folder)}
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read: {error.strerror}") from None
    left += [os.path.join(folder, name) for name in is_folder if is_leftover(name)]
    names = [name for name in is_folder if not is_leftover(name)]
    return [name for name in names if is_folder[name]], [name for name in names if not is_folder[name]]


def _files_below(folder: str, above: tuple[str, ...], left: list[str]) -> list[str]:
    """All files in a folder and below it. Links are followed, except to a folder of `above` or one that holds it."""
    here = os.path.realpath(folder)
    if any(other == here or other.startswith(os.path.join(here, "")) for other in above):
        return []
    folders, files = _entries(folder, left)
    found = [os.path.join(folder, name) for name in files]
    for name in folders:
        found += _files_below(os.path.join(folder, name), (*above, here), left)
    return found


def is_leftover(name: str) -> bool:
    """Whether a file or folder is ignored for its name, which other programs give to files of their own."""
    return name in _LEFTOVERS or name.startswith("._")


def has_images(folder: str) -> bool:
    """Whether a folder itself, folders inside left out, holds an image."""
    try:
        return any(is_image_name(entry.name) and entry.is_file() for entry in os.scandir(folder))
    except OSError:
        return False
