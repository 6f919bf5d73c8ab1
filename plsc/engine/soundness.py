"""The judgment of training steps: whether every number that a step made is one to go on with.

The loss alone does not tell. A ReLU turns NaN into 0 on some devices, and batch normalization divides an infinite
variance away, so that a network can be destroyed behind a finite loss. Judged are, in the order in which a step makes
them: images that came as float32, running statistics, features, the loss, its gradient by the features, the gradients
of the backbone, its parameters after the update, and the class centers where that costs nothing.

A tensor is sound where the sum of its squares is finite in float32: it holds no NaN, no infinity, and no number of
1.8e19 or more, whose square no batch normalization and no norm can hold. The device makes the sums of all tensors,
one operator per tensor, and brings them into one number, which is NaN where any tensor of any rank is not sound. That
number is read when the next step begins, on a GPU some steps later, or at once where a step may be left out.

N batch on this rank, D embedding.
"""

from __future__ import annotations

import enum
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle

from plsc.distributed.collectives import Collectives
from plsc.engine.transfer import Read, Transfers
from plsc.losses import Head
from plsc.losses.ops import no_grad, sums_of_squares
from plsc.utils.finite import find_nonfinite

log = logging.getLogger("plsc")

_PIECE = 1 << 22  # elements that are converted to float32 at a time
LIMIT = math.sqrt(float(np.finfo(np.float32).max))  # 1.8e19

# Row of this rank's batch -> the sample in words.
Describe = Callable[[int], str]


class Stage(enum.IntEnum):
    """What a tensor is, in the order of a step."""

    INPUT = 0
    STATISTIC = 1
    FEATURES = 2
    CENTERS_BEFORE = 3
    LOSS = 4
    FEATURE_GRADIENT = 5
    SCALED_GRADIENT = 6
    GRADIENT = 7
    PARAMETER = 8
    CENTERS = 9


# Stages whose tensors hold one row per sample.
_PER_SAMPLE = {
    Stage.INPUT: "the input, {sample}, {holds}",
    Stage.FEATURES: "the feature vector of {sample} {holds}",
    Stage.FEATURE_GRADIENT: "the gradient of the loss by the features of {sample} {holds}",
}


class Finding(NamedTuple):
    """The first tensor of a step that is not sound.

    Attributes:
        stage: what it is.
        rank: the rank that has it.
        text: the tensor, the sample or the element, and what it holds, for messages.
    """

    stage: Stage
    rank: int
    text: str


class _Entry(NamedTuple):
    stage: Stage
    name: str
    tensor: paddle.Tensor | None  # None where it is gone when it is asked about


