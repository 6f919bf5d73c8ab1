"""Whether an export computes what its network does, on random and real inputs."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import paddle
from paddle import nn

from plsc.config import Config
from plsc.data.images import decode, resize
from plsc.data.sources import open_records
from plsc.data.transforms import Transform, normalize
from plsc.errors import ExportError, PLSCError
from plsc.export.baking import BakedNetwork
from plsc.export.tracing import last_line
from plsc.models.base_model import check_embedding

log = logging.getLogger("plsc")

Run = Callable[[np.ndarray], np.ndarray]

TOLERANCE = 1e-5
_ROUNDING = 1e-3  # of eager float32 against float64; a network that differs by more is not merely rounding
REAL_IMAGES = 4


def sample_inputs(
    config: Config, spec: paddle.static.InputSpec, images: Iterable[np.ndarray], bgr: bool
) -> dict[str, np.ndarray]:
    """What to compare on, by name: batches of different sizes, random and real.

    Args:
        images: [H, W, 3] uint8 RGB; from the data set of `config` when there are none.
        bgr: the network takes pixels blue first.
    """
    rng = np.random.default_rng(0)
    real = list(itertools.islice(images, REAL_IMAGES)) or list(_data_set_images(config))
    pixels = [None, *config.image_shape[1:], 3]
    takes_pixels = spec.shape[-1] == 3 and "uint8" in str(spec.dtype)
    if takes_pixels:
        inputs = {
            "random pixels": rng.integers(0, 256, [3, *pixels[1:]], np.uint8),
            "random pixels of another size": rng.integers(0, 256, [1, pixels[1] + 5, pixels[2] + 9, 3], np.uint8),
        }
    else:
        inputs = {
            "random images": rng.uniform(-1, 1, [3, *config.image_shape]).astype(np.float32),
            "a single random image": rng.uniform(-1, 1, [1, *config.image_shape]).astype(np.float32),
        }
    if not real:
        log.warning("no image found to compare the export on besides random values; set_dataset_dir to a data set")
    elif takes_pixels:
        inputs["real images"] = np.stack([resize(image, pixels[1:3])[..., :: -1 if bgr else 1] for image in real])
    else:
        transform = Transform(config.image_shape)
        batch = normalize(np.stack([transform(image) for image in real]), mean=config.pixel_mean, std=config.pixel_std)
        inputs["real images"] = np.asarray(batch, np.float32)
    return inputs


def check_backbone(backbone: nn.Layer, config: Config) -> None:
    """Run a backbone on a batch of two, twice.

    Raises:
        ConfigError: it gives something else than embeddings [2, D].
        ExportError: it fails, or it gives something else the second time.
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
    check_embedding(first, backbone, 2, config.emb_dim)
    difference = relative_difference(second.numpy(), first.numpy())
    if difference > TOLERANCE:
        raise ExportError(
            f"{name}: gives another embedding of the same images each time (by {difference:.2g} of its "
            f"length); leave chance out of its forward, as by dropout(x, training=self.training)"
        )


def run_eager(network: nn.Layer, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the network gives for each of the inputs."""
    return {what: _run(network, batch) for what, batch in inputs.items()}


def check_export(
    network: nn.Layer, runs: dict[str, Run], inputs: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> None:
    """Raise `ExportError` where an export differs from its network; see `find_difference`."""
    for name, run in runs.items():
        difference = find_difference(network, name, run, inputs, expected)
        if difference:
            raise ExportError(
                f"{difference}; nothing was put in place. Export without this format, or replace the "
                f"layer that it computes differently"
            )
    log.info("%s: equal to the network on %s", ", ".join(runs), ", ".join(inputs))


def find_difference(
    network: nn.Layer, name: str, run: Run, inputs: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> str | None:
    """Say where an export differs from its network by more than 1e-5 of an embedding's length, if it does.

    A hundred layers round to more than that in float32. Where they do, the export is compared with the network in
    float64 and must be within 1e-5 of it, or at least as near to it as the network in float32 is.

    Args:
        network: in evaluation mode.
        name: of the format.
        run: runs the export.
        inputs: by name, what to run.
        expected: of each, what `run_eager` gave.
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


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest |found - expected| / |expected| of a row, of [N, D]; NaN where a value is."""
    lengths = np.linalg.norm(expected, axis=1)
    return float((np.linalg.norm(found - expected, axis=1) / np.maximum(lengths, 1e-12)).max())


def _run(network: nn.Layer, batch: np.ndarray) -> np.ndarray:
    with paddle.no_grad():
        return network(paddle.to_tensor(batch)).numpy()


def _run_in_float64(network: nn.Layer, batch: np.ndarray) -> np.ndarray | None:
    """None where the network cannot be run so, because its forward itself says float32."""
    network = copy.deepcopy(network).to(dtype="float64")
    if isinstance(network, BakedNetwork):
        network.compute_dtype = "float64"
    try:
        return _run(network, batch if batch.dtype == np.uint8 else batch.astype(np.float64))
    except (TypeError, ValueError, RuntimeError):
        return None


def _data_set_images(config: Config) -> Iterator[np.ndarray]:
    """A few images of the data set, spread evenly; none where there is no data set."""
    try:
        records = open_records(config.dataset_dir)
        count = len(records)
        for index in sorted({count * part // REAL_IMAGES for part in range(REAL_IMAGES)} if count else ()):
            yield decode(records[index].image)
    except PLSCError:
        return
