"""Images as a caller gives them: one or several, each a path, encoded bytes or pixels of any kind."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import numpy.typing as npt

from plsc.errors import DataError
from plsc.utils.files import reading_error

_EXPECTED = (
    "a path, encoded bytes, an open file, an image of Pillow, or pixels [H, W, 3] uint8 RGB as an array or a tensor"
)
_PATHS, _BYTES = (str, os.PathLike), (bytes, bytearray, memoryview)


def each_image(images: Any | Iterable[Any]) -> Iterable[Any]:
    """One image or several as an iterable. An iterator is not read here, so that a generator need not fit in memory.

    One image is what `take_image` takes; of arrays and tensors pixels [H, W, 3] or [H, W], and the bytes [n] uint8 of
    a file. An array of four axes is several images.

    Raises:
        DataError: neither; or a set or a mapping, which does not say the order of its images.

    Example:
        >>> list(each_image("ann.jpg")), list(each_image(["ann.jpg", "bob.jpg"]))
        (['ann.jpg'], ['ann.jpg', 'bob.jpg'])
    """
    if isinstance(images, _PATHS) or (is_image(images) and not _is_array_of_several(images)):
        return [images]
    if isinstance(images, (Set, Mapping)):
        raise DataError(f"got a {type(images).__name__} of images, expected them in an order, as a list")
    try:
        iter(images)
    except TypeError:
        raise DataError(f"got {_describe(images)}, expected images, each {_EXPECTED}") from None
    several: Iterable[Any] = images
    return several


def is_image(image: Any) -> bool:
    """Whether an object is of a kind that `take_image` takes, a path left out. What it holds is not looked at."""
    return isinstance(image, _BYTES) or _is_of_pillow(image) or _is_file(image) or hasattr(image, "__array__")


def take_image(image: Any) -> bytes | npt.NDArray[Any]:
    """One image of any kind, to encoded bytes or an array.

    | given                                                  | returned                                              |
    |--------------------------------------------------------|-------------------------------------------------------|
    | a path                                                 | the bytes of the file                                 |
    | bytes, a bytearray, a memoryview, an array [n] uint8   | bytes                                                 |
    | a file that is open in binary mode                     | the bytes from where it stands to its end             |
    | an image of Pillow                                     | pixels; upright, as the file is where it is decoded   |
    | pixels [H, W, 3] uint8 RGB, an array or a tensor       | the same, an array                                    |
    | gray pixels [H, W] or [H, W, 1] uint8                  | pixels [H, W, 3] of three equal colors                |
    | pixels [H, W, 4] uint8 RGBA                            | pixels [H, W, 3] without the opacity                  |
    | any other array or tensor                              | the same, an array, for the next step to refuse       |

    Gray and transparent pixels become what the files of such images are decoded to.

    Raises:
        DataError: a file is missing or unreadable, or the object is no image.
        StorageError: the system cannot read it.
    """
    if isinstance(image, _PATHS):
        return read_image(image)
    if not is_image(image):
        hint = "; cv2.imread returns it for a file that it cannot read" if image is None else ""
        raise DataError(f"got {_describe(image)}, expected {_EXPECTED}{hint}")
    if isinstance(image, _BYTES) and not (isinstance(image, memoryview) and image.ndim > 1):
        return bytes(image)
    if _is_of_pillow(image):
        return _pixels_of_pillow(image)
    if _is_file(image):
        return _read_file(image)
    try:
        return _in_rgb(np.asarray(image))
    except Exception as error:  # a tensor of any framework; one of a GPU may refuse
        raise DataError(f"the {type(image).__name__} cannot be read as an array: {error!s:.200}") from None


def name_image(image: Any, index: int) -> str:
    """What messages call one of several images: its path, or its place in the sequence."""
    return str(image)[:500] if isinstance(image, _PATHS) else f"image {index}"


def named_error(error: DataError, image: Any, *, index: int) -> DataError:
    """An error about one of several images, with what messages call the image."""
    name = name_image(image, index)
    # What `read_image` says begins with the path.
    return error if str(error).startswith(name) else DataError(f"{name}: {error}")


_BASE64 = re.compile(r"(data:image/[\w.+-]+;base64,)?[A-Za-z0-9+/=\s]+")
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)  # Windows has O_BINARY
_PIECE = 1 << 16  # bytes; most images are one piece


def read_image(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file.

    Raises:
        DataError: the file is missing or unreadable.
        StorageError: the system cannot read it.
    """
    try:
        # A file object takes half as long again. On a network disk a short piece need not be the last.
        file, pieces = os.open(path, _READ), []
        try:
            while piece := os.read(file, _PIECE):
                pieces.append(piece)
        finally:
            os.close(file)
        return b"".join(pieces)
    except ValueError as error:  # a zero byte
        raise DataError(f"{str(path)[:500]}: the image cannot be read: {error}") from None
    except OSError as error:
        found = reading_error(f"{str(path)[:500]}: the image cannot be read", error)
        raise type(found)(f"{found}{_mistake_in(str(path))}") from None


