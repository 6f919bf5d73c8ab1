"""The folder of an export: what of an earlier one gives way to it, and what is the user's and stays."""

from __future__ import annotations

import filecmp
import logging
from pathlib import Path

from plsc.errors import ExportError
from plsc.serving.description import ABOUT_FILE, MODEL_PREFIX
from plsc.serving.paddle_serving import CLIENT_FOLDER, SERVER_FOLDER, TEMPLATES

log = logging.getLogger("plsc")

SERVING = "serving"
_MODELS = (ABOUT_FILE, f"{MODEL_PREFIX}.json", f"{MODEL_PREFIX}.pdiparams", "legacy", "onnx", SERVING)
_SERVING_MODELS = (ABOUT_FILE, SERVER_FOLDER, CLIENT_FOLDER)
_SETTINGS = "config.yml"


def refuse_foreign(directory: Path) -> None:
    """Raise `ExportError` unless `directory` is missing, empty, or an export of ours."""
    if directory.exists() and not directory.is_dir():
        raise ExportError(f"{directory} is a file, expected a folder to export to")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / ABOUT_FILE).is_file():
        raise ExportError(f"{directory} is not empty and holds no exported model ({ABOUT_FILE}); nothing was written. "
                          f"Choose another folder")


def carry_over(old: Path, new: Path) -> None:
    """Move what the user has put into an export, or edited there, to the one that takes its place.

    The settings of the pipeline service stay as they are; another of its files that was edited stays as NAME.old.
    """
    _move([path for path in old.iterdir() if path.name not in _MODELS], new)
    if not (old / SERVING).is_dir():
        return
    for path in (old / SERVING).iterdir():
        template = TEMPLATES / path.name
        if path.name in _SERVING_MODELS or (template.is_file() and filecmp.cmp(path, template, shallow=False)):
            continue
        if template.is_file() and path.name != _SETTINGS:
            path = path.rename(path.with_name(f"{path.name}.old"))
            log.warning("%s/%s: it had been edited, and stays so as %s", SERVING, template.name, path.name)
        _move([path], new / SERVING)


def _move(paths: list, folder: Path) -> None:
    for path in paths:
        folder.mkdir(exist_ok=True)
        path.replace(folder / path.name)
