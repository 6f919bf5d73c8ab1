"""A checkpoint of this library made of what another library's training has saved."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from plsc.checkpoint.tools import write_as_ranks
from plsc.config import Config
from plsc.engine.about import saved_settings
from plsc.engine.pretrained import open_for
from plsc.engine.resume import saved_objects
from plsc.errors import CheckpointError
from plsc.models.base_model import build_backbone, network_name
from plsc.pretrained.matching import Match, load, match, table
from plsc.pretrained.shards import JoinedRows
from plsc.pretrained.tensors import StoredTensor
from plsc.pretrained.trainings import Training, open_training
from plsc.utils.hints import argument, setter
from plsc.utils.plural import counted
from plsc.utils.ranges import Range

log = logging.getLogger("plsc")

_HEAD, _VELOCITY = "head.", ":velocity"


def import_checkpoint(
    source: str | Path,
    target: str | Path,
    *,
    model_name: str,
    image_shape: Sequence[int] | str = (3, 112, 112),
    loss_type: str = "dist_arcface",
    ranks: int = 1,
    backbone: str | Path | None = None,
    pixel_mean: Sequence[float] | str | None = None,
    pixel_std: Sequence[float] | str | None = None,
    strict: bool = False,
    bgr: bool = False,
) -> Path:
    """Write a checkpoint of this library of what another one's training has saved; docs/pretrained.md lists what.

    Class centers and their momentum are read and written in blocks, so that memory for the network and a few blocks is
    enough for any number of classes.

    Args:
        source: a folder that holds the files of all ranks of a training, or a file of a network with or without its
            head. See `plsc.pretrained.trainings`.
        target: the folder to write; it must not exist.
        model_name: the network here.
        image_shape: (3, H, W) of its images.
        loss_type: with which training goes on, for the checkpoint's notes.
        ranks: how many ranks the class centers are divided among; any number resumes from them.
        backbone: a file of the network, where it is not among those of `source`.
        pixel_mean: of red, green and blue, 0 to 255, with which the network was trained; by default 127.5.
        pixel_std: the same; by default 127.5, and 128 for PLSC 0.x.
        strict: refuse a network that does not fit whole.
        bgr: the network takes pixels blue first; see `plsc.pretrained.matching.load`.

    Returns:
        The folder written. Without class centers, `plsc test` and `plsc export` take it, and training does not.

    Raises:
        CheckpointError: a file is missing, damaged, or names what does not belong beside weights; shards do not fit
            together; or the target exists.
        ConfigError: a setting is wrong.
    """
    training = open_training(Path(source))
    if training.backbone is None and backbone is None:
        raise CheckpointError(
            f"{source}: holds class centers and no network; name its file: "
            f"{argument('backbone', 'backbone.pth', of='plsc checkpoint import')}"
        )
    given = {"image_shape": image_shape, "pixel_mean": pixel_mean, "pixel_std": pixel_std}
    config = Config(model_name=model_name, loss_type=loss_type, pixel_std=(training.pixel_std,) * 3)
    config.assign(**{name: value for name, value in given.items() if value is not None})
    if training.head_name in build_backbone(config).state_dict():  # a layer of the network, and no class centers
        training = dataclasses.replace(training, head={}, head_name="")
    network, found = _open_network(training, config, backbone)
    if training.head_name in found.foreign:
        found.foreign.remove(training.head_name)  # the class centers, which are taken over
    for line in table(found, network):
        log.info("%s", line)
    load(found, network, strict=strict, bgr=bgr)
    tensors: dict[str, _Whole | JoinedRows] = {
        f"backbone.{name}": _Whole(value.numpy()) for name, value in network.state_dict().items()
    }
    if backbone is None:
        tensors.update(_momentum(training, found, network, bgr=bgr))
    tensors.update({f"{_HEAD}{name}": JoinedRows(shards) for name, shards in training.head.items()})
    config.num_classes = tensors[f"{_HEAD}weight"].shape[0] if training.head else 1
    _log_head(training, tensors, config)
    return write_as_ranks(
        Path(target),
        tensors,
        sharded=lambda name: name.startswith(_HEAD),
        about=_about(training, config, network, source=source),
        ranks=ranks,
        check_rows=True,
    )


class _Whole:
    """A tensor in memory, which rank 0 writes."""

    is_view = True

    def __init__(self, array: NDArray[Any]) -> None:
        self._array, self.shape, self.dtype = array, list(array.shape), array.dtype

    def cut(self, rows: Range) -> _Whole:
        """The rows in a range."""
        return _Whole(self._array[rows.start : rows.stop])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop); a scalar is one row."""
        return np.atleast_1d(self._array)[start:stop]


