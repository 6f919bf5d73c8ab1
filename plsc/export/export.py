"""A checkpoint's backbone for production: Paddle inference, Paddle Serving, ONNX.

What a folder of an export holds:

    plsc_model.json, model.json, model.pdiparams    for load_inference_model and plsc serve; always
    legacy/model.pdmodel, model.pdiparams           format 'legacy': what Paddle 2 reads
    serving/                                        format 'serving': model folders and a service of Paddle Serving
    onnx/model.onnx                                 format 'onnx'
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from plsc.config import Config
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.engine.state import open_backbone
from plsc.errors import ExportError
from plsc.export.baking import BakedNetwork, parse_bake
from plsc.export.checking import check_backbone, check_export, find_difference, run_eager, sample_inputs
from plsc.export.formats.writing import write_legacy, write_onnx, write_serving
from plsc.export.manifest import SETTINGS, refuse_foreign, unchanged_files, weights_digest, write_about
from plsc.export.tracing import save_traced
from plsc.inference.model_card import ABOUT_FILE, FORMAT, MODEL_PREFIX
from plsc.inference.predictor import Predictor
from plsc.utils.atomic import write_folder

log = logging.getLogger("plsc")

# In the order they are made in; 'paddle' is always made, and the others stand beside it.
FORMATS = ("paddle", "legacy", "serving", "onnx")
_WRITERS = {"legacy": write_legacy, "serving": write_serving, "onnx": write_onnx}


def export_checkpoint(
    config: Config,
    topology: Topology,
    directory: str | Path | None = None,
    formats: Sequence[str] = ("paddle",),
    bake: Sequence[str] = (),
    bgr: bool = False,
) -> Path:
    """Export the backbone of `config.checkpoint_dir` (or of the newest checkpoint in `model_save_dir`).

    Under several ranks, rank 0 writes.

    Args:
        directory: default <model_save_dir>/inference_model.
        formats: any of `FORMATS`.
        bake: any of 'preprocess' and 'normalize'; see `BakedNetwork`.
        bgr: baked pre-processing takes pixels blue first.

    Raises:
        CheckpointError: there is no checkpoint.
        ConfigError: the network gives something else than embeddings [N, D].
        ExportError: the folder holds something else or cannot be written, the network is no function of images, a
            layer of it cannot be traced, or an export differs from it.
    """
    directory = Path(directory or Path(config.model_save_dir) / "inference_model")
    if topology.is_main:
        backbone, config, saved = open_backbone(config)
        export_backbone(backbone, config, directory, str(saved.path), formats, bake, bgr)
        log.info("exported %s to %s", saved.path, directory)
    Collectives(topology).barrier()
    return directory


def export_backbone(
    backbone: paddle.nn.Layer,
    config: Config,
    directory: Path,
    origin: str = "",
    formats: Sequence[str] = ("paddle",),
    bake: Sequence[str] = (),
    bgr: bool = False,
    images: Iterable[np.ndarray] = (),
) -> None:
    """Write a backbone aside, compare each format with the eager network, and put them in place.

    Args:
        directory: made where there is none; replaced where it holds an earlier export. What the user has put there or
            edited stays, see `FolderWrite`.
        origin: where the weights come from, noted beside the model.
        formats: any of `FORMATS`.
        bake: any of 'preprocess' and 'normalize'; see `BakedNetwork`.
        bgr: baked pre-processing takes pixels blue first.
        images: [H, W, 3] uint8 RGB to compare on, besides random ones; from `dataset_dir` when there are none.
    """
    formats, bake = parse_formats(formats), parse_bake(bake)
    if bgr and "preprocess" not in bake:
        raise ExportError("bgr says how baked pre-processing takes pixels; bake 'preprocess' too, or leave it out")
    refuse_foreign(directory)
    backbone.eval()
    check_backbone(backbone, config)
    network = BakedNetwork(backbone, config, bake, bgr) if bake else backbone
    network.eval()
    spec = network.input_spec() if bake else paddle.static.InputSpec([None, *config.image_shape], "float32", "image")
    inputs = sample_inputs(config, spec, images, bgr)
    expected = run_eager(network, inputs)
    with write_folder(directory, ExportError) as write:
        partial = write.path
        save_traced(network, spec, partial / MODEL_PREFIX)
        model = partial / f"{MODEL_PREFIX}.json"
        runs = {"paddle": Predictor(model, plain=True).run}
        # As it will be served: fused and under oneDNN, where those load it and compute the same.
        load = functools.lru_cache(None)(Predictor)
        difference = find_difference(network, "paddle, fused", lambda batch: load(model).run(batch), inputs, expected)
        if difference:
            log.warning("%s: it will be served by plain kernels, more slowly", difference)
        about = {
            **_about(config, origin, bake, bgr),
            "weights": weights_digest(backbone),
            "plain_kernels": bool(difference),
        }
        (partial / ABOUT_FILE).write_text(json.dumps(about), encoding="utf-8")
        for name in formats:
            if name in _WRITERS:
                runs[name] = _WRITERS[name](network, spec, partial)
        check_export(network, runs, inputs, expected)
        write_about(partial, about)
        write.obsolete, write.keep = unchanged_files(directory), (SETTINGS,)


def parse_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats to write, in a fixed order.

    Raises:
        ExportError: one has an unknown name.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ExportError(f"format: got '{unknown[0]}', expected any of {', '.join(FORMATS)}")
    return tuple(name for name in FORMATS if name in formats)


def _about(config: Config, origin: str, bake: Sequence[str], bgr: bool) -> dict[str, Any]:
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
        "checkpoint": origin,
    }
