"""What the training of another library has saved: its network, the class centers of all its ranks, their momentum.

arcface_torch     checkpoint_gpu_0.pt, ...           all states; 'weight' of the head [S, D]
                  rank_0_softmax_weight.pt, ...      a tensor [S, D]; rank_0_softmax_weight_mom.pt; backbone.pth
PLSC 2.x          latest.pdparams                    the network; latest_rank0.pdparams, ... 'head.weight' [D, S];
                                                         latest.pdopt, latest_rank0.pdopt, ... the momentum
PLSC 0.x          dist@arcface@rank@00000.w_0, ...   a tensor [D, S]; a file for each tensor of the network
AdaFace           a file with 'head.kernel' [D, C]
any               a network alone
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plsc.errors import CheckpointError
from plsc.pretrained.opening import Weights, open_weights
from plsc.pretrained.paddle_file import read_paddle, read_variable
from plsc.pretrained.plsc0 import open_network
from plsc.pretrained.schemes import IGNORED
from plsc.pretrained.shards import check_ranks, check_sizes
from plsc.pretrained.tensors import StoredTensor
from plsc.utils.plural import counted

_STATES = re.compile(r"checkpoint_gpu_(\d+)\.pt")
_CENTERS = re.compile(r"rank_(\d+)_softmax_weight\.pt")
_OF_RANK = re.compile(r"(.*)_rank(\d+)\.pdparams")
_VARIABLE = re.compile(r"dist@.+@rank@(\d+)\.(w|b)_0(_velocity_0)?")
_BACKBONES = ("backbone.pth", "model.pt", "backbone.pt")
_STATISTICS = re.compile(r"\.running_(mean|var)$")
_NAMES = "StructuredToParameterName@@"  # a dict in files of Paddle: name of a tensor -> Paddle's name of the parameter
# Statistics of pixels of 0 to 255: arcface_torch, AdaFace and PLSC 2.x map them to -1 to 1, PLSC 0.x as here.
_TO_ONE, _AS_HERE = 127.5, 128.0


@dataclass(frozen=True, kw_only=True)
class Training:
    """What was found.

    Attributes:
        kind: the library.
        backbone: the network; None where no file holds it.
        head: 'weight', 'bias', each also with ':velocity' -> the shards [S, D] or [S] of all ranks, in order. Empty
            where there is no head.
        momentum: name in the backbone's file -> its velocity.
        epoch: epochs done.
        step: steps done.
        head_name: the name of the head where it lies in the file of the network, else ''.
        pixel_std: what pixels of 0 to 255, less 127.5, were divided by.
        notes: what was found and is not taken over, as sentences.
    """

    kind: str
    backbone: Weights | None
    head: Mapping[str, list[StoredTensor]]
    momentum: Mapping[str, StoredTensor] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    head_name: str = ""
    pixel_std: float = _TO_ONE
    notes: tuple[str, ...] = ()


def open_training(source: Path) -> Training:
    """Find out what a folder or a file holds, and open it. Nothing is read but names and shapes.

    Args:
        source: a folder that a training wrote, or a file: a network with or without its head.

    Raises:
        CheckpointError: there is nothing that is known, a rank's file is missing, shards do not fit together, or a file
            is damaged or asks for something that does not belong beside weights.
    """
    try:
        if source.is_dir():
            return _open_folder(source)
        beside = _of_paddle(source) if source.suffix == ".pdparams" else {}
        return _open_paddle(source, beside) if beside else _open_file(source)
    except CheckpointError as error:
        message = str(error)
        raise CheckpointError(message if message.startswith(str(source)) else f"{source}: {message}") from None


def _open_folder(folder: Path) -> Training:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if states := _by_rank(files, _STATES):
        return _open_states(states)
    if centers := _by_rank(files, _CENTERS):
        return _open_centers(folder, centers)
    if any(_VARIABLE.fullmatch(path.name) for path in files):
        return _open_variables(files)
    networks = [path for path in files if path.suffix == ".pdparams" and not _OF_RANK.fullmatch(path.name)]
    if len(networks) == 1:
        return open_training(networks[0])
    if networks:
        raise CheckpointError(f"holds {', '.join(path.name for path in networks)}; name one of them")
    raise CheckpointError(
        "holds no files of a training that are known: checkpoint_gpu_0.pt, rank_0_softmax_weight.pt, "
        "dist@...@rank@00000.w_0, latest.pdparams and latest_rank0.pdparams; or name a file of weights"
    )


def _by_rank(files: list[Path], pattern: re.Pattern[str]) -> list[Path]:
    """The files of all ranks in order; empty where there are none."""
    found = {int(match[1]): path for path in files if (match := pattern.fullmatch(path.name))}
    if found:
        check_ranks([*found], what=pattern.pattern.replace(r"(\d+)", "*").replace("\\", ""))
    return [found[rank] for rank in sorted(found)]


def _open_states(paths: list[Path]) -> Training:
    """arcface_torch, all states: a file per rank, each with the same network and its own class centers."""
    opened = [open_weights(path) for path in paths]
    contents = [weights.content for weights in opened]
    if any(not isinstance(content, dict) or "state_dict_softmax_fc" not in content for content in contents):
        raise CheckpointError("a file has no state_dict_softmax_fc, expected that of arcface_torch's save_all_states")
    weights = [_only_tensor(content["state_dict_softmax_fc"]) for content in contents]
    check_sizes([tensor.shape[0] for tensor in weights], by="evenly")
    head = {"weight": weights}
    velocities = [_head_velocity(content, weight) for content, weight in zip(contents, weights)]
    if all(velocity is not None for velocity in velocities):
        head["weight:velocity"] = [velocity for velocity in velocities if velocity is not None]
    momentum = _backbone_momentum(opened[0])
    epoch, step = (contents[0].get(key) for key in ("epoch", "global_step"))
    return Training(
        kind="arcface_torch",
        backbone=opened[0],
        head=head,
        momentum=momentum,
        epoch=epoch if isinstance(epoch, int) and epoch >= 0 else 0,
        step=step if isinstance(step, int) and step >= 0 else 0,
        notes=_missing_momentum(head, momentum),
    )


def _only_tensor(state: Any) -> StoredTensor:
    """The class centers [S, D] in the state of a head."""
    tensors = [value for value in state.values() if isinstance(value, StoredTensor)] if isinstance(state, dict) else []
    matrices = [value for value in tensors if len(value.shape) == 2]
    if len(matrices) != 1:
        raise CheckpointError(
            f"the head has {counted(len(matrices), 'tensor')} of two axes, expected one: the class centers [classes, D]"
        )
    return matrices[0]


def _head_velocity(content: dict[str, Any], weight: StoredTensor) -> StoredTensor | None:
    """The momentum of a shard; None where there is none of all its rows, as with sampled classes."""
    groups, state = _optimizer(content)
    found = _velocity(state, groups[-1][-1]) if groups and groups[-1] else None
    return found if found is not None and found.shape == weight.shape else None


def _backbone_momentum(weights: Weights) -> dict[str, StoredTensor]:
    """Name -> momentum: the optimizer counts the parameters of the network in the order of its state."""
    groups, state = _optimizer(weights.content)
    names = [name for name in weights.tensors if not _STATISTICS.search(name) and not IGNORED.search(name)]
    if not groups or len(groups[0]) != len(names):
        return {}
    found = {name: _velocity(state, number) for name, number in zip(names, groups[0])}
    return {
        name: tensor
        for name, tensor in found.items()
        if tensor is not None and tensor.shape == weights.tensors[name].shape
    }


def _optimizer(content: dict[str, Any]) -> tuple[list[list[Any]], dict[Any, Any]]:
    """(numbers of the parameters of each group, state by number) of an optimizer of PyTorch."""
    optimizer = content.get("state_optimizer")
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("state"), dict):
        return [], {}
    groups = optimizer.get("param_groups")
    lists = [group.get("params") for group in groups if isinstance(group, dict)] if isinstance(groups, list) else []
    return [numbers for numbers in lists if isinstance(numbers, list)], optimizer["state"]


def _velocity(state: dict[Any, Any], number: Any) -> StoredTensor | None:
    own = state.get(number) if isinstance(number, int) else None
    found = own.get("momentum_buffer") if isinstance(own, dict) else None
    return found if isinstance(found, StoredTensor) else None


def _open_centers(folder: Path, paths: list[Path]) -> Training:
    """arcface_torch of before 2022: a file of class centers per rank, one of their momentum, and the network."""
    head = {"weight": [_tensor_of(path) for path in paths]}
    check_sizes([tensor.shape[0] for tensor in head["weight"]], by="evenly")
    momentum = [path.with_name(f"{path.stem}_mom.pt") for path in paths]
    if all(path.is_file() for path in momentum):
        head["weight:velocity"] = [_tensor_of(path) for path in momentum]
    backbone = next((folder / name for name in _BACKBONES if (folder / name).is_file()), None)
    return Training(
        kind="arcface_torch",
        backbone=None if backbone is None else open_weights(backbone),
        head=head,
        notes=_missing_momentum(head, {}),
    )


def _tensor_of(path: Path) -> StoredTensor:
    content = open_weights(path).content
    if not isinstance(content, StoredTensor):
        raise CheckpointError(f"{path}: holds several tensors, expected one: class centers [classes, D]")
    return content


def _of_paddle(path: Path) -> dict[int, Path]:
    """The files of ranks that belong to a file of PLSC 2.x."""
    found = {match[2]: file for file in path.parent.iterdir() if (match := _OF_RANK.fullmatch(file.name))}
    return {
        int(rank): file for rank, file in found.items() if file == path.with_name(f"{path.stem}_rank{rank}.pdparams")
    }


def _open_paddle(path: Path, beside: Mapping[int, Path]) -> Training:
    """PLSC 2.x: the network, and a file of class centers [D, S] per rank; beside each one of the optimizer's state."""
    check_ranks([*beside], what=f"{path.stem}_rank*.pdparams")
    files = [beside[rank] for rank in sorted(beside)]
    shards = [open_weights(file).tensors for file in files]
    if any(len(tensors) != 1 for tensors in shards):
        raise CheckpointError("a rank's file holds several tensors, expected one: class centers [D, classes]")
    head = {"weight": [next(iter(tensors.values())).transposed() for tensors in shards]}
    check_sizes([tensor.shape[0] for tensor in head["weight"]], by="rounded up")
    velocities = [[tensor.transposed() for tensor in _paddle_momentum(file).values()] for file in files]
    if all(len(own) == 1 and own[0].shape == weight.shape for own, weight in zip(velocities, head["weight"])):
        head["weight:velocity"] = [own[0] for own in velocities]
    backbone = open_weights(path)
    names = backbone.content.get(_NAMES) if isinstance(backbone.content, dict) else None
    own = _paddle_momentum(path)
    named = names.items() if isinstance(names, dict) else ()
    momentum = {name: own[of] for name, of in named if isinstance(of, str) and of in own}
    notes = _missing_momentum(head, momentum)
    return Training(kind="PLSC 2.x", backbone=backbone, head=head, momentum=momentum, notes=notes)


