"""The tensors of a run as parts of a checkpoint, and loaded from one."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from plsc.checkpoint import Checkpoint, Part, reading
from plsc.config import Config
from plsc.distributed.agreement import explain
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.engine.about import About
from plsc.engine.class_change import rows_of_classes
from plsc.engine.freezing import frozen_names
from plsc.engine.optimizer import NamedOptimizer
from plsc.engine.tensor_rows import CheckpointState, TensorRows
from plsc.errors import CheckpointError, ConfigError
from plsc.losses import MARGIN_STATE, Head
from plsc.models.base_model import build_backbone, network_name
from plsc.utils.finite import find_nonfinite
from plsc.utils.hints import either, setter
from plsc.utils.plural import counted
from plsc.utils.ranges import Range

log = logging.getLogger("plsc")

# Kinds of head optimizers that were the same with another storage.
_FORMER_KINDS = {"HalfMomentum": "Momentum"}

NETWORK_SETTINGS = ("emb_dim", "image_shape", "model_name", "flip", "pixel_mean", "pixel_std")


def backbone_parts(
    backbone: paddle.nn.Layer,
    optimizer: NamedOptimizer,
    *,
    averages: Mapping[str, NDArray[Any]],
    constants: Collection[str] = (),
) -> list[Part]:
    """The backbone and its optimizer state, for rank 0 to write.

    Args:
        backbone: the network.
        optimizer: of its parameters.
        averages: what is written in place of tensors of these names.
        constants: names of its tensors that may hold NaN or infinity, as a mask does.
    """
    state = optimizer.state().items()
    return [
        *(
            Part(
                f"backbone.{name}",
                averages[name] if name in averages else TensorRows(value),
                is_finite=name not in constants,
            )
            for name, value in backbone.state_dict().items()
        ),
        *(Part(f"optimizer.{name}", TensorRows(value)) for name, value in state),
    ]


def head_parts(head: Head, is_main: bool, *, num_classes: int) -> list[Part]:
    """What this rank writes of the head and its optimizer state: its shard, and on rank 0 whole tensors.

    Args:
        head: the head. Rows that several ranks hold are written by the first of them.
        is_main: whether this is rank 0.
        num_classes: C.
    """
    is_copy = getattr(head, "is_copy", False)  # a head that is no subclass of `Head` may not say it
    writes_rows = is_main or not (is_copy or head.classes == Range(0, num_classes))
    parts = []
    for name, value in head.state().items():
        rows: dict[str, Any] = {}
        if head.has_row_per_class(name):
            rows = {"offset": head.classes.start, "rows": num_classes}
        if writes_rows if rows else is_main:
            parts.append(Part(f"head.{name}", TensorRows(value), **rows, may_copy=_may_copy(head, name)))
    return parts


def _may_copy(head: Head, name: str) -> bool:
    # A user's head may have the other methods of `Head` without deriving from it.
    return bool(getattr(head, "may_copy", lambda name: True)(name))


def load_backbone(
    backbone: paddle.nn.Layer, saved: Checkpoint, *, config: Config, other_embedding: bool | None = None
) -> None:
    """Load the weights of a backbone.

    Args:
        backbone: what to load.
        saved: the checkpoint.
        config: the settings.
        other_embedding: whether the embedding size may be another one: tensors that have it in their shape stay as
            they are then. None where nothing is trained.

    Raises:
        CheckpointError: the checkpoint has another embedding size, is of another network, or holds a number that is
            not finite.
    """
    about = About.of(saved)
    if not other_embedding:
        new_head = f", or {setter('class_change', 'new_head')} to begin the embedding layer and all centers anew"
        new_head = "" if other_embedding is None else new_head
        _check_setting(saved, about.settings.emb_dim, config.emb_dim, "embedding size", "emb_dim", advice=new_head)
    expected, anew = backbone.state_dict(), []
    names = {name[len("backbone.") :] for name in saved.names("backbone.")}
    if names != set(expected):
        odd = sorted(names ^ set(expected))
        raise CheckpointError(
            f"{saved.path}: its network is {_network_of(about)}, this run's is {network_name(backbone)}; they differ "
            f"in {counted(len(odd), 'tensor')}, the first '{odd[0]}'; {_how_to_give_network(about)}; to begin with "
            f"those weights of another network that fit: {setter('pretrained', str(saved.path))} in place of "
            f"{setter('checkpoint_dir')}"
        )
    for name, tensor in expected.items():
        shape = saved.shape(f"backbone.{name}")
        if shape != list(tensor.shape):
            sizes = (about.settings.emb_dim, config.emb_dim)
            if other_embedding and _has_other_embedding(shape, list(tensor.shape), sizes):
                anew.append(name)
                continue
            raise CheckpointError(
                f"{saved.path}: backbone '{name}' is {shape}, expected {list(tensor.shape)}; it was "
                f"trained with image_shape {tuple(about.settings.image_shape)}"
            )
        is_constant = find_nonfinite(tensor.numpy()) is not None  # as a mask of -infinity
        value = saved.read(f"backbone.{name}", is_finite=not is_constant)
        with reading(saved.path, f"tensor 'backbone.{name}' "):
            tensor.set_value(value)
    if anew:
        log.info(
            "%s: its embedding size is %d, this run's is %d: %s of the network begin anew: %s",
            saved.path,
            about.settings.emb_dim,
            config.emb_dim,
            counted(len(anew), "tensor"),
            ", ".join(anew),
        )
    if about.network not in (None, network_name(backbone)):
        log.warning(
            "%s: its network is %s, this run's is %s; their tensors have the same names and shapes, and are loaded",
            saved.path,
            about.network,
            network_name(backbone),
        )


def load_training(
    head: Head,
    optimizer: NamedOptimizer,
    *,
    saved: Checkpoint,
    config: Config,
    rows: NDArray[np.int64] | None = None,
) -> None:
    """Load the head and the state of both optimizers; any number of ranks may have written the checkpoint.

    Args:
        head: what to load.
        optimizer: of the backbone.
        saved: the checkpoint.
        config: the settings.
        rows: [C], for each class the checkpoint's row of it, -1 for a class that stays as it is; by default row c is
            of class c.

    Raises:
        CheckpointError: the checkpoint has another number of classes, is of another kind of loss, or holds a number
            that is not finite.
    """
    about = About.of(saved)
    if rows is None:
        _check_setting(saved, about.settings.num_classes, config.num_classes, "class number", "num_classes")
    to_one = ", keep one center of each class with plsc checkpoint subcenters" if config.subcenters == 1 else ""
    advice = f"{to_one}, {setter('class_change', 'new_head')} to begin all centers anew"
    _check_setting(
        saved, about.settings.subcenters, config.subcenters, "number of centers per class", "subcenters", advice=advice
    )
    kinds = {"optimizer": optimizer.kind, "head_optimizer": head.optimizer_kind}
    before = {"optimizer": about.optimizer, "head_optimizer": about.head_optimizer}
    before["head_optimizer"] = _FORMER_KINDS.get(str(about.head_optimizer), about.head_optimizer)
    same = {name: before[name] == kind for name, kind in kinds.items()}
    for name, kind in kinds.items():
        if not same[name]:
            log.warning(
                "%s was trained with another %s, %s: the state of %s starts from zero",
                saved.path,
                name.replace("_", " "),
                before[name],
                kind,
            )
    keys = [
        key
        for key in _keys(saved, "head.")
        if key in head.parameters or key.startswith(MARGIN_STATE) or same["head_optimizer"]
    ]
    missing = set(head.parameters) - set(keys)
    if missing:
        raise CheckpointError(
            f"{saved.path}: the checkpoint was trained with loss_type '{about.settings.loss_type}' and "
            f"holds no head {sorted(missing)[0]}, which '{config.loss_type}' needs; "
            f"{setter('loss_type', about.settings.loss_type)} as in training, or "
            f"{setter('class_change', 'new_head')} to keep the backbone alone, or train a new run without "
            f"{setter('checkpoint_dir')}"
        )
    with reading(saved.path, "the head "):
        own = head.classes if rows is None else rows_of_classes(rows[head.classes.start : head.classes.stop])
        head.load(
            CheckpointState(saved, "head.", keys, rows_of=lambda key: own if head.has_row_per_class(key) else None)
        )
    if same["optimizer"]:
        with reading(saved.path, "the state of the optimizer "):
            # What is frozen has no state any more.
            held = set(saved.names("backbone."))
            keys = [key for key in _keys(saved, "optimizer.") if not _is_frozen(key, optimizer, held)]
            optimizer.load(CheckpointState(saved, "optimizer.", keys))


def _is_frozen(key: str, optimizer: NamedOptimizer, held: Collection[str]) -> bool:
    """Whether state of an optimizer is that of a parameter of the network that is not trained any more."""
    name = key.rpartition(":")[0]
    return f"backbone.{name}" in held and name not in optimizer.parameters


def _keys(saved: Checkpoint, prefix: str) -> list[str]:
    return [name[len(prefix) :] for name in saved.names(prefix)]


def open_backbone(config: Config) -> tuple[paddle.nn.Layer, Config, Checkpoint]:
    """The backbone of `checkpoint_dir`, else of the newest checkpoint in `model_save_dir`.

    Returns:
        The backbone; a copy of `config` in which the settings of the network that were not set are those of the
        checkpoint; the checkpoint.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or it is of another network.
    """
    saved = Checkpoint(config.checkpoint_dir or config.model_save_dir)
    about = About.of(saved)
    if config.model is None and not config.is_given("model_name") and about.settings.model_name is None:
        raise CheckpointError(
            f"{saved.path}: its network is an object of the class {_network_of(about)}, which a checkpoint does not "
            f"hold; {_how_to_give_network(about)}"
        )
    unset = {
        name: value
        for name, value in about.settings.model_dump(exclude_none=True).items()
        if name in NETWORK_SETTINGS and not config.is_given(name)
    }
    config = config.model_copy()
    try:
        config.assign(**unset)
    except ConfigError as error:
        raise CheckpointError(f"{saved.path}: its settings are damaged: {error}; use another checkpoint") from None
    try:
        backbone = build_backbone(config)
    except Exception as error:
        if config.model is not None or "model_name" not in unset:  # not the checkpoint's network
            raise
        raise CheckpointError(
            f"{saved.path}: its network, {config.model_name}, cannot be made: {explain(error)}. Where a script "
            f"registered that name: {_how_to_find_registered(about)}"
        ) from error
    load_backbone(backbone, saved, config=config)
    return backbone, config, saved


def average_statistics(backbone: paddle.nn.Layer, collectives: Collectives) -> None:
    """Replace running statistics by their average over ranks, so that all ranks verify and save the same network."""
    ranks = collectives.topology.world_size
    for tensor in _statistics(backbone).values() if ranks > 1 else ():
        tensor.set_value(collectives.all_reduce_sum(tensor.clone()) / ranks)


def gather_statistics(backbone: paddle.nn.Layer, collectives: Collectives) -> dict[str, NDArray[Any]]:
    """The running statistics of every rank, [R, ...] by name, for a checkpoint within an epoch.

    At the end of an epoch all ranks continue with the average, which the backbone holds. Within an epoch a run that is
    not interrupted continues with each rank's own, so a resumed run needs these. One rank has nothing to gather.
    """
    if collectives.topology.world_size == 1:
        return {}
    gathered = {name: collectives.all_gather(tensor.unsqueeze(0)) for name, tensor in _statistics(backbone).items()}
    return {name: rows.numpy() for name, rows in gathered.items()}


def statistics_parts(gathered: Mapping[str, NDArray[Any]], *, constants: Collection[str]) -> list[Part]:
    """What `gather_statistics` returned, for rank 0 to write."""
    return [Part(f"statistics.{name}", rows, is_finite=name not in constants) for name, rows in gathered.items()]


def load_statistics(backbone: paddle.nn.Layer, saved: Checkpoint, *, topology: Topology) -> bool:
    """Load this rank's own running statistics, where the checkpoint has them and as many ranks wrote it.

    Returns:
        Whether it has them; else all ranks go on with the average, which the backbone holds.
    """
    is_own = False
    for name, tensor in _statistics(backbone).items():
        key = f"statistics.{name}"
        if saved.names(key) and saved.shape(key)[:1] == [topology.world_size]:
            with reading(saved.path, f"tensor '{key}' "):
                tensor.set_value(saved.read(key, Range(topology.rank, topology.rank + 1))[0])
            is_own = True
    return is_own


def _statistics(backbone: paddle.nn.Layer) -> dict[str, paddle.Tensor]:
    """Those that move: of frozen layers they are the same on all ranks, and an average would round them."""
    # Paddle keeps the statistics of batch normalization as parameters without a gradient, not as buffers.
    frozen = frozen_names(backbone)
    return {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if tensor.stop_gradient and tensor.is_floating_point() and name not in frozen
    }


def _network_of(about: About) -> str:
    """The class of the network that was trained; of an older checkpoint the name, which is the default for any own."""
    return about.network or str(about.settings.model_name)


def _how_to_give_network(about: About) -> str:
    if about.network is None:  # an older checkpoint
        return f"{setter('model_name')} or {setter('model')} as in training"
    if about.settings.model_name is not None:
        return f"{setter('model_name', about.settings.model_name)} as in training"
    own = f"{setter('model')} with an object of that class"
    can_be_imported = not about.network.startswith("__main__:") and "<" not in about.network
    return either(own, f"{setter('model_name', about.network)}, or {own}" if can_be_imported else own)


def _how_to_find_registered(about: About) -> str:
    """How a program finds a network that another program registered by name."""
    name = about.settings.model_name
    return either(
        f"import the module that registers '{name}' first",
        f"{setter('model_name', f'MODULE:{name}')}, with the name of the script's file for MODULE",
    )


def _has_other_embedding(found: list[int], expected: list[int], sizes: tuple[int, int]) -> bool:
    """Whether two shapes differ in nothing but the embedding sizes (of the checkpoint, of this run)."""
    return len(found) == len(expected) and all(pair == sizes or pair[0] == pair[1] for pair in zip(found, expected))


def _check_setting(saved: Checkpoint, found: Any, value: Any, what: str, setting: str, *, advice: str = "") -> None:
    if found != value:
        raise CheckpointError(
            f"{saved.path}: its {what} is {found}, this run's is {value}; {setter(setting, found)}{advice}, or "
            f"choose another checkpoint"
        )
