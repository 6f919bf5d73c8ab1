"""The export of a checkpoint's backbone for Paddle inference, Paddle Serving and ONNX.

The folder of an export holds:

    plsc_model.json, model.json, model.pdiparams    for load_inference_model and plsc serve; always
    legacy/model.pdmodel, model.pdiparams           format 'legacy': the representation of Paddle 2
    serving/                                        format 'serving': model folders and a service of Paddle Serving
    onnx/model.onnx                                 format 'onnx'

The steps: check the backbone, bake, write the Paddle model, write each other format, compare all of them with the eager
network, replace the earlier export. A failure at any step leaves the earlier export as it was.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from plsc.checkpoint import Checkpoint
from plsc.config import Config
from plsc.distributed.agreement import agree
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.engine.places import export_place, places_of_use
from plsc.engine.saved_centers import scores_of
from plsc.engine.state import open_backbone
from plsc.errors import ExportError
from plsc.export.baking import BakedNetwork, input_spec, parse_bake
from plsc.export.checking import Run, check_backbone, check_export, find_difference, run_eager, sample_inputs
from plsc.export.classifier import write_classifier
from plsc.export.device import on_cpu
from plsc.export.formats import FORMATS, parse_formats
from plsc.export.manifest import check_replaceable, describe_export, unchanged_files, write_manifest
from plsc.export.tracing import save_traced
from plsc.inference.model_card import ABOUT_FILE, MODEL_PREFIX
from plsc.inference.predictor import Predictor
from plsc.utils.atomic import write_folder
from plsc.utils.locations import is_remote, join, keep_credentials, split

log = logging.getLogger("plsc")


def export_checkpoint(
    config: Config,
    topology: Topology,
    *,
    directory: str | Path | None = None,
    formats: Sequence[str] = ("paddle",),
    bake: Sequence[str] = (),
    bgr: bool = False,
    classifier: bool = False,
) -> str:
    """Export the backbone of `config.checkpoint_dir`, or of the newest checkpoint in `model_save_dir`.

    With several ranks, rank 0 writes and the others wait.

    Args:
        config: names the checkpoint; images of its `dataset_dir` are used to compare the export with the network.
        topology: this rank.
        directory: folder to write, which may be a remote one; default <model_save_dir>/inference_model.
        formats: see `export_backbone`.
        bake: see `export_backbone`.
        bgr: see `export_backbone`.
        classifier: write the class centers and the names of the classes too.

    Returns:
        The folder, without credentials.

    Raises:
        CheckpointError: there is no checkpoint, it is of another network, or its head has no class centers.
        StorageError: a remote folder cannot be read or written.
        ConfigError, ExportError: see `export_backbone`.
    """
    target = keep_credentials(str(directory or join(config.model_save_dir, "inference_model")))
    target = target if is_remote(target) else str(Path(target))

    def export() -> None:
        config.check()
        with on_cpu():
            backbone, opened, saved = open_backbone(places_of_use(config))

        origin = str(saved.path)
        if is_remote(given := config.checkpoint_dir or config.model_save_dir):
            origin = given if split(given)[1] == saved.path.name else join(given, saved.path.name)

        def write(folder: Path) -> None:
            export_backbone(
                backbone,
                opened,
                directory=folder,
                origin=origin,
                formats=formats,
                bake=bake,
                bgr=bgr,
                classifier=saved if classifier else None,
            )

        if is_remote(target):
            export_place(target, config, manifest=ABOUT_FILE, write=write)
        else:
            write(Path(target))
        log.info("exported %s to %s", origin, target)

    agree(lambda: export() if topology.is_main else None, Collectives(topology), error=ExportError)
    return target


def export_backbone(
    backbone: paddle.nn.Layer,
    config: Config,
    *,
    directory: Path,
    origin: str = "",
    formats: Sequence[str] = ("paddle",),
    bake: Sequence[str] = (),
    bgr: bool = False,
    images: Iterable[NDArray[np.uint8]] = (),
    classifier: Checkpoint | None = None,
) -> None:
    """Export a backbone and compare each format with the eager network, on the CPU.

    Args:
        backbone: [N, 3, H, W] -> [N, D].
        config: image_shape, emb_dim, flip, pixel_mean, pixel_std and dataset_dir are used.
        directory: folder to write. An earlier export there is replaced; files of it that the user added or edited
            stay, see `FolderWrite`.
        origin: the checkpoint that the weights come from, for the manifest.
        formats: any of 'paddle', 'legacy', 'serving' and 'onnx'; 'paddle' is always written.
        bake: any of 'preprocess' and 'normalize'; see `BakedNetwork`.
        bgr: baked pre-processing takes pixels in the order blue, green, red.
        images: [H, W, 3] uint8 RGB to compare on, besides random ones; by default a few of `config.dataset_dir`.
        classifier: the checkpoint whose class centers and names of classes are written too; None for none.

    Raises:
        CheckpointError: the head of `classifier` has no class centers, or the checkpoint is damaged.
        ConfigError: the backbone returns something else than embeddings [N, D].
        ExportError: a format or a part to bake is unknown, the folder holds something else than an export or cannot be
            written, the backbone fails or is not deterministic, a layer cannot be traced, or a format computes
            something else than the network.
        MissingDependencyError: a format's packages are not installed.
    """
    formats, bake = parse_formats(formats), parse_bake(bake)
    if bgr and "preprocess" not in bake:
        raise ExportError("bgr says how baked pre-processing takes pixels; bake 'preprocess' too, or leave it out")
    check_replaceable(directory)
    if classifier is not None and "normalize" in bake and not scores_of(classifier).is_cosine:
        raise ExportError(
            "the head is a softmax over products, which need the length of the network's outputs, and bake 'normalize' "
            "makes that 1; leave 'normalize' or the classifier out"
        )
    with on_cpu(backbone):
        backbone.eval()
        check_backbone(backbone, config)
        network = BakedNetwork(backbone, config, bake=bake, bgr=bgr) if bake else backbone
        network.eval()
        spec = input_spec(config, bake)
        inputs = sample_inputs(config, spec, images=images, bgr=bgr)
        expected = run_eager(network, inputs)
        with write_folder(directory, ExportError) as write:
            folder = write.path
            save_traced(network, spec, prefix=folder / MODEL_PREFIX)
            model = folder / f"{MODEL_PREFIX}.json"
            difference = _find_difference_when_fused(network, model, inputs=inputs, expected=expected)
            if difference:
                log.warning("%s: it will be served by plain kernels, more slowly", difference)
            about = describe_export(
                config, backbone, origin=origin, bake=bake, bgr=bgr, plain_kernels=difference is not None
            )
            if classifier is not None:
                about["classifier"] = write_classifier(classifier, folder)
            write_manifest(folder, about, with_files=False)
            runs: dict[str, Run] = {"paddle": Predictor(model, plain=True).run}
            for name in formats:
                runs[name] = FORMATS[name].write(network, spec, folder=folder)
            check_export(network, runs, inputs=inputs, expected=expected)
            write_manifest(folder, about, with_files=True)
            write.obsolete = unchanged_files(directory)
            write.keep = [file for format in FORMATS.values() for file in format.keep]


def _find_difference_when_fused(
    network: paddle.nn.Layer,
    model: Path,
    *,
    inputs: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[Any]],
) -> str | None:
    """`find_difference` for fused kernels under oneDNN, which plsc serve uses unless they compute something else."""
    # Loaded at the first batch, because a failure to load counts as a difference.
    load = functools.cache(lambda: Predictor(model))
    return find_difference(
        network, lambda batch: load().run(batch), name="paddle, fused", inputs=inputs, expected=expected
    )
