"""A gallery on disk: a folder that is read and replaced whole.

    gallery.json            format, version, kind of index, embedding size, weights, and the names of the two files
    names-<token>.json      a list of the name of each position; null where the entry is removed
    index-<token>.faiss     the embeddings by position

Each save writes two new files and then replaces gallery.json, which is one change of name. A reader that holds one
gallery.json has the files that belong to it; a process that is killed leaves the earlier gallery or the new one. What
the files in gallery.json do not name is deleted by the next save. Other files in the folder stay.

Version 1 had the names in gallery.json, by number, and the embeddings in index.faiss by the same numbers. It is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from plsc.errors import ConfigError, ServingError
from plsc.inference.gallery_index import GalleryIndex, GraphIndex, read_index
from plsc.utils.artifacts import absence
from plsc.utils.atomic import restore_folder, write_file
from plsc.utils.files import sync, sync_path

ABOUT_FILE = "gallery.json"
FORMAT, VERSION = "plsc-gallery", 2
_OWN = re.compile(r"index\.faiss|(names-[0-9a-f]{16}\.json)|(index-[0-9a-f]{16}\.faiss)|\.gallery\.json\.\d+\.partial")
# Of reading. Each fails only if another process has saved the gallery since the last one.
_TRIES = 100


@dataclass
class StoredGallery:
    """What a folder holds.

    Attributes:
        index: the embeddings by position.
        names: the name of each position; None where the entry is removed.
        weights: digest of the network that the embeddings come from, or ''.
        revision: digest of gallery.json; another one after each save.
    """

    index: GalleryIndex
    names: Sequence[str | None]
    weights: str
    revision: str = ""


def holds_gallery(folder: Path) -> bool:
    """Whether a folder holds a gallery. What a killed save of an earlier version had set aside is put back before."""
    if not os.path.exists(folder):
        restore_folder(folder)
    return os.path.isfile(folder / ABOUT_FILE)


def read_revision(folder: Path) -> str:
    """The revision of the gallery in a folder, '' if there is none.

    Raises:
        ServingError: it cannot be read.
    """
    try:
        return _digest((folder / ABOUT_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise ServingError(f"{folder / ABOUT_FILE}: cannot be read: {error.strerror or error}") from None


def read_gallery(folder: Path) -> StoredGallery:
    """Read a gallery, also while another process saves it.

    Raises:
        ServingError: the folder holds no gallery, it cannot be read, it is damaged, or it is of a newer version.
    """
    if not holds_gallery(folder):
        remedy = "make one with plsc gallery build"
        raise ServingError(absence(folder, "gallery", file=ABOUT_FILE, remedy=remedy))
    fault: Exception | None = None
    for _ in range(_TRIES):
        try:
            text = (folder / ABOUT_FILE).read_bytes()
            try:
                return _read(folder, text)
            except (FileNotFoundError, ValueError) as error:
                fault = error
            if (folder / ABOUT_FILE).read_bytes() == text:  # else another process has saved it meanwhile
                break
        except OSError as error:
            raise ServingError(f"{folder}: the gallery cannot be read: {error.strerror or error}") from None
    if isinstance(fault, FileNotFoundError):
        fault = ValueError(f"{Path(fault.filename).name} is missing")
    raise ServingError(f"{folder}: the gallery is damaged: {fault}; build it again")


def write_gallery(folder: Path, stored: StoredGallery) -> str:
    """Write a gallery to a folder that exists, in place of the one that it may hold. Returns the new revision.

    The caller holds the folder's lock.

    Raises:
        OSError: what the file system refuses; an earlier gallery is then unchanged.
    """
    token = secrets.token_hex(8)
    index_path, names_path = folder / f"index-{token}.faiss", folder / f"names-{token}.json"
    about = {
        "format": FORMAT,
        "version": VERSION,
        "kind": stored.index.kind,
        "dimension": stored.index.dimension,
        "weights": stored.weights,
        "entries": len(stored.index),
        "index": index_path.name,
        "names": names_path.name,
    }
    text = json.dumps(about, indent=1).encode()
    try:
        with open(index_path, "xb") as file:
            stored.index.write(file)
            sync(file)
        with open(names_path, "xb") as file:
            file.write(json.dumps(stored.names, ensure_ascii=False).encode())
            sync(file)
        sync_path(folder)
        with write_file(folder / ABOUT_FILE) as about_file:
            about_file.write(text)
    finally:
        _delete_unnamed(folder)
    return _digest(text)


def _delete_unnamed(folder: Path) -> None:
    """Delete the files that galleries have in this folder and that gallery.json does not name."""
    with contextlib.suppress(OSError, ValueError):
        try:
            named = set(json.loads((folder / ABOUT_FILE).read_bytes()).values())
        except FileNotFoundError:
            named = set()
        for path in folder.iterdir():
            if _OWN.fullmatch(path.name) and path.name not in named:
                path.unlink()


def _read(folder: Path, text: bytes) -> StoredGallery:
    """Read the files that belong to a gallery.json.

    Raises:
        FileNotFoundError: one is missing.
        OSError: one cannot be read.
        ValueError: one is damaged, or they do not belong together.
        ServingError: the gallery is of a newer version.
    """
    about = _parse(text, ABOUT_FILE)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{ABOUT_FILE} holds {str(about)[:80]!r}, expected format {FORMAT!r}")
    if about.get("version") not in (1, VERSION):
        raise ServingError(
            f"{folder}: found a gallery of version {about.get('version')!r}, expected {VERSION} or lower; "
            f"install a newer plsc"
        )
    try:
        return _read_first_version(folder, about, text) if about["version"] == 1 else _read_files(folder, about, text)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{ABOUT_FILE} is incomplete or of another form ({error!r})") from None


def _read_files(folder: Path, about: Mapping[str, Any], text: bytes) -> StoredGallery:
    for name in (about["names"], about["index"]):
        if not isinstance(name, str) or not _OWN.fullmatch(name):
            raise ValueError(f"{ABOUT_FILE} names the file {str(name)[:80]!r}, expected one of a gallery")
    # Both are open before one is read: a file that another process deletes meanwhile stays readable.
    with open(folder / about["names"], "rb") as names_file, open(folder / about["index"], "rb") as index_file:
        names = _parse(names_file.read(), about["names"])
        index = _read_index(index_file, about["index"], about=about)
    if not isinstance(names, list) or not all(name is None or isinstance(name, str) for name in names):
        raise ValueError(f"{about['names']} holds no list of names")
    if len(names) != len(index) or index.numbers is not None or (None in names and not isinstance(index, GraphIndex)):
        raise ValueError(f"{about['index']} and {about['names']} do not belong together")
    if isinstance(index, GraphIndex):
        index.removed = np.asarray([position for position, name in enumerate(names) if name is None], np.int64)
    return StoredGallery(index, names, about["weights"], _digest(text))


def _read_first_version(folder: Path, about: Mapping[str, Any], text: bytes) -> StoredGallery:
    names = {int(number): str(name) for number, name in about["names"].items()}
    with open(folder / "index.faiss", "rb") as file:
        index = _read_index(file, "index.faiss", about=about)
    if index.numbers is None or sorted(index.numbers) != sorted(names):
        raise ValueError(f"index.faiss and {ABOUT_FILE} do not belong together")
    return StoredGallery(index, [names[number] for number in index.numbers], about.get("weights", ""), _digest(text))


def _read_index(file: IO[bytes], name: str, *, about: Mapping[str, Any]) -> GalleryIndex:
    try:
        index = read_index(file, about.get("kind", "flat"))
    except (ValueError, ConfigError) as error:
        raise ValueError(f"{name}: {error}") from None
    if index.dimension != about["dimension"]:
        raise ValueError(f"{name} holds embeddings of {index.dimension}, {ABOUT_FILE} says {about['dimension']}")
    return index


def _parse(text: bytes, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} is no JSON") from None


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
