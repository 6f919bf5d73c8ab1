"""The comparison of an export with its network, on random and real inputs."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import nn

from plsc.config import Config
from plsc.data.images import decode, resize
from plsc.data.sources import open_records
from plsc.errors import ExportError, PLSCError
from plsc.export.baking import BakedNetwork
from plsc.export.tracing import last_line
from plsc.inference.embedding import EmbeddingPath
from plsc.metrics.embeddings import EPSILON
from plsc.models.base_model import check_embedding
from plsc.utils.finite import find_nonfinite
from plsc.utils.hints import setter
from plsc.utils.locations import is_remote

log = logging.getLogger("plsc")

# Runs an export: input [N, ...] to outputs [N, D].
Run = Callable[[NDArray[Any]], NDArray[Any]]

TOLERANCE = 1e-5  # largest difference, as a share of an embedding's length
_ROUNDING = 1e-3  # largest difference of float32 from float64 that counts as rounding
REAL_IMAGES = 4


def sample_inputs(
    config: Config, spec: paddle.static.InputSpec, *, images: Iterable[NDArray[np.uint8]], bgr: bool
) -> dict[str, NDArray[Any]]:
    """Inputs to compare on, by a name for messages: batches of different sizes, random and real.

    Args:
        config: image_shape, pixel_mean, pixel_std and dataset_dir are used.
        spec: shape and type of the network's input.
        images: [H, W, 3] uint8 RGB; without any, a few of `config.dataset_dir`.
        bgr: the network takes pixels in the order blue, green, red.
    """
    rng = np.random.default_rng(0)
    real = list(itertools.islice(images, REAL_IMAGES)) or list(_data_set_images(config))
    _, height, width = config.image_shape
    takes_pixels = spec.shape[-1] == 3 and "uint8" in str(spec.dtype)
    inputs: dict[str, NDArray[Any]]
    if takes_pixels:
        inputs = {
            "random pixels": rng.integers(0, 256, [3, height, width, 3], np.uint8),
            "random pixels of another size": rng.integers(0, 256, [1, height + 5, width + 9, 3], np.uint8),
        }
    else:
        inputs = {
            "random images": rng.uniform(-1, 1, [3, *config.image_shape]).astype(np.float32),
            "a single random image": rng.uniform(-1, 1, [1, *config.image_shape]).astype(np.float32),
        }
    if not real:
        log.warning(
            "no image found to compare the export on besides random values; name a data set with %s",
            setter("dataset_dir"),
        )
    elif takes_pixels:
        inputs["real images"] = np.stack([resize(image, (height, width))[..., :: -1 if bgr else 1] for image in real])
    else:
        path = EmbeddingPath(
            image_shape=config.image_shape, flip=False, pixel_mean=config.pixel_mean, pixel_std=config.pixel_std
        )
        inputs["real images"] = path.to_input(np.stack([path.prepare(image) for image in real]))
    return inputs


def check_backbone(backbone: nn.Layer, config: Config) -> None:
    """Run a backbone twice on one batch of two images.

    Raises:
        ConfigError: it returns something else than embeddings [2, D].
        ExportError: it fails, its embeddings are not finite, or the second run's differ from the first's.
    """
    images = np.random.default_rng(0).uniform(-1, 1, [2, *config.image_shape]).astype(np.float32)
    name = type(backbone).__name__
    try:
        with paddle.no_grad():
            first, second = (backbone(paddle.to_tensor(images)) for _ in range(2))
    except Exception as error:
        raise ExportError(
            f"{name}: fails on images {list(images.shape)} of float32: {last_line(error)}; the "
            f"network must take one such tensor"
        ) from error
    check_embedding(first, backbone, images=2, emb_dim=config.emb_dim)
    found = find_nonfinite(first.numpy())
    if found is not None:
        raise ExportError(
            f"{name}: an embedding of a random image holds {found[1]:g}; the network has diverged or its weights are "
            f"damaged; export an earlier checkpoint"
        )
    difference = relative_difference(second.numpy(), first.numpy())
    if difference > TOLERANCE:
        raise ExportError(
            f"{name}: gives another embedding of the same images each time (by {difference:.2g} of its "
            f"length); leave chance out of its forward, as by dropout(x, training=self.training)"
        )


def run_eager(network: nn.Layer, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The outputs of the network, by the name of the input."""
    return {what: _run(network, batch) for what, batch in inputs.items()}