def _mistake_in(path: str) -> str:
    """A hint at what is probably wrong with the path of an image that cannot be read, or nothing."""
    if not path:
        return "; the path is empty"
    if path.startswith(("http://", "https://")):
        return "; images are not loaded from the network: give the bytes of the image"
    if _BASE64.fullmatch(path[:500]) and len(path) >= 255:
        return "; it looks like base64: give base64.b64decode(...) of it"
    end = path.rstrip()[-1:]
    if end in ('"', "'"):
        return "; the quotes are read as a part of the path: leave them out"
    if end in (",", ";"):
        return f"; the path ends in {end!r}: a space or a tab separates it from the label"
    if "\\" in path:
        return "; the path has backslashes: write / between folders"
    if "~" in path.split("/"):
        return "; ~ is not replaced by a home folder: write the whole path"
    if any(sign in path for sign in "*?["):
        return "; a pattern is not expanded: give glob.glob(...) of it"
    if os.path.isdir(path):
        return "; give the files in it one by one, as FOLDER/*.jpg on a command line"
    return ""


def _is_file(image: Any) -> bool:
    return callable(getattr(image, "read", None))


def _is_of_pillow(image: Any) -> bool:
    return hasattr(image, "convert")


def _is_array_of_several(images: Any) -> bool:
    shape = getattr(images, "shape", None)
    if shape is None or not hasattr(images, "__array__"):
        return False
    is_file = len(shape) == 1 and str(images.dtype).endswith("uint8")
    return not (is_file or len(shape) in (2, 3))


def _read_file(file: Any) -> bytes:
    try:
        data = file.read()
    except OSError as error:
        raise reading_error("the open file cannot be read", error) from None
    except UnicodeError:
        raise DataError("the open file is open as text, expected bytes: open it in binary mode, 'rb'") from None
    except ValueError as error:  # it is closed
        raise DataError(f"the open file cannot be read: {error}") from None
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise DataError(f"the open file gives {type(data).__name__}, expected bytes: open it in binary mode, 'rb'")
    if not data:
        raise DataError("the open file gives 0 bytes: it is empty or was read before, which seek(0) undoes")
    return bytes(data)


def _pixels_of_pillow(image: Any) -> npt.NDArray[Any]:
    mode = str(getattr(image, "mode", ""))
    if mode[:1] in ("I", "F"):
        raise DataError(
            f"got an image of Pillow of mode {mode}, expected 8 bits a color: Pillow would cut its values off, so "
            f"scale them first"
        )
    try:
        return np.asarray(_upright(image).convert("RGB"))  # the image may be gray, transparent or of a palette
    except Exception as error:  # Pillow reads the file at this point, and its readers raise many kinds of exceptions
        if isinstance(error, OSError) and error.errno is not None:
            raise reading_error("the image of Pillow cannot be read", error) from None
        raise DataError(f"the image of Pillow cannot be read: {error}") from None


def _upright(image: Any) -> Any:
    """The image turned as its Exif data say, which OpenCV does where it decodes the file."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Exif data that are damaged, which OpenCV passes over too
        return image


def _in_rgb(pixels: npt.NDArray[Any]) -> bytes | npt.NDArray[Any]:
    if pixels.dtype != np.uint8:
        return pixels
    if pixels.ndim == 1:
        return pixels.tobytes()
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return pixels[..., :3] if pixels.ndim == 3 and pixels.shape[2] == 4 else pixels


def _describe(image: Any) -> str:
    return "None" if image is None else f"{type(image).__name__} {str(image)[:60]!r}"
