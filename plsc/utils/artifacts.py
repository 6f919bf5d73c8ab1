"""What a path is that was given in place of another: a checkpoint for a model, Paddle's parameters for a checkpoint."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from plsc.utils.hints import either, setter

# The JSON file that a folder holds -> its key "format".
_FORMATS = {
    "manifest.json": "plsc-checkpoint",
    "plsc_model.json": "plsc-inference-model",
    "gallery.json": "plsc-gallery",
}
_SUFFIXES = {
    ("pdparams", "pdopt"): "a file of parameters that Paddle wrote",
    ("pdmodel", "pdiparams"): "a file of an inference model that Paddle wrote",
    ("pt", "pth", "ckpt", "params"): "a file of parameters that is not PLSC's",
    ("onnx",): "an ONNX model",
    ("yaml", "yml"): "a file of settings",
}


class Artifact(NamedTuple):
    """A path that is of a known kind.

    Attributes:
        what: what it is, as 'an exported model'.
        use: what takes it, as a sentence without a period.
    """

    what: str
    use: str

    def __str__(self) -> str:
        return f"{self.what}; {self.use}"


def recognize(path: str | Path) -> Artifact | None:
    """What a file or folder is, or None where it is of no known kind or does not exist."""
    path = Path(path)
    try:
        return _recognize_folder(path) if path.is_dir() else _recognize_file(path) if path.is_file() else None
    except (OSError, ValueError):  # a zero byte in the path is a ValueError
        return None


def absence(folder: str | Path, what: str, *, file: str, remedy: str) -> str:
    """The message where a path is not the folder that it should be.

    Args:
        folder: the path.
        what: what it should be, as 'gallery'.
        file: the file that such a folder holds.
        remedy: where to get one, as 'make one with plsc gallery build'.
    """
    try:
        os.stat(Path(folder, file))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # no right to look, a name that is too long, a zero byte
        return f"{folder}: no {what} can be read there: {getattr(error, 'strerror', None) or error}"
    found = recognize(folder)
    if os.path.isdir(folder):
        reason = f"{file} is missing"
    else:
        reason = "it is a file" if os.path.exists(folder) else "the folder does not exist"
    return f"{folder}: no {what} there ({reason}); " + (f"it is {found}" if found else remedy)


def _recognize_folder(folder: Path, of: str = "") -> Artifact | None:
    """The kind of a folder; `of` is put before 'a checkpoint' and its like, as 'a file of '."""
    kind = next((kind for name, kind in _FORMATS.items() if _format_of(folder / name) == kind), None)
    if kind == "plsc-checkpoint":
        return Artifact(f"{of}a checkpoint", _use_of_checkpoint(folder))
    if kind == "plsc-inference-model":
        use = either("plsc.load_inference_model takes it", "plsc embed, plsc serve and plsc gallery take it")
        return Artifact(f"{of}an exported model", f"{use}; it has no class centers and cannot be trained further")
    if kind == "plsc-gallery":
        use = either("plsc.inference.gallery.Gallery.open takes it", "plsc gallery and plsc serve --gallery take it")
        return Artifact(f"{of}a gallery", use)
    if of:
        return None
    if any(_format_of(file) == "plsc-checkpoint" for file in folder.glob("*/manifest.json")):
        return Artifact("a folder of checkpoints", _use_of_checkpoint(folder))
    if any(folder.glob("*.pdparams")) or any(folder.glob("*@rank@*")):
        return Artifact("a folder of parameters that Paddle or PLSC 0.x wrote", _use_of_parameters())
    return None


def _recognize_file(file: Path) -> Artifact | None:
    within = _recognize_folder(file.parent, of="a file of ")
    if within is not None:
        return within
    suffix = file.suffix.lower().removeprefix(".")
    what = next((what for suffixes, what in _SUFFIXES.items() if suffix in suffixes), None)
    if what is None:
        return None
    if suffix in ("yaml", "yml"):
        return Artifact(what, either("Config.from_file takes it", "--config takes it"))
    return Artifact(what, _use_of_parameters())


def _use_of_checkpoint(folder: Path) -> str:
    return either(
        f"{setter('checkpoint_dir', folder)} takes it, and convert_for_prediction() makes a model of it",
        f"plsc export --checkpoint-dir {shlex.quote(str(folder))} makes a model of it",
    )


def _use_of_parameters() -> str:
    return (
        f"{setter('pretrained')} begins a run with such weights, and plsc checkpoint import makes a checkpoint of them"
    )


def _format_of(file: Path) -> str | None:
    """The value of the key "format" in the beginning of a JSON file; it is not parsed, since it may be large."""
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            found = re.search(r'"format":\s*("[^"]*")', opened.read(1 << 16))
    except OSError:
        return None
    return str(json.loads(found[1])) if found else None
