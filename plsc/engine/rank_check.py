"""What all ranks of a run must have in common, compared before the first collective that depends on it.

Ranks that differ in a shape wait for each other without end or abort in the communication library; ranks that differ in
a seed or a learning rate train on in silence.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import platform
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import paddle

from plsc.checkpoint import Checkpoint
from plsc.config import Config
from plsc.distributed.agreement import agree, on_all_ranks
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.errors import DistributedError
from plsc.losses import Head
from plsc.utils.class_numbers import read_numbers
from plsc.utils.plural import counted
from plsc.version import __version__

log = logging.getLogger("plsc")

# Settings that may differ between ranks: paths, whose content is compared instead, and what concerns one process only.
OWN_SETTINGS = frozenset(
    {
        "cache_dir",
        "cache_gb",
        "center_dir",
        "checkpoint_dir",
        "cpu_threads",
        "dataset_dir",
        "logits",
        "max_last_checkpoint_num",
        "num_workers",
        "predict_reader",
        "pretrained",
        "rank_timeout",
        "test_batch_size",
        "val_dataset_dir",
        "worker_timeout",
    }
)
# Of these objects only the class is compared: their attributes may be paths or the rank. `describe_network` is the
# comparison of the backbone.
# Settings that may be paths of files with a number per class.
_FILES_OF_NUMBERS = ("class_weights", "class_counts")
_DATA_OBJECTS = frozenset({"train_dataset", "val_dataset", "test_dataset", "train_reader", "test_reader"})
_HARMLESS = frozenset({"version of Python"})  # a difference is a warning
_DIGEST_NUMBERS = 1 << 24  # of a tensor, read at a time
_LONGEST = 120  # characters of a value in a message


def check_ranks_agree(facts: Callable[[], Mapping[str, object]], collectives: Collectives) -> None:
    """Compare what ranks must have in common. Every rank must call this; a single rank has nothing to compare.

    Args:
        facts: returns small values by name, which are compared by their text.
        collectives: over the ranks.

    Raises:
        DistributedError: ranks differ; names each fact with its values and their ranks. The same on all ranks.
    """
    if collectives.topology.world_size == 1:
        return
    own = agree(lambda: {name: str(value) for name, value in facts().items()}, collectives, error=DistributedError)
    gathered = collectives.gather_objects(own)
    names = dict.fromkeys(name for found in gathered for name in found)
    by_rank = {name: _by_rank([found.get(name, "not there") for found in gathered]) for name in names}
    differences = {name: values for name, values in by_rank.items() if len(values) > 1}
    harmless = {name: differences.pop(name) for name in _HARMLESS & differences.keys()}
    if harmless and collectives.topology.is_main:
        log.warning("the ranks differ: %s", _list_differences(harmless))
    if differences:
        error = DistributedError(
            f"the ranks do not agree: {_list_differences(differences)}; start every rank with the same settings on the "
            f"same data (only {', '.join(sorted(OWN_SETTINGS))} may differ)"
        )
        raise on_all_ranks(error)


def check_copies(head: Head, collectives: Collectives) -> None:
    """Compare the rows of ranks that hold the same classes, which each of them updates alike. Every rank must call it.

    Args:
        head: made, and loaded where a run resumes. Where no class is on two ranks, nothing of it is read.
        collectives: over the ranks.

    Raises:
        DistributedError: they differ; the same on all ranks.
    """
    if collectives.topology.world_size == 1:
        return
    held = collectives.gather_objects(head.classes)
    if all(not classes.size or held.count(classes) == 1 for classes in held):
        return
    digests = collectives.gather_objects(_digest_of_rows(head))
    for rank, classes in enumerate(held):
        first = held.index(classes)
        if classes.size and digests[rank] != digests[first]:
            error = DistributedError(
                f"ranks {first} and {rank} both hold classes {classes.start} to {classes.stop - 1}, and begin with "
                f"different centers of them or another state of their optimizer; give every rank an initializer "
                f"(param_attr) that draws the same numbers, and the same checkpoint"
            )
            raise on_all_ranks(error)


def _digest_of_rows(head: Head) -> dict[str, int]:
    """By name, a checksum of each tensor that a head saves."""
    digests = {}
    for name, tensor in head.state().items():
        rows = tensor.detach() if tensor.shape else tensor.detach().reshape([1])
        digests[name], size = 0, max(1, _DIGEST_NUMBERS * rows.shape[0] // max(1, rows.size))
        for start in range(0, rows.shape[0], size):
            block = rows[start : start + size].clone().numpy()  # without the clone all would be copied
            digests[name] = zlib.crc32(block.tobytes(), digests[name])
    return digests


def _by_rank(values: list[str]) -> dict[str, list[int]]:
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return ranks


def _list_differences(differences: Mapping[str, Mapping[str, list[int]]]) -> str:
    return "; ".join(
        f"{name} is " + " and ".join(f"{_shorten(value)} on {_name_ranks(ranks)}" for value, ranks in values.items())
        for name, values in differences.items()
    )


def _shorten(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}..."


def _name_ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = ", ".join(map(str, ranks[:8]))
    return f"ranks {shown}" + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")


def describe_program(topology: Topology) -> dict[str, str]:
    """The version and code of the library, the versions of Paddle and of Python, and the kind of device."""
    return {
        "version of plsc": f"{__version__} ({_digest_of_sources()})",
        "version of Paddle": paddle.__version__,
        "device": "GPU" if topology.on_gpu else "CPU",
        "version of Python": ".".join(platform.python_version_tuple()[:2]),
    }


def _digest_of_sources() -> str:
    """A digest of this package's own files: two checkouts may have one version."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def describe_settings(config: Config, only: Collection[str] | None = None) -> dict[str, object]:
    """The settings that all ranks must share; of a Python object its class and its plain attributes.

    Args:
        config: the settings.
        only: their names; by default all but those that may differ.
    """
    names = only or [name for name in type(config).model_fields if name not in {*OWN_SETTINGS, "model"}]
    values = {name: getattr(config, name) for name in names}
    described = {
        name: _name_of(value) if name in _DATA_OBJECTS else describe_object(value) for name, value in values.items()
    }
    for name in _FILES_OF_NUMBERS:  # a file of the same name may hold other numbers
        if values.get(name):
            described[name] = f"{values[name]}: {read_numbers(name, values[name])}"
    return described