class Evidence:
    """The tensors of one step by which it is judged, and the sums of their squares.

    Args:
        collectives: over the ranks that judge together.
        transfers: bring the verdict to the host.
    """

    def __init__(self, collectives: Collectives, transfers: Transfers) -> None:
        self._collectives, self._transfers = collectives, transfers
        self._entries: list[_Entry] = []
        self._sums: list[paddle.Tensor] = []
        self._read: Read | None = None
        self._found: list[float] = []

    def add(self, stage: Stage, tensors: Mapping[str, paddle.Tensor], *, keep: bool = True) -> None:
        """Add tensors by name.

        Args:
            stage: what they are.
            tensors: of a float type.
            keep: hold them until the judgment, so that it can name the element.
        """
        if tensors:
            self._entries += [_Entry(stage, name, tensor if keep else None) for name, tensor in tensors.items()]
            pieces = [_pieces(tensor) for tensor in tensors.values()]
            sums = sums_of_squares([piece for own in pieces for piece in own])
            if len(sums) > len(pieces):
                sums = paddle.stack([part.sum() for part in paddle.split(sums, [len(own) for own in pieces])])
            self._sums.append(sums)

    def add_overflow(self, found: paddle.Tensor) -> None:
        """Add whether a gradient of this rank overflowed, [1] bool, where it was multiplied by a loss scale."""
        infinite = paddle.where(found, paddle.full([1], math.inf), paddle.zeros([1]))
        self.add_sum(Stage.SCALED_GRADIENT, "gradient", sum_of_squares=infinite)

    def add_sum(self, stage: Stage, name: str, *, sum_of_squares: paddle.Tensor) -> None:
        """Add a tensor of which only the sum of its squares, of one element, is known."""
        self._entries.append(_Entry(stage, name, None))
        self._sums.append(sum_of_squares.reshape([1]).astype("float32"))

    @no_grad
    def close(self, notices: Sequence[float] = ()) -> None:
        """Bring all sums of all ranks into one number. Nothing is added afterwards.

        Args:
            notices: numbers of this rank that are summed over ranks on the way; as many on every rank.
        """
        self._sums = [paddle.concat(self._sums)]  # what was added may be written to before it is asked about
        # Finite times 0 is 0; NaN and infinity times 0 are NaN, which every sum over ranks keeps.
        verdict = (self._sums[0] * 0.0).sum().reshape([1])
        if notices:  # a number for an operator is no copy to the device, as that of a list would be
            verdict = paddle.concat([verdict, *(paddle.full([1], number, "float32") for number in notices)])
        self._read = self._transfers.to_host(self._collectives.all_reduce_sum(verdict))

    def is_sound(self) -> bool:
        """Whether all tensors of all ranks are sound; the same answer on every rank. Waits until they are computed."""
        return math.isfinite(self._numbers()[0])

    def notices(self) -> list[float]:
        """The sums over ranks of what `close` was given; the same on every rank. Waits as well."""
        return self._numbers()[1:]

    def _numbers(self) -> list[float]:
        if self._read is None:
            self.close()
        if not self._found and self._read is not None:
            self._found = self._read()
        return self._found

    def find(self, describe: Describe, head: Head, *, is_updated: bool) -> Finding:
        """What was found first, over all ranks; every rank must call this, where `is_sound` is False.

        Args:
            describe: names a sample of this rank's batch.
            head: names a class center.
            is_updated: whether the step has moved the head. Before that, centers that are not sound explain the loss.
        """
        topology = self._collectives.topology
        own = self._find_own(describe, head, is_updated)
        found = self._collectives.gather_objects(None if own is None else Finding(own[0], topology.rank, own[1]))
        first = min((one for one in found if one is not None), key=lambda one: (one.stage, one.rank))
        return first._replace(text=f"{first.text} (rank {first.rank})") if topology.world_size > 1 else first

    def _find_own(self, describe: Describe, head: Head, is_updated: bool) -> tuple[Stage, str] | None:
        sums = paddle.concat(self._sums).numpy()
        bad = np.flatnonzero(~np.isfinite(sums)).tolist()
        if not bad:
            return None
        index = min(bad, key=lambda place: self._entries[place].stage)
        entry = self._entries[index]
        explained_by_centers = not is_updated and entry.stage in (Stage.LOSS, Stage.FEATURE_GRADIENT, Stage.GRADIENT)
        if entry.stage is Stage.CENTERS or explained_by_centers:
            text = find_center(head)
            if text is not None:
                return (Stage.CENTERS, f"after the update {text}") if is_updated else (Stage.CENTERS_BEFORE, text)
        return entry.stage, _explain(entry, float(sums[index]), describe)


def find_center(head: Head) -> str | None:
    """The first class center that is not sound, in words; None where all are. Reads all of them."""
    for name, parameter in head.parameters.items():
        if not parameter.shape[0] or np.isfinite(sums_of_squares(_pieces(parameter)).sum().item()):
            continue
        index, value = _first_unsound(parameter)
        return f"{name} of the head, class {head.classes.start + index[0]}, {_holds(value)}"
    return None


class _Slot(NamedTuple):
    """Where a layer keeps a tensor that no optimizer moves: a forward may replace the tensor itself."""

    name: str
    tensors: dict[str, Any]
    key: str

    @property
    def tensor(self) -> paddle.Tensor | None:
        tensor: paddle.Tensor | None = self.tensors.get(self.key)
        return tensor


Snapshot = list[tuple[_Slot, paddle.Tensor | None, paddle.Tensor | None]]


class BackboneState:
    """The tensors of a backbone: those that the optimizer moves, and those that a forward pass may move.

    The latter are running statistics and other buffers. One that is not sound when training begins, as a mask of
    -infinity, is taken for a constant.

    Args:
        backbone: the network. It keeps its layers.
    """

    def __init__(self, backbone: paddle.nn.Layer) -> None:
        self._trained = {name: tensor for name, tensor in backbone.named_parameters() if not tensor.stop_gradient}
        self._slots = list(_slots(backbone))
        self.constants = {slot.name for slot in self._slots if not _is_sound(slot.tensor)}
        for name in sorted(self.constants):
            log.info("'%s' of the network is not finite from the start: it is taken for a constant", name)

    @property
    def parameters(self) -> dict[str, paddle.Tensor]:
        """The trained tensors by name."""
        return self._trained

    def gradients(self) -> dict[str, paddle.Tensor]:
        """The gradients of the parameters that have one."""
        found = ((name, tensor.grad) for name, tensor in self._trained.items())
        return {name: gradient for name, gradient in found if gradient is not None and gradient.is_dense()}

    def statistics(self) -> dict[str, paddle.Tensor]:
        """The float tensors that a forward may move, constants left out."""
        found = ((slot.name, slot.tensor) for slot in self._slots if slot.name not in self.constants)
        return {name: tensor for name, tensor in found if tensor is not None and tensor.is_floating_point()}

    @no_grad
    def copy(self) -> Snapshot:
        """A copy of all that a forward may move."""
        found = [(slot, slot.tensor) for slot in self._slots]
        return [(slot, tensor, None if tensor is None else tensor.clone()) for slot, tensor in found]

    @no_grad
    def restore(self, snapshot: Snapshot) -> None:
        """Set all that a forward may move to what `copy` returned."""
        for slot, tensor, value in snapshot:
            slot.tensors[slot.key] = tensor
            if tensor is not None:
                paddle.assign(value, tensor)