def check_export(
    network: nn.Layer,
    runs: Mapping[str, Run],
    *,
    inputs: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[Any]],
) -> None:
    """Compare each format with the network; see `find_difference`.

    Raises:
        ExportError: a format differs.
    """
    for name, run in runs.items():
        difference = find_difference(network, run, name=name, inputs=inputs, expected=expected)
        if difference:
            raise ExportError(
                f"{difference}; nothing was put in place. Export without this format, or replace the "
                f"layer that it computes differently"
            )
    log.info("%s: equal to the network on %s", ", ".join(runs), ", ".join(inputs))


def find_difference(
    network: nn.Layer,
    run: Run,
    *,
    name: str,
    inputs: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[Any]],
) -> str | None:
    """Compare an export with its network.

    They are equal if they differ by at most 1e-5 of an embedding's length. A hundred layers round to more than that in
    float32. A larger difference is therefore measured against the network in float64: the export must be within 1e-5
    of it, or at least as near to it as the network in float32 is.

    Args:
        network: in evaluation mode.
        run: runs the export.
        name: name of the format, for the message.
        inputs: inputs to run, by name.
        expected: outputs of `run_eager` for them.

    Returns:
        The first difference in words; None if they are equal.
    """
    for what, batch in inputs.items():
        eager = expected[what]
        try:
            found = run(np.ascontiguousarray(batch))
        except Exception as error:
            return f"format '{name}' cannot be run on {what}: {last_line(error)}"
        if found.shape != eager.shape:
            return (
                f"format '{name}' gives {list(found.shape)} for {what} {list(batch.shape)}, the network "
                f"{list(eager.shape)}"
            )
        difference, allowed = relative_difference(found, eager), TOLERANCE
        if difference > allowed:
            truth = _run_in_float64(network, batch)
            if truth is not None:
                difference = relative_difference(found, truth)
                allowed = max(TOLERANCE, min(_ROUNDING, relative_difference(eager, truth)))
        if not difference <= allowed:
            return (
                f"format '{name}' differs from the network by {difference:.2g} of an embedding's length on {what}, "
                f"expected {allowed:.2g} at most"
            )
    return None


def relative_difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest |found - expected| / |expected| of the rows of [N, D]; NaN if a value is NaN."""
    lengths = np.linalg.norm(expected, axis=1)
    return float((np.linalg.norm(found - expected, axis=1) / np.maximum(lengths, EPSILON)).max())


def _run(network: nn.Layer, batch: NDArray[Any]) -> NDArray[Any]:
    with paddle.no_grad():
        outputs: NDArray[Any] = network(paddle.to_tensor(batch)).numpy()
    return outputs


def _run_in_float64(network: nn.Layer, batch: NDArray[Any]) -> NDArray[Any] | None:
    """Outputs of the network in float64; None if it cannot run so, because its forward names float32."""
    network = copy.deepcopy(network).to(dtype="float64")
    if isinstance(network, BakedNetwork):
        network.compute_dtype = "float64"
    try:
        return _run(network, batch if batch.dtype == np.uint8 else batch.astype(np.float64))
    except (TypeError, ValueError, RuntimeError):
        return None


def _data_set_images(config: Config) -> Iterator[NDArray[np.uint8]]:
    """A few images of the data set, spread evenly over it; none if there is no data set on this machine."""
    if is_remote(config.dataset_dir):  # all of it would have to be copied
        return
    try:
        records = open_records(config.dataset_dir)
        count = len(records)
        for index in sorted({count * part // REAL_IMAGES for part in range(REAL_IMAGES)} if count else ()):
            yield decode(records[index].image)
    except PLSCError:
        return
