"""Verification sets: pairs of images, each pair of the same identity or not.

Public sets are published as `<name>.bin`, a pickle of (2P images, P flags). `guarded_pickle` reads it and runs nothing
of what the file asks for. A set whose folds are known has their description behind the pickle, one line of JSON:
readers of the pickle do not look behind its end.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plsc.data.damage import DamageLog
from plsc.data.guarded_pickle import PickledArray, guarded_loads
from plsc.data.image_input import is_image, read_image, take_image
from plsc.data.images import encode
from plsc.errors import DataError
from plsc.metrics.pairs import FOLDS, FoldNumbers, as_flags, as_folds, make_folds, why_no_accuracy
from plsc.metrics.verification import FARS
from plsc.utils.atomic import write_file
from plsc.utils.files import text_lines
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

Image = bytes | npt.NDArray[np.uint8]

_EXPECTED = "expected a pickle of (list of 2P images, list of P flags)"
# How the line behind the pickle begins.
_DESCRIPTION = b'\n{"format": "plsc-verification-set", "version": 1, '


class VerificationSet:
    """P pairs of images, each of the same identity or not.

    Args:
        name: of the set, for reports and messages.
        images: 2P images; images 2i and 2i + 1 are pair i. An image is what
            `plsc.data.image_input.take_image` takes, except a path and images that are not of uint8.
        is_same: [P], whether a pair is of one identity: booleans, or numbers that are exactly 0 or 1.
        folds: [P], the number of each pair's fold in cross-validation, 0 or more; by default evaluation divides the
            pairs itself (see `plsc.metrics.pairs.make_folds`).

    Attributes:
        images: the 2P images, as bytes or pixels.
        is_same: [P] bool array.
        damaged: the images, by index, that decoding found damaged but usable in part.
        path: the file that the set was read from; None for a set that was made otherwise.
        folds: [P] int64 array, the folds that were given or made.
        has_own_folds: whether they were given.

    Raises:
        DataError: no pairs, not two images or one fold per flag, or an image, a flag or a fold of another kind.

    Example:
        >>> files = ["ann/1.jpg", "ann/2.jpg", "ann/1.jpg", "bob/1.jpg"]
        >>> pairs = VerificationSet("mine", [open(file, "rb").read() for file in files], is_same=[True, False])
        >>> pairs.save("train_data/mine.bin")
        >>> len(VerificationSet.load("train_data/mine.bin"))
        2
    """

    path: Path | None = None

    def __init__(
        self,
        name: str,
        images: Sequence[Image],
        *,
        is_same: Sequence[bool] | npt.NDArray[Any],
        folds: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None,
    ) -> None:
        self.name = name
        self.is_same = as_flags(is_same, name)
        if len(images) != 2 * len(self.is_same) or not len(images):
            raise DataError(
                f"{name}: found {counted(len(images), 'image')} and {counted(len(self.is_same), 'flag')}, expected "
                f"two images per flag and at least one pair"
            )
        self.images: list[Image] = [_image(image, name, index) for index, image in enumerate(images)]
        self.damaged = DamageLog(self.describe)
        self.has_own_folds = folds is not None
        self.folds = self._folds(folds)

    def _folds(self, folds: Any) -> FoldNumbers:
        if folds is None:
            return make_folds(self.is_same, min(FOLDS, len(self)))
        try:
            return as_folds(list(folds), self.is_same)
        except (DataError, TypeError, ValueError) as error:
            raise DataError(f"{self.name}: {error}") from None

    def __len__(self) -> int:
        """The number of pairs, P."""
        return len(self.is_same)

    def describe(self, index: int) -> str:
        """Which image `images[index]` is, for messages."""
        return f"{self.label}, image {index}"

    @property
    def label(self) -> str:
        """The name of the set in messages, which is its file, else its name."""
        return f"verification set {self.name if self.path is None else self.path}"

    @classmethod
    def load(cls, path: str | Path, name: str | None = None) -> VerificationSet:
        """Read an LFW-style `.bin`, pickled by Python 2 or 3, with the images as bytes or as uint8 arrays.

        Args:
            path: the file.
            name: of the set; by default the name of the file without `.bin`.

        Raises:
            DataError: the file cannot be read, is cut off, holds other things, or asks for a class that no
                verification set needs. Nothing that the file asks for is run.
        """
        path = Path(path)
        try:
            data = path.read_bytes()
        except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"verification set {path} cannot be read: {reason}; {_EXPECTED}") from None
        if not data:
            raise DataError(f"verification set {path} is empty (0 bytes); {_EXPECTED}")
        try:
            content, rest = guarded_loads(data)
        except DataError as error:
            raise DataError(f"verification set {path}: {error}; {_EXPECTED}") from None
        if not (isinstance(content, (tuple, list)) and len(content) == 2):
            count = f" of {len(content)}" if hasattr(content, "__len__") else ""
            raise DataError(f"verification set {path}: found a {type(content).__name__}{count}; {_EXPECTED}")
        images, flags = (part.elements() if isinstance(part, PickledArray) else part for part in content)
        if not (isinstance(images, (tuple, list)) and isinstance(flags, (tuple, list))):
            raise DataError(
                f"verification set {path}: found ({type(images).__name__}, {type(flags).__name__}); {_EXPECTED}"
            )
        images, flags = ([_plain(item) for item in part] for part in (images, flags))
        try:
            loaded = cls(path.stem if name is None else name, images, is_same=flags, folds=_described_folds(rest, path))
        except DataError as error:
            raise DataError(f"verification set {path}: {error}") from None
        loaded.path = path
        return loaded

    @classmethod
    def from_pair_list(cls, list_path: str | Path, root: str | Path, *, name: str | None = None) -> VerificationSet:
        """Read pairs from lines `imageA imageB 1` (same identity) or `imageA imageB 0`.

        Args:
            list_path: the list, UTF-8, with or without a byte-order mark. Tabs or blanks separate the fields; a path
                with blanks needs tabs. Blank lines are ignored.
            root: the folder that image paths are relative to.
            name: of the set; by default the name of the list without its suffix.

        Raises:
            DataError: the list or an image cannot be read, or a line is something else; names file and line.
            StorageError: the system cannot read the list or an image.
        """
        list_path = Path(list_path)
        images: list[Image] = []
        flags: list[bool] = []
        for number, line in enumerate(text_lines(list_path, "the pair list"), start=1):
            line = line.rstrip("\n")
            if not line.strip():
                continue
            fields = _fields(line)
            if len(fields) != 3 or fields[2] not in ("0", "1"):
                raise DataError(
                    f"{list_path}, line {number}: got {line.strip()[:120]!r}, expected two image paths and "
                    f"1 or 0, as 'a/1.jpg a/2.jpg 1'{_pair_hint(line)}"
                )
            try:
                images += [read_image(Path(root) / field) for field in fields[:2]]
            except DataError as error:
                raise DataError(f"{list_path}, line {number}: {error}{_lfw_hint(line)}") from None
            flags.append(fields[2] == "1")
        return cls(list_path.stem if name is None else name, images, is_same=flags)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a `.bin`, a pickle of (encoded images, flags) that other libraries read too.

        Pixels are encoded as PNG, which loses nothing. Folds that the set was given follow the pickle, where other
        libraries do not look. The file is written atomically.

        Raises:
            DataError: the file exists and `overwrite` is False, or cannot be written.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise DataError(
                f"verification set {path} exists and is not overwritten; choose another path, or pass overwrite=True"
            )
        content = ([encode(image) for image in self.images], self.is_same.tolist())
        try:
            with write_file(path) as file:
                # Python before 3.8 cannot read protocol 5.
                pickle.dump(content, file, protocol=4)
                if self.has_own_folds:
                    file.write(_DESCRIPTION + b'"folds": ' + json.dumps(self.folds.tolist()).encode() + b"}\n")
        except OSError as error:
            raise DataError(f"verification set {path} cannot be written: {error.strerror}") from None

    def summary(self) -> str:
        """How many pairs there are, in which folds, and the lowest FAR of `FARS` that they tell, in one line."""
        same, count = int(self.is_same.sum()), len(np.unique(self.folds))
        is_contiguous = (np.diff(self.folds) >= 0).all()
        kind = "described" if self.has_own_folds else "contiguous" if is_contiguous else "stratified"
        told = [f"{far:g}" for far in FARS if far * (len(self) - same) >= 1]
        lowest = f"TAR at FAR {', '.join(told)}" if told else "too few different pairs for a TAR"
        return f"{counted(len(self), 'pair')}, {same} of them same, in {counted(count, f'{kind} fold')}; {lowest}"

    def shortcomings(self) -> list[str]:
        """What keeps the pairs from a sound accuracy, a sentence each; none in a set that has enough of both kinds."""
        reason = why_no_accuracy(self.is_same, self.folds)
        if reason is not None:
            return [f"no accuracy: {reason}"]
        fewest = min(int(self.is_same.sum()), int((~self.is_same).sum()))
        if fewest < FOLDS:
            return [
                f"too few for a sound accuracy: {counted(len(self), 'pair')}, {fewest} of one kind, expected {FOLDS} "
                f"of each kind or more, and better 1,000; each pair weighs {100 / len(self):.1f} %"
            ]
        return []


def find_bin(name: str, folder: Path, *, setting: str = "val_targets") -> tuple[Path, str]:
    """(the file of a verification set, the name of the set).

    Args:
        name: `lfw` for `lfw.bin` in `folder`; or a file whose name ends in .bin, in `folder` or by its own path.
        folder: of the data.
        setting: what messages call the list of names.

    Raises:
        DataError: no such file; says which sets the folder holds.
    """
    path = folder / f"{name}.bin"
    if path.exists():
        return path, name
    if name.lower().endswith(".bin"):
        path = folder / name
        for file in (path, Path(name)):
            if file.exists():
                return file, file.stem
    held = sorted(file.name for file in folder.glob("*") if file.suffix.lower() == ".bin") if folder.is_dir() else []
    blank = "; commas separate the names of several sets" if " " in name else ""
    raise DataError(
        f"verification set '{name}' of {setting}: {path} does not exist; {folder} holds "
        f"{', '.join(held[:10]) or 'no .bin file'}{', ...' if held[10:] else ''}{blank}"
    )


def _plain(item: Any) -> Any:
    return item.array if isinstance(item, PickledArray) else item


def _described_folds(rest: bytes, path: Path) -> list[int] | None:
    """The folds that the line behind the pickle describes, or None where there is no such line."""
    if not rest.startswith(_DESCRIPTION):
        if rest:
            log.warning("verification set %s: ignored %s after the pickle's end", path, counted(len(rest), "byte"))
        return None
    try:
        folds = json.loads(rest)["folds"]
    except (ValueError, KeyError, RecursionError):
        folds = None
    if not isinstance(folds, list) or not all(type(fold) is int for fold in folds):
        raise DataError(
            f"verification set {path}: the description of its folds is cut off or damaged "
            f"({counted(len(rest), 'byte')} behind "
            f"the pickle), expected one line of JSON; copy or make the file again"
        )
    return folds


def _image(image: Any, name: str, index: int) -> Image:
    if is_image(image):
        try:
            image = take_image(image)
        except DataError as error:
            raise DataError(f"{name}: image {index}: {error}") from None
    if isinstance(image, bytes):
        if not image:
            raise DataError(f"{name}: image {index} is empty (0 bytes), expected an encoded image")
        return image
    is_array = isinstance(image, np.ndarray)
    if is_array and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        pixels: npt.NDArray[np.uint8] = image
        return pixels
    found = f"array {list(image.shape)} of {image.dtype}" if is_array else type(image).__name__
    hint = ""
    if isinstance(image, (str, os.PathLike)):
        hint = (
            "; give the content of a file and not its path, and bytes of Python 2 as bytes (pickle.load(file, "
            "encoding='bytes'))"
        )
    raise DataError(
        f"{name}: image {index} is of type {found}, expected encoded bytes, a 1-D uint8 array of them, or "
        f"pixels [H, W, 3] uint8 RGB{hint}"
    )


def _fields(line: str) -> list[str]:
    """The fields of a line: between tabs where that gives three, else between tabs and blanks."""
    # str.split() and strip() without an argument also take U+0085, U+00A0 and others, which a path may hold.
    by_tabs = [field.strip(" ") for field in line.strip("\t ").split("\t")]
    return by_tabs if len(by_tabs) == 3 else re.findall(r"[^\t ]+", line)


def _pair_hint(line: str) -> str:
    """What is likely wrong with the fields of a line of a pair list, or nothing."""
    fields = line.split()
    if hint := _lfw_hint(line):
        return hint
    if any(mark in line for mark in ",;\"'"):
        return "; separate the fields by tabs or blanks, without commas and quotation marks"
    if len(fields) == 3 and fields[0] in ("0", "1"):
        return "; the flag comes after the paths"
    return "; where a path has blanks, separate the fields by tabs" if len(fields) > 3 else ""


def _lfw_hint(line: str) -> str:
    numbers = [field.isdecimal() for field in line.split()]
    if numbers in ([True, True], [False, True, True], [False, True, False, True]):
        return "; LFW's own pairs.txt gives names and numbers: write the paths of the files instead"
    return ""
