"""A local folder becomes a remote one: complete, or not counted as one."""

from __future__ import annotations

import os
from pathlib import Path

from plsc.errors import StorageError
from plsc.remote.folder import RemoteFolder
from plsc.utils.threads import thread_map

_THREADS = 4  # files at a time; s3fs sends several parts of each at once


def upload_folder(source: Path, remote: RemoteFolder, *, last: str) -> None:
    """Copy all files of a local folder, the file `last` after the others were found there with their sizes.

    An earlier file `last` is deleted first, and earlier files that `source` lacks are deleted too. A reader that finds
    `last` thus finds all that it lists; a process that is killed leaves a folder without it.

    Args:
        source: holds `last`.
        remote: the folder to write.
        last: the manifest.

    Raises:
        StorageError: a file cannot be read or written.
    """
    sizes = {name: (source / name).stat().st_size for name in _files_in(source)}
    earlier = remote.files()
    remote.delete([last, *(name for name in earlier if name not in sizes)] if earlier else ())
    others = [name for name in sizes if name != last]
    for _ in thread_map(lambda name: remote.upload(source / name, name), others, threads=_THREADS):
        pass
    listed = remote.files()
    for name in others:
        found = listed[name].size if name in listed else None
        if found != sizes[name]:
            raise StorageError(
                f"{remote.url}/{name}: found {'no such file' if found is None else f'{found} bytes'} after the upload, "
                f"expected {sizes[name]} bytes; another process writes there, or the service loses data"
            )
    remote.upload(source / last, last)


def _files_in(folder: Path) -> list[str]:
    """The files in a folder and in the folders in it, relative to it."""
    return sorted(str(Path(root, name).relative_to(folder)) for root, _, names in os.walk(folder) for name in names)
