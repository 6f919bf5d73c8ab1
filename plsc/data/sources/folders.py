"""A folder of class folders as records."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from plsc.data.image_input import read_image
from plsc.data.images import is_image_name
from plsc.data.records import Record, Records
from plsc.data.sources.leftovers import is_leftover, warn_of_leftovers
from plsc.data.sources.string_table import StringTable
from plsc.errors import DataError
from plsc.utils.files import reading_error
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

# Names of the parts of a data set, in lower case. A root that holds nothing else is a level too high.
_PARTS = frozenset(
    ["train", "training", "trainset", "train_set", "trainval", "val", "valid", "validation", "valset", "val_set"]
    + ["test", "testing", "testset", "test_set", "dev", "eval", "evaluation", "held_out", "holdout"]
    + ["images", "image", "imgs", "img"]
)


class FolderRecords(Records):
    """The images of a folder of class folders. The names of the class folders in sorted order are classes 0 ... C - 1.

    Args:
        root: the folder. Images may also lie in folders inside a class folder. Files without the suffix of an image
            are ignored, and counted in the log. So are folders and images that are hidden or left behind by other
            programs, see `plsc.data.sources.leftovers`; other such files, as .DS_Store, are not counted.

    Raises:
        DataError: no class folder holds an image, all class folders have the names of parts of a data set (train, val,
            ...), or a folder cannot be read.
        StorageError: the system cannot read a folder.

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
            parts = sorted(name for name in _entries(self.root, [])[0] if is_part_name(name))
            raise DataError(
                f"{self.root}: found no images in class folders, expected "
                f"{self.root}/<class>/<image>, or a label.txt beside images/"
                + (f"; it holds {', '.join(parts)}: name one of them, as {self.root / parts[0]}" if parts else "")
            )
        check_parts(self.root, self.class_names, flat=self._flat)
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
        self._flat: list[str] = []  # class folders that hold images themselves, and not only folders of images
        left: list[str] = []
        folders, loose = _entries(self.root, left)
        for folder in sorted(folders):
            files = _files_below(os.path.join(self.root, folder), (os.path.realpath(self.root),), left)
            images = sorted(file for file in files if is_image_name(file))
            others += len(files) - len(images)
            if images:
                self.class_names.append(folder)
                if any(os.path.dirname(image) == os.path.join(self.root, folder) for image in images):
                    self._flat.append(folder)
                counts.append(len(images))
                yield from (os.path.relpath(image, self.root) for image in images)
            else:
                empty.append(folder)
        if others:
            log.info("%s: ignored %s without the suffix of an image", self.root, counted(others, "file"))
        warn_of_leftovers(self.root, [os.path.relpath(path, self.root) for path in left])
        if empty:
            log.warning("%s: no class of %s without an image: %s", self.root, counted(len(empty), "folder"), empty[:6])
        loose = [name for name in loose if is_image_name(name)]
        if loose:
            log.warning(
                "%s: ignored %s in no class folder, %s the first", self.root, counted(len(loose), "image"), min(loose)
            )


def check_parts(root: str | Path, names: Sequence[str], *, flat: Sequence[str] = ()) -> None:
    """Refuse a root whose class folders are the parts of a data set.

    Args:
        root: the folder.
        names: of its class folders, in order.
        flat: those of them that hold images themselves, and not only folders of images.

    Raises:
        DataError: the names are those of parts, unless there is one and it holds images itself.
    """
    if not all(map(is_part_name, names)) or (len(names) == 1 and flat):
        return
    which, remedy, exception = (
        ("which is a part of a data set and no class", "name it", "it is a class")
        if len(names) == 1
        else ("which are parts of a data set and no classes", "name one of them", "they are classes")
    )
    best = next((name for name in names if name.lower().startswith("train")), names[0])
    fault = f"{root}: holds {', '.join(names)}, {which}"
    if flat:
        raise DataError(
            f"{fault}, and {flat[0]} holds images without class folders; expected a folder per class, or a label.txt "
            f"that gives the class of each image"
        )
    raise DataError(f"{fault}: {remedy}, as {Path(root) / best}. Where {exception}, list the images in a label.txt")


def is_part_name(name: str) -> bool:
    """Whether a folder has the name of a part of a data set, as train or val."""
    return name.lower() in _PARTS


def image_files(folder: str | Path, left: list[str]) -> list[str]:
    """The paths of all images in a folder and below it, in sorted order. The paths of leftovers go to `left`.

    Links are followed, except to a folder that holds them.

    Raises:
        DataError: a folder cannot be read.
        StorageError: the system cannot read a folder.
    """
    return sorted(file for file in _files_below(str(folder), (), left) if is_image_name(file))


def _entries(folder: str | Path, left: list[str]) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files in a folder, links included; the paths of leftovers go to `left`."""
    try:
        is_folder = {entry.name: entry.is_dir() for entry in os.scandir(folder)}
    except OSError as error:
        raise reading_error(f"{folder}: the folder cannot be read", error) from None
    names = [name for name in is_folder if not is_leftover(name)]
    # Other files, as .DS_Store in each folder, would be no images under any name.
    left += [
        os.path.join(folder, name)
        for name in is_folder
        if is_leftover(name) and (is_folder[name] or is_image_name(name))
    ]
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


def has_images(folder: str) -> bool:
    """Whether a folder itself, folders inside left out, holds an image."""
    try:
        return any(
            is_image_name(entry.name) and not is_leftover(entry.name) and entry.is_file()
            for entry in os.scandir(folder)
        )
    except OSError:
        return False
