"""Files and folders that belong to no data set: hidden ones, and those of desktops, notebooks and network disks.

Such folders often hold copies of images, removed ones among them, and their names are sorted before others: taken for
a class, one changes the number of every class behind it.
"""

from __future__ import annotations

import collections
import logging
from collections.abc import Sequence
from pathlib import Path

from plsc.utils.files import reading_error
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

# In lower case. Names that begin with a dot need not be listed.
_KNOWN = frozenset(
    {
        "__macosx",  # archives of macOS
        "$recycle.bin",
        "system volume information",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "lost+found",
        "lost.dir",
        "network trash folder",
        "temporary items",
        "#recycle",  # network disks
        "#snapshot",
        "~snapshot",
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "@sharebin",
        "@tmp",
        "__pycache__",
    }
)
_MOST_NAMED = 6


def is_leftover(name: str) -> bool:
    """Whether a file or folder is ignored for its name: it is hidden (begins with a dot), or a name that other programs
    give to files and folders of their own. `.` and `..` are not ignored.
    """
    return name.startswith(".") and name not in (".", "..") or name.lower() in _KNOWN


def matching_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that match a pattern, in the order of their names, leftovers left out.

    Raises:
        StorageError: the system cannot list the folder.
    """
    try:
        return sorted(path for path in folder.glob(pattern) if not is_leftover(path.name))
    except OSError as error:
        raise reading_error(f"{folder}: the folder cannot be read", error) from None


def warn_of_leftovers(
    where: str | Path,
    paths: Sequence[str],
    *,
    remedy: str = "If one is a class, list the images with their classes in a label.txt or a table",
) -> None:
    """Say how many files and folders were ignored for their names, and name them.

    Args:
        where: the data set.
        paths: of what was ignored, relative to the data set.
        remedy: a sentence that says what to do where one of them belongs to the data.
    """
    if paths:
        names = collections.Counter(next(filter(is_leftover, path.split("/"))) for path in sorted(paths))
        log.warning(
            "%s: ignored %s, hidden or left behind by other programs: %s%s; the first is %s. %s",
            where,
            counted(len(paths), "path"),
            ", ".join(f"{name} ({count})" for name, count in names.most_common(_MOST_NAMED)),
            f" and {counted(len(names) - _MOST_NAMED, 'other name')}" if len(names) > _MOST_NAMED else "",
            min(paths),
            remedy,
        )
