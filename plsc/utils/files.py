"""Files as the formats use them: mapped for reading, opened to append, flushed to the disk."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import IO, BinaryIO

from plsc.errors import DataError


def map_file(path: Path) -> mmap.mmap:
    """Map a file into memory for reading.

    Raises:
        DataError: the file is missing, unreadable or empty.
    """
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise DataError(f"{path}: the file is empty (0 bytes)") from None


def open_output(path: Path, length: int | None = None) -> BinaryIO:
    """Open a file to append to.

    Args:
        path: the file.
        length: cut an existing file to this many bytes and append there. By default make a new file.

    Raises:
        DataError: the new file exists, the existing file is shorter than `length`, or the system refuses.
    """
    try:
        file = open(path, "xb" if length is None else "r+b")  # noqa: SIM115
    except FileExistsError:
        raise DataError(f"{path} exists already; nothing is overwritten: remove it or choose another name") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None
    if length is not None:
        size = file.seek(0, os.SEEK_END)
        if size < length:
            file.close()
            raise DataError(f"{path}: has {size} bytes, expected at least {length} to continue from; start again")
        file.truncate(length)
        file.seek(length)
    return file


def sync(file: IO[bytes] | IO[str]) -> None:
    """Flush an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Flush a closed file, or the entries of a folder, to the disk.

    Raises:
        OSError: there is no such path, or the disk refuses.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot flush a folder and say so with EINVAL.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(handle)
