"""The weights that the network of a new run begins with."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import paddle

from plsc.checkpoint import Checkpoint
from plsc.config import Config
from plsc.distributed.topology import Topology
from plsc.errors import CheckpointError
from plsc.inference.model_card import ABOUT_FILE, ModelCard, read_model_card
from plsc.models.base_model import weights_digest
from plsc.pretrained.matching import load, match, table
from plsc.pretrained.opening import Weights, open_weights
from plsc.pretrained.tensors import StoredTensor
from plsc.utils.hints import setter

log = logging.getLogger("plsc")

# Paddle's name of a parameter: the kind of layer, a number that counts such layers, and which tensor of the layer.
_NAME = re.compile(r"(?P<kind>.+)_(?P<number>\d+)\.(?P<which>[wb]_\d+)(_\d+)?")


def load_pretrained(
    config: Config, backbone: paddle.nn.Layer, *, resumed: Checkpoint | None, topology: Topology
) -> str | None:
    """Put the weights of `config.pretrained` into a network, and log a table of what fitted. Each rank calls this.

    Args:
        config: the settings, with local paths.
        backbone: the network.
        resumed: the checkpoint that the run goes on from; then nothing is loaded.
        topology: of the ranks; rank 0 logs.

    Returns:
        What ranks must have in common: a digest of the network's tensors; None where nothing was loaded.

    Raises:
        CheckpointError: the file cannot be read, nothing of it fits, or not all where `pretrained_strict` is set.
    """
    if not config.pretrained:
        return None
    if resumed is not None:
        if topology.is_main:
            log.info("%s is not loaded: the run goes on from %s", config.pretrained, resumed.path)
        return None
    weights = open_for(config.pretrained, backbone)
    found = match(weights, backbone)
    if topology.is_main:
        for line in table(found, backbone):
            log.info("%s", line)
    load(found, backbone, strict=config.pretrained_strict, bgr=config.pretrained_bgr)
    digest = weights_digest(backbone)
    card = read_model_card(weights.path) if weights.kind == "exported model" else None
    if topology.is_main:
        _warn(found.is_whole, backbone, card, digest)
    return digest[:12]


def open_for(path: str | Path, backbone: paddle.nn.Layer) -> Weights:
    """`plsc.pretrained.opening.open_weights`, for exports of this library too.

    Raises:
        CheckpointError: see there; or the export cannot be read.
    """
    folder = next(
        (place for place in (Path(path), Path(path, "inference_model")) if (place / ABOUT_FILE).is_file()), None
    )
    return open_weights(path) if folder is None else _open_export(read_model_card(folder), backbone)


def _open_export(card: ModelCard, backbone: paddle.nn.Layer) -> Weights:
    """The tensors of an export, under the names that they have in a network.

    An export does not hold these names, but Paddle's, which count the layers of each kind in the order in which they
    were made: the third convolution there is the third convolution here.
    """
    try:
        saved = paddle.jit.load(str(card.model_file.with_suffix("")))
    except Exception as error:  # Paddle raises what it likes
        raise CheckpointError(f"{card.directory}: cannot be read: {str(error)[:200]}; export it again") from None
    names = {place: name for name, place in _places({n: t.name for n, t in backbone.state_dict().items()}).items()}
    given = {tensor.name: tensor for tensor in saved.state_dict().values()}
    tensors = {
        names.get(place, name): StoredTensor(given[name].numpy())
        for name, place in _places({name: name for name in given}).items()
    }
    return Weights(path=card.directory, kind="exported model", tensors=tensors, is_torch=False)


def _places(names: dict[str, str]) -> dict[str, tuple[str, int, str]]:
    """{key: (kind of layer, how many such layers come before, which tensor)} of {key: Paddle's name}."""
    found = {key: place for key, name in names.items() if (place := _NAME.fullmatch(name))}
    numbers: dict[str, set[int]] = {}
    for place in found.values():
        numbers.setdefault(place["kind"], set()).add(int(place["number"]))
    return {
        key: (place["kind"], sorted(numbers[place["kind"]]).index(int(place["number"])), place["which"])
        for key, place in found.items()
    }


def _warn(is_whole: bool, backbone: paddle.nn.Layer, card: ModelCard | None, digest: str) -> None:
    """Say what makes the loaded network another than that of the file."""
    if not is_whole:
        log.warning(
            "not all of %s is as in the file; to stop there: %s",
            type(backbone).__name__,
            setter("pretrained_strict", True),
        )
    elif card is not None and card.weights not in ("", digest):
        log.warning(
            "%s: its tensors fit by their order and shapes, but their digest is not that of its card; expected the "
            "network that was exported",
            card.directory,
        )