def _open_network(training: Training, config: Config, file: str | Path | None) -> tuple[paddle.nn.Layer, Match]:
    """The network here, and what of the file fits it. `config` gets the embedding size of the file."""
    if training.head:
        config.emb_dim = training.head["weight"][0].shape[1]
    network = build_backbone(config)
    weights = training.backbone if file is None else open_for(file, network)
    if weights is None:
        raise CheckpointError("there is no network")  # the caller has looked
    found = match(weights, network)
    sizes = {shape[0] for _, shape in found.misfits.values() if len(shape) == 1}
    if training.head or len(sizes) != 1:
        return network, found
    # Without a head only the last layers, which do not fit, tell the embedding size.
    config.emb_dim = sizes.pop()
    network = build_backbone(config)
    return network, match(weights, network)


def _momentum(training: Training, found: Match, network: paddle.nn.Layer, *, bgr: bool) -> dict[str, _Whole]:
    """The velocity of the network's parameters, as `optimizer.<parameter>:velocity`."""
    if bgr and training.momentum:
        log.info("the momentum of the network is not taken over, since its first convolution is reversed")
        return {}
    own, prefix = dict(network.named_parameters()), "optimizer."
    taken: dict[str, _Whole] = {}
    for name, source in found.sources.items():
        velocity: StoredTensor | None = training.momentum.get(source)
        if name in own and not own[name].stop_gradient and velocity is not None:
            velocity = velocity.transposed() if found.weights.is_torch and name in found.matrices else velocity
            if velocity.shape == list(own[name].shape):
                taken[f"{prefix}{name}{_VELOCITY}"] = _Whole(velocity.numpy().astype(np.float32))
    return taken


def _log_head(training: Training, tensors: dict[str, Any], config: Config) -> None:
    for note in training.notes:
        log.info("%s: %s", training.kind, note)
    if not training.head:
        log.info(
            "%s: no class centers: test and export take the checkpoint; a training begins with the network by %s",
            training.kind,
            setter("pretrained"),
        )
        return
    log.info(
        "%s: %s of %s in %s, %s momentum",
        training.kind,
        counted(config.num_classes, "class center"),
        counted(config.emb_dim, "number"),
        counted(len(training.head["weight"]), "file"),
        "with their" if f"{_HEAD}weight{_VELOCITY}" in tensors else "without",
    )


def _about(training: Training, config: Config, network: paddle.nn.Layer, *, source: str | Path) -> dict[str, Any]:
    """What the manifest says, as `plsc.engine.about.About` reads it."""
    known = {"num_classes", "emb_dim", "image_shape", "model_name", "loss_type", "pixel_mean", "pixel_std"}
    return {
        "epoch": training.epoch,
        "step": training.step,
        "images_in_epoch": 0,
        "steps_in_epoch": 0,
        "optimizer": "Momentum",
        "head_optimizer": "Momentum",
        "loss_scaling": {},
        "network": network_name(network),
        "settings": {name: value for name, value in saved_settings(config).items() if name in known},
        "objects": saved_objects(config),
        "classes": None,
        "imported": {"kind": training.kind, "source": str(source)},
    }