def _paddle_momentum(path: Path) -> dict[str, StoredTensor]:
    """Paddle's name of a parameter -> its momentum, in the file of PLSC 2.x's optimizer beside one of parameters."""
    path = path.with_suffix(".pdopt")
    if not path.is_file():
        return {}
    try:
        content = read_paddle(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from None
    state = content.get("state") if isinstance(content, dict) else None
    found = {name: own for name, own in state.items() if isinstance(own, dict)} if isinstance(state, dict) else {}
    # AdamW has a mean of the gradient under the same name.
    return {
        name: own["exp_avg"]
        for name, own in found.items()
        if isinstance(own.get("exp_avg"), StoredTensor) and "exp_avg_sq" not in own
    }


def _missing_momentum(head: Mapping[str, list[StoredTensor]], momentum: Mapping[str, StoredTensor]) -> tuple[str, ...]:
    """What is said of momentum that is not there."""
    missing = ["all class centers"] if "weight:velocity" not in head else []
    missing += ["the network"] if not momentum else []
    return tuple(f"no momentum of {what} was found: it begins at zero" for what in missing)


def _open_file(path: Path) -> Training:
    """A network, and its head where the file has one."""
    weights = open_weights(path)
    if not weights.tensors:
        raise CheckpointError("holds one tensor without a name, expected a state_dict; name the folder of a training")
    content = weights.content if isinstance(weights.content, dict) else {}
    if isinstance(content.get("state_dict_softmax_fc"), dict):
        raise CheckpointError("is the file of one rank; name the folder with the files of all ranks")
    found = next((name for name in ("head.kernel", "head.weight") if name in weights.tensors), None)
    is_head = found == "head.kernel" or (found is not None and weights.kind == "Paddle's file")
    if found is None or not is_head or len(weights.tensors[found].shape) != 2:
        return Training(kind=weights.kind, backbone=weights, head={})
    head = {"weight": [weights.tensors[found].transposed()]}
    return Training(kind=f"{weights.kind} with a head", backbone=weights, head=head, head_name=found)


def _open_variables(files: list[Path]) -> Training:
    """PLSC 0.x: a file per tensor; those of the class centers [D, S] and the bias [S] have the rank in their names."""
    head: dict[str, dict[int, StoredTensor]] = {}
    for path, match in _matches(files):
        name = {"w": "weight", "b": "bias"}[match[2]] + (":velocity" if match[3] else "")
        tensor = _read_variable(path)
        head.setdefault(name, {})[int(match[1])] = tensor.transposed() if match[2] == "w" else tensor
    for name, shards in head.items():
        check_ranks([*shards], what=f"{name} of the class centers")
    if "weight" not in head or any(len(shards) != len(head["weight"]) for shards in head.values()):
        raise CheckpointError("the files of the class centers are not of the same ranks; put the files of all there")
    joined = {name: [shards[rank] for rank in sorted(shards)] for name, shards in head.items()}
    check_sizes([tensor.shape[0] for tensor in joined["weight"]], by="rounded up")
    return Training(
        kind="PLSC 0.x",
        backbone=open_network(files),
        head=joined,
        pixel_std=_AS_HERE,
        notes=_missing_momentum(joined, {}),
    )


def _matches(files: list[Path]) -> Iterator[tuple[Path, re.Match[str]]]:
    for path in files:
        if match := _VARIABLE.fullmatch(path.name):
            yield path, match


def _read_variable(path: Path) -> StoredTensor:
    try:
        return read_variable(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from None
