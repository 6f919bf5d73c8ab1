"""Verification sets: pairs of images, each pair of the same identity or not.

Public sets are published as `<name>.bin`, a pickle of (2P images, P flags). `guarded_pickle` reads it and runs nothing
of what the file asks for.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plsc.data.damage import DamageLog
from plsc.data.guarded_pickle import PickledArray, guarded_loads
from plsc.data.images import encode
from plsc.data.records import read_image
from plsc.errors import DataError
from plsc.utils.atomic import write_file

Image = bytes | npt.NDArray[np.uint8]

_EXPECTED = "expected a pickle of (list of 2P images, list of P flags)"


class VerificationSet:
    """P pairs of images, each of the same identity or not.

    Args:
        name: of the set, for reports and messages.
        images: 2P images; images 2i and 2i + 1 are pair i. An image is encoded bytes, the same as a 1-D uint8 array, or
            pixels [H, W, 3] uint8 RGB.
        is_same: [P] bool, whether a pair is of one identity.

    Attributes:
        images: the 2P images, as bytes or pixels.
        is_same: [P] bool array.
        damaged: the images, by index, that decoding found damaged but usable in part.

    Raises:
        DataError: no pairs, not two images per flag, or an image or a flag of another kind.

    Example:
        >>> files = ["ann/1.jpg", "ann/2.jpg", "ann/1.jpg", "bob/1.jpg"]
        >>> pairs = VerificationSet("mine", [open(file, "rb").read() for file in files], is_same=[True, False])
        >>> pairs.save("train_data/mine.bin")
        >>> len(VerificationSet.load("train_data/mine.bin"))
        2
    """

    def __init__(self, name: str, images: Sequence[Image], *, is_same: Sequence[bool] | npt.NDArray[np.bool_]) -> None:
        self.name = name
        self.is_same = _flags(is_same, name)
        if len(images) != 2 * len(self.is_same) or not len(images):
            raise DataError(
                f"{name}: found {len(images)} images and {len(self.is_same)} flags, expected two images "
                f"per flag and at least one pair"
            )
        self.images: list[Image] = [_image(image, name, index) for index, image in enumerate(images)]
        self.damaged = DamageLog(self.describe)

    def __len__(self) -> int:
        """The number of pairs, P."""
        return len(self.is_same)

    def describe(self, index: int) -> str:
        """Which image `images[index]` is, for messages."""
        return f"verification set {self.name}, image {index}"

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
        except OSError as error:
            raise DataError(f"verification set {path} cannot be read: {error.strerror}; {_EXPECTED}") from None
        if not data:
            raise DataError(f"verification set {path} is empty (0 bytes); {_EXPECTED}")
        try:
            content = guarded_loads(data, f"verification set {path}")
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
        images = [image.array if isinstance(image, PickledArray) else image for image in images]
        try:
            return cls(path.stem if name is None else name, images, is_same=flags)
        except DataError as error:
            raise DataError(f"verification set {path}: {error}") from None

    @classmethod
    def from_pair_list(cls, list_path: str | Path, root: str | Path, *, name: str | None = None) -> VerificationSet:
        """Read pairs from lines `imageA imageB 1` (same identity) or `imageA imageB 0`.

        Args:
            list_path: the list, UTF-8. Tabs or other white space separate the fields. Blank lines are ignored.
            root: the folder that image paths are relative to.
            name: of the set; by default the name of the list without its suffix.

        Raises:
            DataError: the list or an image cannot be read, or a line is something else; names file and line.
        """
        list_path = Path(list_path)
        images: list[Image] = []
        flags: list[bool] = []
        for number, line in enumerate(_lines(list_path), start=1):
            if not line.strip():
                continue
            fields = [field.strip() for field in (line.split("\t") if "\t" in line else line.split())]
            if len(fields) != 3 or fields[2] not in ("0", "1"):
                raise DataError(
                    f"{list_path}, line {number}: got {line.strip()[:120]!r}, expected two image paths and "
                    f"1 or 0, as 'a/1.jpg a/2.jpg 1'"
                )
            try:
                images += [read_image(Path(root) / field) for field in fields[:2]]
            except DataError as error:
                raise DataError(f"{list_path}, line {number}: {error}") from None
            flags.append(fields[2] == "1")
        return cls(list_path.stem if name is None else name, images, is_same=flags)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a `.bin`, a pickle of (encoded images, flags) that other libraries read too.

        Pixels are encoded as PNG, which loses nothing. The file is written atomically.

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
        except OSError as error:
            raise DataError(f"verification set {path} cannot be written: {error.strerror}") from None


def _flags(is_same: Sequence[bool] | npt.NDArray[np.bool_], name: str) -> npt.NDArray[np.bool_]:
    for index, flag in enumerate(is_same):
        if not isinstance(flag, (bool, int, np.bool_, np.integer)):
            raise DataError(f"{name}: flag {index} is of type {type(flag).__name__}, expected True or False")
        if flag not in (0, 1):
            raise DataError(f"{name}: flag {index} is a number other than 0 and 1, expected True or False")
    return np.array([bool(flag) for flag in is_same], np.bool_)


def _image(image: Any, name: str, index: int) -> Image:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        if image.ndim == 3 and image.shape[2] == 3 and image.size:
            return image
        if image.ndim == 1:
            image = image.tobytes()
    if isinstance(image, (bytes, bytearray)):
        if not image:
            raise DataError(f"{name}: image {index} is empty (0 bytes), expected an encoded image")
        return bytes(image)
    found = f"array {list(image.shape)} of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
    raise DataError(
        f"{name}: image {index} is of type {found}, expected encoded bytes, a 1-D uint8 array of them, or "
        f"pixels [H, W, 3] uint8 RGB"
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: the pair list cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the pair list is not UTF-8 text (byte {error.start})") from None
