"""Weights from a file put into a network, and the table of what fitted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import nn

from plsc.errors import CheckpointError
from plsc.pretrained.opening import Weights, strip_prefixes
from plsc.pretrained.schemes import IGNORED, Scheme, scheme_of
from plsc.pretrained.tensors import StoredTensor
from plsc.utils.finite import find_nonfinite
from plsc.utils.hints import setter
from plsc.utils.plural import counted

_BODY = "body."  # of `plsc.models.zoo.VisionBackbone`
_SHOWN, _LONGEST = 10, 120  # names of a kind in a table, and characters of one


@dataclass(frozen=True, kw_only=True)
class Match:
    """How the tensors of a file fit those of a network.

    Attributes:
        weights: of the file.
        scheme: whose names the file has.
        sources: name in the network -> name in the file.
        implied: name in the network -> what it is by the definition of the file's network, see `Scheme.implied`.
        misfits: name in the network -> its shape and that of the tensor in the file.
        missing: names in the network of tensors that get no value.
        unused: names in the file of tensors that the network has no place for, in parts that it has.
        foreign: the same in parts that it does not have, as the head of a training.
        matrices: names in the network of the weights of fully connected layers.
        slopes: names in the network of the slopes of PReLU, which may be one number for all channels in the file.
    """

    weights: Weights
    scheme: Scheme
    sources: dict[str, str] = field(default_factory=dict)
    implied: dict[str, str] = field(default_factory=dict)
    misfits: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    matrices: frozenset[str] = frozenset()
    slopes: frozenset[str] = frozenset()

    @property
    def is_whole(self) -> bool:
        """Whether each tensor of the network has a value, and none of its parts in the file is left over."""
        return not (self.misfits or self.missing or self.unused)

    def tensor(self, name: str) -> StoredTensor:
        """The tensor in the file of a name in the network, as the network has it."""
        found = self.weights.tensors[self.sources[name]]
        return found.transposed() if self.weights.is_torch and name in self.matrices else found


def match(weights: Weights, network: nn.Layer) -> Match:
    """Find the tensors of a file for a network. None is read."""
    own = network.state_dict()
    plain = {short: name for name, short in _plain_names(own, weights).items()}
    targets = scheme_of(plain).translate(plain)  # name -> common name
    common_names = set(targets.values())

    def hits(scheme: Scheme) -> int:
        return len(common_names.intersection(scheme.translate(weights.tensors).values()))

    # A file that lacks the tensors that mark its scheme may have the names of the network.
    scheme = max(scheme_of(weights.tensors), scheme_of(plain), key=hits)
    given = {common: name for name, common in scheme.translate(weights.tensors).items() if not IGNORED.search(name)}
    matrices, slopes = _weights_of(network, nn.Linear, "weight"), _weights_of(network, nn.PReLU, "_weight")
    result = Match(weights=weights, scheme=scheme, matrices=matrices, slopes=slopes)
    for short, common in targets.items():
        name = plain[short]
        shape = list(own[name].shape)
        if common in given:
            source = given.pop(common)
            result.sources[name] = source
            found = result.tensor(name).shape
            if found != shape and not (name in slopes and found == [1]):
                result.misfits[name] = shape, found
                del result.sources[name]
        elif kind := next((kind for text, kind in scheme.implied.items() if re.fullmatch(text, common)), None):
            result.implied[name] = kind
        else:
            result.missing.append(name)
    parts = {common.split(".")[0] for common in common_names}
    for common, name in given.items():
        (result.unused if common.split(".")[0] in parts else result.foreign).append(name)
    return result


def _plain_names(own: Iterable[str], weights: Weights) -> dict[str, str]:
    """The names in a network without the part that holds a network of Paddle, which its own files do not have."""
    plain = strip_prefixes(own)
    if any(name.startswith(_BODY) for name in weights.tensors):
        return plain
    return {name: short.removeprefix(_BODY) for name, short in plain.items()}


def load(found: Match, network: nn.Layer, *, strict: bool = False, bgr: bool = False) -> None:
    """Put what was matched into a network.

    Args:
        found: of this network.
        network: keeps its values where the file has none.
        strict: refuse a file that does not fit whole.
        bgr: the file's network takes pixels blue first, and this one red first: the input channels of its first
            convolution are reversed.

    Raises:
        CheckpointError: nothing fits; something does not fit, and `strict` is set or the file is an ONNX model; a
            number is not finite, or the file is damaged.
    """
    check(found, network, strict=strict)
    own, first = network.state_dict(), _first_convolution(network) if bgr else None
    for name, tensor in own.items():
        if name in found.sources:
            value = _value(found, name, tensor)
            tensor.set_value(np.ascontiguousarray(value[:, ::-1]) if name == first else value)
        elif name in found.implied:
            tensor.set_value(_implied(found.implied[name], list(tensor.shape)).astype(_numpy_type(tensor)))


def check(found: Match, network: nn.Layer, *, strict: bool) -> None:
    """Refuse a file that fits too little; arguments and errors are those of `load`."""
    path, kind = found.weights.path, type(network).__name__
    if not found.sources:
        listed = ", ".join(name[:_LONGEST] for name in [*found.weights.tensors][:4])
        raise CheckpointError(
            f"{path}: no tensor fits {kind}, whose tensors are {', '.join([*network.state_dict()][:4])}, ...; the file "
            f"has {listed or 'none'}, ...; {_other_network()}"
        )
    if found.weights.kind == "ONNX model" and found.missing:
        raise CheckpointError(
            f"{path}: the ONNX model has no tensors of the names {_some(found.missing)}, which {kind} needs: exporting "
            f"has folded layers together; give the file that it was exported from, or export it with "
            f"do_constant_folding=False and training=TrainingMode.PRESERVE"
        )
    if strict and not found.is_whole:
        raise CheckpointError(f"{path}: does not fit {kind} whole: {'; '.join(_odds(found))}; {_other_network()}")


def table(found: Match, network: nn.Layer) -> list[str]:
    """What was loaded and what was not, as lines: a row for each part of the network, then the names that are odd."""
    columns = {
        "loaded": [*found.sources],
        "implied": [*found.implied],
        "other shape": [*found.misfits],
        "no value": found.missing,
    }
    counts = {heading: Counter(name.split(".")[0] for name in names) for heading, names in columns.items()}
    parts = list(dict.fromkeys(name.split(".")[0] for name in network.state_dict()))
    rows = [[part, *(str(count[part] or "-") for count in counts.values())] for part in parts]
    rows.append(["all", *(str(len(names) or "-") for names in columns.values())])
    headings = ["part", *columns]
    widths = [max(len(row[place]) for row in [headings, *rows]) for place in range(len(headings))]
    title = f"{found.weights.path}: {found.weights.kind}, {found.scheme.name} -> {type(network).__name__}"
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:]))])
        for row in [headings, *rows]
    ]
    foreign = [f"not used, of other parts: {_some(found.foreign)}"] if found.foreign else []
    return [title, *(f"  {line}" for line in [*lines, *_odds(found), *foreign])]


def _odds(found: Match) -> list[str]:
    misfits = [f"{name} is {given}, expected {own}" for name, (own, given) in found.misfits.items()]
    odds = {"other shape": misfits, "no value": found.missing, "not used": found.unused}
    return [f"{what}: {_some(names)}" for what, names in odds.items() if names]


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(name[:_LONGEST] for name in names[:_SHOWN]) + (
        f" and {counted(more, 'other')}" if more > 0 else ""
    )


def _other_network() -> str:
    return f"choose the network of the file with {setter('model_name')}, and its {setter('emb_dim')}"


def _weights_of(network: nn.Layer, kind: type[nn.Layer], attribute: str) -> frozenset[str]:
    """The names of a tensor of all layers of a kind."""
    layers = network.named_sublayers(include_self=True)
    return frozenset(f"{name}.{attribute}".lstrip(".") for name, layer in layers if isinstance(layer, kind))


def _first_convolution(network: nn.Layer) -> str:
    for name, layer in network.named_sublayers(include_self=True):
        if isinstance(layer, nn.Conv2D) and layer.weight.shape[1] == 3:
            return f"{name}.weight".lstrip(".")
    raise CheckpointError(
        f"{type(network).__name__} has no convolution of three channels, whose order could be reversed"
    )


def _numpy_type(tensor: paddle.Tensor) -> np.dtype[np.generic]:
    dtype: np.dtype[np.generic] = paddle.empty([0], tensor.dtype).numpy().dtype
    return dtype


def _value(found: Match, name: str, tensor: paddle.Tensor) -> NDArray[np.generic]:
    """The numbers of a tensor in the type of the network's."""
    stored, dtype = found.tensor(name), _numpy_type(tensor)
    if stored.dtype == np.uint16 and dtype.kind == "f":  # Paddle keeps bfloat16 so
        stored = stored.as_bfloat16()
    try:
        value = stored.numpy()
    except CheckpointError as error:
        message, path = str(error), str(found.weights.path)
        raise CheckpointError(message if message.startswith(path) else f"{path}: {message}") from None
    bad = find_nonfinite(value) if find_nonfinite(tensor.numpy()) is None else None  # a mask may hold -infinity
    if bad is not None:
        raise CheckpointError(f"{found.weights.path}: {found.sources[name]} holds {bad[1]:g}, expected finite numbers")
    return np.broadcast_to(value.astype(dtype), list(tensor.shape))


def _implied(kind: str, shape: list[int]) -> NDArray[np.float64]:
    if kind == "identity":
        return np.eye(shape[0], shape[1]).reshape(shape)
    return np.full(shape, {"zeros": 0.0, "ones": 1.0, "unit variance": 1.0 - 1e-5}[kind])