def describe_object(value: Any) -> object:
    """A value as it is alike in every process: a number or a text itself, else the name of the class or function.

    A `functools.partial` has its arguments added, another object its attributes that are numbers or texts.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(describe_object, value))
    if isinstance(value, (set, frozenset)):
        return sorted(str(describe_object(item)) for item in value)
    if isinstance(value, Mapping):
        return {str(key): describe_object(item) for key, item in value.items()}
    arguments: list[str] = []
    if isinstance(value, functools.partial):
        arguments = [str(describe_object(item)) for item in value.args]
        arguments += [f"{name}={describe_object(item)}" for name, item in value.keywords.items()]
        value = value.func
    elif not hasattr(value, "__qualname__"):  # neither a class nor a function
        arguments = [f"{name}={item}" for name, item in _plain_attributes(value).items()]
    return f"{_name_of(value)}({', '.join(arguments)})" if arguments else _name_of(value)


def _name_of(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_name_of, value))}]"
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}" if value is not None else "None"


def _plain_attributes(value: Any) -> dict[str, object]:
    attributes: Mapping[str, object] = getattr(value, "__dict__", {})
    return {name: item for name, item in attributes.items() if isinstance(item, (bool, int, float, str))}


def describe_checkpoint(saved: Checkpoint | None) -> str | None:
    """The name of a checkpoint, and a digest of what its manifest says of the run."""
    return None if saved is None else f"{saved.path.name} ({saved.digest[:12]})"


def describe_network(backbone: paddle.nn.Layer) -> str:
    """The class of a network, and a digest of the names, shapes and types of its tensors."""
    tensors = [(name, list(value.shape), str(value.dtype)) for name, value in backbone.state_dict().items()]
    digest = hashlib.sha256(repr(tensors).encode()).hexdigest()[:12]
    return f"{type(backbone).__qualname__} of {counted(len(tensors), 'tensor')} ({digest})"
