"""The manifest of an export, plsc_model.json: the model card, and the files of the export with their digests.

The digests tell which files of an earlier export are as it wrote them. Only those are replaced by the next export.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paddle
from paddle import nn

from plsc.config import Config
from plsc.errors import ExportError
from plsc.inference.model_card import ABOUT_FILE, FORMAT
from plsc.models.base_model import network_name, weights_digest
from plsc.utils.files import file_digest


def describe_export(
    config: Config, backbone: nn.Layer, *, origin: str, bake: Sequence[str], bgr: bool, plain_kernels: bool
) -> dict[str, Any]:
    """The manifest without its files: what `read_model_card` reads, and where the weights come from.

    Args:
        config: image_shape, emb_dim, pixel_mean, pixel_std and flip are used.
        backbone: the network whose weights are exported.
        origin: the checkpoint.
        bake: any of 'preprocess' and 'normalize'.
        bgr: baked pre-processing takes pixels in the order blue, green, red.
        plain_kernels: the predictor must do without fused kernels.
    """
    return {
        "format": FORMAT,
        "version": 1,
        "image_shape": list(config.image_shape),
        "emb_dim": config.emb_dim,
        "channels": "RGB",
        "pixel_mean": list(config.pixel_mean),
        "pixel_std": list(config.pixel_std),
        "flip": config.flip,
        "baked": {
            "preprocess": "preprocess" in bake,
            "normalise": "normalize" in bake,  # the key of format version 1
            "channels": "BGR" if bgr else "RGB",
        },
        "paddle": paddle.__version__,
        "network": network_name(backbone),
        "checkpoint": origin,
        "weights": weights_digest(backbone),
        "plain_kernels": plain_kernels,
    }


def write_manifest(folder: Path, about: dict[str, Any], *, with_files: bool) -> None:
    """Write the manifest of an export.

    Args:
        folder: folder of the export.
        about: what `describe_export` returned.
        with_files: list the files that the folder holds now, with their SHA-256. To be called last.
    """
    if with_files:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / ABOUT_FILE)
        about = {**about, "files": {path.relative_to(folder).as_posix(): file_digest(path) for path in files}}
    (folder / ABOUT_FILE).write_text(json.dumps(about, indent=1), encoding="utf-8")


def check_replaceable(directory: Path) -> None:
    """Check that an export may be written to `directory`: it is missing, empty, or holds an earlier export.

    Raises:
        ExportError: it is a file, or a folder that holds something else.
    """
    if directory.exists() and not directory.is_dir():
        raise ExportError(f"{directory} is a file, expected a folder to export to")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / ABOUT_FILE).is_file():
        raise ExportError(
            f"{directory} is not empty and holds no exported model ({ABOUT_FILE}); nothing was written. "
            f"Choose another folder"
        )


def unchanged_files(directory: Path) -> set[str]:
    """The files of an earlier export that are as it wrote them, relative to `directory`; the manifest is one."""
    try:
        written = json.loads((directory / ABOUT_FILE).read_text(encoding="utf-8"))["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {ABOUT_FILE}
    return {ABOUT_FILE} | {
        name for name, digest in written if _is_plain(directory / name) and digest == file_digest(directory / name)
    }


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