def _slots(backbone: paddle.nn.Layer) -> Iterator[_Slot]:
    seen: set[int] = set()
    for prefix, layer in backbone.named_sublayers(include_self=True):
        for tensors in (layer._parameters, layer._buffers):
            for key, tensor in tensors.items():
                # Paddle keeps the statistics of batch normalization as parameters without a gradient.
                if tensor is not None and (
                    id(tensor) in seen or (tensors is layer._parameters and not tensor.stop_gradient)
                ):
                    continue
                seen.add(id(tensor))
                yield _Slot(f"{prefix}.{key}" if prefix else key, tensors, key)


def _is_sound(tensor: paddle.Tensor | None) -> bool:
    if tensor is None or not tensor.is_floating_point():
        return True
    return math.isfinite(sums_of_squares([tensor]).item())


def _explain(entry: _Entry, total: float, describe: Describe) -> str:
    """An entry that is not sound, in words."""
    if entry.stage is Stage.SCALED_GRADIENT:
        return "a gradient, times the loss scale, is beyond float16"
    held = f"holds {'nan' if math.isnan(total) else 'infinity, or numbers too large to be squared'}"
    row = None
    if entry.tensor is not None:
        index, value = _first_unsound(entry.tensor)
        held, row = _holds(value), index[0] if index else None
    if entry.stage in _PER_SAMPLE and row is not None:
        return _PER_SAMPLE[entry.stage].format(sample=describe(row), holds=held)
    if entry.stage is Stage.LOSS:
        return f"the loss {held.replace('holds', 'is')}"
    what = {
        Stage.STATISTIC: "the running statistic",
        Stage.GRADIENT: "the gradient of the parameter",
        Stage.PARAMETER: "after the update the parameter",
        Stage.CENTERS: "after the update the head's",
    }.get(entry.stage, "the")
    return f"{what} '{entry.name}' {held}"


def _holds(value: float) -> str:
    """What a tensor holds that `_first_unsound` has looked at."""
    if not math.isfinite(value):
        return f"holds {value:g}"
    if abs(value) >= LIMIT:
        return f"holds {value:g}, whose square is beyond float32"
    return f"holds numbers up to {abs(value):g}, and the sum of their squares is beyond float32"


def _first_unsound(tensor: paddle.Tensor) -> tuple[tuple[int, ...], float]:
    """(index, value) of the first element that is not sound, or of the largest where only the sum is too large."""
    first, greatest = 0, _behind(0, (), 0.0)
    for piece in _pieces(tensor.detach(), most=_PIECE):
        array = piece.clone().astype("float32").numpy()  # without the clone the whole tensor would be copied
        found = find_nonfinite(array, LIMIT)
        if found is not None:
            return _behind(first, *found)
        place = np.unravel_index(int(np.abs(array).argmax()), array.shape)
        if abs(array[place]) >= abs(greatest[1]):
            greatest = _behind(first, tuple(int(axis) for axis in place), float(array[place]))
        first += len(array) if array.shape else 1
    return greatest


def _behind(first: int, index: tuple[int, ...], value: float) -> tuple[tuple[int, ...], float]:
    """(index, value) of an element of a piece in the whole tensor, of which the piece begins at a row."""
    return ((first + index[0], *index[1:]) if index else ()), value


def _pieces(tensor: paddle.Tensor, *, most: int | None = None) -> list[paddle.Tensor]:
    """A tensor in blocks of rows, of so many elements each; whole where it is float32, which nothing converts."""
    most = most or (_PIECE if tensor.dtype != paddle.float32 else tensor.size)
    if not tensor.shape or tensor.size <= most:
        return [tensor]
    rows = max(1, most * tensor.shape[0] // tensor.size)
    return [tensor[start : start + rows] for start in range(0, tensor.shape[0], rows)]
