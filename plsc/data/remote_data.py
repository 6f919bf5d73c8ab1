"""Training data and verification sets in remote folders, copied to the local cache before they are opened."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path

from plsc.errors import DataError
from plsc.remote.cache import Cache
from plsc.remote.folder import RemoteFolder
from plsc.utils.locations import join, split

# Kinds of files that need no other file than these beside them.
_BESIDE = {"classes.txt", "property"}
_ALONE = (".rec", ".idx", ".tar", ".npz")


def fetch_data(url: str, cache: Cache, *, sets: Collection[str] = ()) -> Path:
    """Copy training data to the cache: a folder as a whole, or a file or pattern with what belongs to it.

    A `.bin` of the folder is copied only where `sets` names it.

    Args:
        url: of a folder, a file in it, or a pattern as 's3://bucket/faces/shards-{000..119}.tar'.
        cache: where to.
        sets: names of verification sets, 'lfw' or 'lfw.bin', that are copied too.

    Returns:
        The local path of what the URL names.

    Raises:
        DataError: there is no such folder or file.
        StorageError: it cannot be read, or is larger than the cache may be.
    """
    bins = {_bin_name(name) for name in sets}
    parent, name = split(url)
    folder = RemoteFolder(url)
    if not name.endswith(_ALONE) and (listed := folder.files()):
        if all(_is_bin(file) for file in listed):
            raise DataError(f"{folder.url} holds no training data, only verification sets")
        return cache.fetch(folder, lambda file: not _is_bin(file) or file in bins)
    belongs = _belongs_to(name)
    folder = RemoteFolder(parent)
    if not any(_matches(name, file) for file in folder.files()):
        raise DataError(f"{join(folder.url, name)}: there is no such folder or file; correct the URL of the data")
    return cache.fetch(folder, lambda file: file in bins or (belongs(file) and not _is_bin(file))) / name


def fetch_sets(url: str, cache: Cache, *, sets: Collection[str]) -> Path:
    """Copy the verification sets of a remote data folder to the cache, without its training data.

    Args:
        url: as for `fetch_data`.
        cache: where to.
        sets: names, 'lfw' or 'lfw.bin'.

    Returns:
        A local path that stands for `url`: the sets lie in it, or beside it where the URL names a file.

    Raises:
        StorageError: they cannot be read.
    """
    bins = {_bin_name(name) for name in sets}
    parent, name = split(url)
    if not name.endswith(_ALONE) and (folder := RemoteFolder(url)).files():
        return cache.fetch(folder, bins.__contains__)
    return cache.fetch(RemoteFolder(parent), bins.__contains__) / name


def fetch_set(url: str, cache: Cache) -> Path:
    """Copy a verification set, 's3://bucket/lfw.bin' or 's3://bucket/lfw', to the cache.

    Raises:
        DataError: there is none.
        StorageError: it cannot be read.
    """
    parent, name = split(url)
    folder, file = RemoteFolder(parent), _bin_name(name)
    held = sorted(found for found in folder.files() if _is_bin(found))
    if file not in held:
        raise DataError(
            f"verification set {join(folder.url, file)} does not exist; {folder.url} holds "
            f"{', '.join(held[:10]) or 'no .bin file'}"
        )
    return cache.fetch(folder, lambda found: found == file) / file


def _belongs_to(name: str) -> Callable[[str], bool]:
    """Which files beside a file are needed to read it."""
    if name.endswith((".rec", ".idx")):
        stem = name.rpartition(".")[0]
        return lambda file: file in {f"{stem}.rec", f"{stem}.idx"} or file in _BESIDE
    if name.endswith(_ALONE):
        return lambda file: _matches(name, file.removesuffix(".index.npz")) or file in _BESIDE
    return lambda file: True  # a list or a table: its images may lie anywhere in the folder


def _matches(pattern: str, name: str) -> bool:
    """Whether a name is `pattern`, in which {000..119} stands for numbers of so many digits."""
    return re.fullmatch(re.sub(r"\\\{\d+\\\.\\\.\d+\\\}", r"\\d+", re.escape(pattern)), name) is not None


def _bin_name(name: str) -> str:
    return name if _is_bin(name) else f"{name}.bin"


def _is_bin(name: str) -> bool:
    return name.lower().endswith(".bin")
