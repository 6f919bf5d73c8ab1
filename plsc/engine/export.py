"""A checkpoint's backbone as a Paddle inference model: `model.json`, `model.pdiparams` and what to feed it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any, Dict, Optional, Union

import numpy as np
import paddle

from plsc.config import Config
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.engine.state import open_backbone
from plsc.errors import ExportError
from plsc.serving.model import ABOUT_FILE, FORMAT, MODEL_PREFIX, InferenceModel

log = logging.getLogger("plsc")

TOLERANCE = 1e-5


def export_checkpoint(config: Config, topology: Topology, directory: Optional[Union[str, Path]] = None) -> Path:
    """Export the backbone of `config.checkpoint_dir` (or of the newest checkpoint in `model_save_dir`).

    Under several ranks, rank 0 writes.

    Args:
        directory: default <model_save_dir>/inference_model.

    Raises:
        CheckpointError: there is no checkpoint.
        ExportError: the folder holds something else, or the export differs from the network.
    """
    directory = Path(directory or Path(config.model_save_dir) / "inference_model")
    if topology.is_main:
        backbone, config, saved = open_backbone(config)
        export_backbone(backbone, config, directory, origin=str(saved.path))
        log.info("exported %s to %s", saved.path, directory)
    Collectives(topology).barrier()
    return directory


def export_backbone(backbone: paddle.nn.Layer, config: Config, directory: Path, origin: str = "") -> None:
    """Write a backbone aside, compare it with itself loaded back, and put it in place.

    Args:
        directory: made where there is none; replaced where it holds an earlier export.
        origin: where the weights come from, noted beside the model.
    """
    refuse_foreign(directory)
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    backbone.eval()
    spec = paddle.static.InputSpec([None, *config.image_shape], "float32", "image")
    paddle.jit.save(backbone, str(partial / MODEL_PREFIX), input_spec=[spec])
    (partial / ABOUT_FILE).write_text(json.dumps(_about(config, origin), indent=1), encoding="utf-8")
    compare(backbone, InferenceModel(partial), config)
    if directory.exists():
        old = directory.with_name(f".{directory.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
        partial.rename(directory)
        shutil.rmtree(old)
    else:
        partial.rename(directory)


def refuse_foreign(directory: Path) -> None:
    """Raise `ExportError` unless `directory` is missing, empty, or an export of ours."""
    if directory.exists() and not directory.is_dir():
        raise ExportError(f"{directory} is a file, expected a folder to export to")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / ABOUT_FILE).is_file():
        raise ExportError(f"{directory} is not empty and holds no exported model ({ABOUT_FILE}); nothing was written. "
                          f"Choose another folder")


def compare(backbone: paddle.nn.Layer, exported: InferenceModel, config: Config) -> None:
    """Raise `ExportError` where an export differs from its network by more than 1e-5 of the largest value."""
    images = np.random.default_rng(0).uniform(-1, 1, [3, *config.image_shape]).astype(np.float32)
    with paddle.no_grad():
        expected = backbone(paddle.to_tensor(images)).numpy()
    found = exported.run(images)
    worst = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))
    if not worst <= TOLERANCE:
        raise ExportError(f"the exported model differs from the network by {worst:.2g} of the largest value, expected "
                          f"{TOLERANCE:g} at most; nothing was put in place")


def _about(config: Config, origin: str) -> Dict[str, Any]:
    return {"format": FORMAT, "version": 1, "image_shape": list(config.image_shape), "emb_dim": config.emb_dim,
            "channels": "RGB", "pixel_mean": list(config.pixel_mean), "pixel_std": list(config.pixel_std),
            "flip": config.flip, "paddle": paddle.__version__, "checkpoint": origin}
