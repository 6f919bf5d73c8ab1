"""What a resumed run is checked for, in addition to the tensors that `plsc.engine.state` loads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from plsc.checkpoint import is_checkpoint_name, list_checkpoints, order, try_folder
from plsc.config import Config
from plsc.data.class_identity import ClassIdentity
from plsc.distributed.agreement import agree
from plsc.distributed.collectives import Collectives
from plsc.engine.about import About
from plsc.engine.rank_check import describe_object
from plsc.errors import CheckpointError, ConfigError
from plsc.utils.hints import setter
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

# The settings that decide the order of the images in an epoch, in addition to the images themselves.
_ORDER_SETTINGS = ("seed", "class_balanced", "min_images_per_class")
# The settings that decide what a step computes, and the learning rate; those of the images are above.
_STEP_SETTINGS = (
    "loss_type",
    "scale",
    "sample_ratio",
    "lr",
    "lr_schedule",
    "lr_steps",
    "lr_decay_factor",
    "warmup_epochs",
    "pixel_mean",
    "pixel_std",
    "flip",
)
# Python objects that decide it.
_STEP_OBJECTS = ("optimizer", "head_optimizer", "margin_function")


def warn_of_another_order(
    about: About, config: Config, *, num_images: int, classes: ClassIdentity | None, global_batch: int
) -> None:
    """Warn where the rest of an epoch is not what it would have been without the interruption.

    Args:
        about: what the checkpoint says of the run that wrote it.
        config: the settings of this run.
        num_images: images per epoch of this run.
        classes: the identity of the classes of this run's data.
        global_batch: images per step of this run.
    """
    before = {"images": about.num_images, **about.settings.model_dump()}
    now = {"images": num_images, **config.model_dump(mode="json", include=set(_ORDER_SETTINGS))}
    changes = [
        f"{name} {before[name]} -> {value}" for name, value in now.items() if before.get(name) not in (None, value)
    ]
    if about.classes is not None and classes is not None and about.classes.digest != classes.digest:
        changes.append("other classes, or in another order")
    if about.images_in_epoch % global_batch:
        done = counted(about.images_in_epoch, "image")
        changes.append(f"global batch {global_batch}, which does not divide the {done} done")
    if changes:
        log.warning(
            "epoch %d was started with different settings (%s): its remaining batches may repeat or miss images; "
            "later epochs are unaffected",
            about.epoch,
            "; ".join(changes),
        )


def saved_objects(config: Config) -> dict[str, str]:
    """The Python objects that decide what a step computes, as a checkpoint's manifest names them."""
    return {name: str(describe_object(getattr(config, name))) for name in _STEP_OBJECTS}


def warn_of_other_steps(about: About, config: Config, *, path: Path, global_batch: int) -> None:
    """Warn where a step computes something else than in the run that wrote the checkpoint, with both values.

    Args:
        about: what the checkpoint says of the run that wrote it.
        config: the settings of this run.
        path: the checkpoint, for the message.
        global_batch: images per step of this run.
    """
    settings, objects = about.settings.model_dump(), about.objects
    now: dict[str, Any] = config.model_dump(mode="json", include=set(_STEP_SETTINGS))
    before: dict[str, Any] = {name: settings[name] for name in _STEP_SETTINGS if name in settings}
    before["margins"], now["margins"] = _saved_margins(settings), config.margins
    before["global batch"], now["global batch"] = about.global_batch, global_batch
    if config.lr_schedule in ("cosine", "poly"):
        before["end"], now["end"] = _end_of(settings), _end_of(config.model_dump())
    if objects is not None:
        before, now = {**before, **objects}, {**now, **saved_objects(config)}
    changes = [
        f"{name} {before[name]} -> {value}" for name, value in now.items() if before.get(name) not in (None, value)
    ]
    if changes:
        log.warning("%s was trained with other settings than this run: %s", path, "; ".join(changes))


def _saved_margins(settings: dict[str, Any]) -> tuple[float, float, float] | None:
    names = ("loss_type", "margin", "margin1", "margin2", "margin3")
    try:
        return Config(**{name: settings[name] for name in names if name in settings}).margins
    except ConfigError:  # settings of another version
        return None


def _end_of(settings: dict[str, Any]) -> str:
    epochs = settings.get("train_epochs")
    return counted(settings["train_steps"], "step") if epochs is None else counted(epochs, "epoch")


def check_save_folder(
    config: Config, *, epoch: int, step_in_epoch: int, last_epoch: int | None, collectives: Collectives
) -> None:
    """Find out before the first step whether checkpoints can be written to `model_save_dir`. Every rank must call this.

    Args:
        config: the settings.
        epoch: where training begins.
        step_in_epoch: where training begins.
        last_epoch: number of the last epoch that this run trains; None where unknown.
        collectives: over the ranks.

    Raises:
        CheckpointError: the folder cannot be made or written to, or holds checkpoints of later training, or anything
            else under a name that this run will need; the same on every rank.
    """
    root, position = Path(config.model_save_dir), (epoch, step_in_epoch)
    agree(lambda: _check_content(root, position, last_epoch=last_epoch), collectives, error=CheckpointError)
    try:
        try_folder(root, collectives)
    except CheckpointError as error:
        raise CheckpointError(f"{root}: checkpoints cannot be written there: {error}; {_other_folder()}") from None


def _check_content(root: Path, position: tuple[int, int], *, last_epoch: int | None) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        newer = [path for path in list_checkpoints(root) if order(path) > position]
        names = [path.name for path in root.iterdir()]
    except OSError as error:
        raise CheckpointError(
            f"{root}: checkpoints cannot be written there: {error.strerror}; {_other_folder()}"
        ) from None
    if newer:
        raise CheckpointError(
            f"{newer[-1]} is a checkpoint of later training than this run starts from; to resume from it: "
            f"{setter('checkpoint_dir', root)}; to start a new run: choose another folder with "
            f"{setter('model_save_dir')}, or move the old folder away"
        )
    taken = [name for name in names if _is_needed(name, position, last_epoch=last_epoch)]
    if taken:
        raise CheckpointError(
            f"{root / min(taken)} exists and is no checkpoint, and this run will save one under that name; nothing is "
            f"overwritten: move it away, or {_other_folder()}"
        )


def _is_needed(name: str, position: tuple[int, int], *, last_epoch: int | None) -> bool:
    """Whether training from `position` on may save a checkpoint of this name."""
    if not is_checkpoint_name(name):
        return False
    epoch = int(name.partition(".")[0])
    return order(Path(name)) > position and (last_epoch is None or epoch <= last_epoch)


def _other_folder() -> str:
    return f"choose another folder with {setter('model_save_dir')}"
