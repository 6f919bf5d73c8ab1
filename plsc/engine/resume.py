"""What a resumed run is checked for, in addition to the tensors that `plsc.engine.state` loads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.config import Config
from plsc.data.class_identity import ClassIdentity, find_change, rows_by_name, sample_places
from plsc.data.records import Records
from plsc.engine.agreement import describe_object
from plsc.engine.checkpoint import Checkpoint, Part, list_checkpoints, order
from plsc.errors import CheckpointError, ConfigError

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
_CLASSES = "classes."  # begins the names of the tensors of the classes' identity


def saved_settings(config: Config) -> dict[str, Any]:
    """The settings as a checkpoint's manifest holds them, without those that only Python can hold."""
    return config.model_dump(mode="json", exclude={"amp_lists"})


def warn_of_another_order(about: dict[str, Any], config: Config, *, num_images: int, global_batch: int) -> None:
    """Warn where the rest of an epoch is not what it would have been without the interruption.

    Args:
        about: what the checkpoint's manifest says of the run that wrote it.
        config: the settings of this run.
        num_images: images per epoch of this run.
        global_batch: images per step of this run.
    """
    before = {"images": about.get("num_images"), **about["settings"]}
    now = {"images": num_images, **config.model_dump(mode="json", include=set(_ORDER_SETTINGS))}
    changes = [
        f"{name} {before[name]} -> {value}" for name, value in now.items() if before.get(name) not in (None, value)
    ]
    if about["images_in_epoch"] % global_batch:
        changes.append(f"global batch {global_batch}, which does not divide the {about['images_in_epoch']} images done")
    if changes:
        log.warning(
            "epoch %d was started with different settings (%s): its remaining batches may repeat or miss images; "
            "later epochs are unaffected",
            about["epoch"],
            "; ".join(changes),
        )


def saved_objects(config: Config) -> dict[str, str]:
    """The Python objects that decide what a step computes, as a checkpoint's manifest names them."""
    return {name: str(describe_object(getattr(config, name))) for name in _STEP_OBJECTS}


def warn_of_other_steps(saved: Checkpoint, config: Config, *, global_batch: int) -> None:
    """Warn where a step computes something else than in the run that wrote the checkpoint, with both values.

    Args:
        saved: the checkpoint.
        config: the settings of this run.
        global_batch: images per step of this run.
    """
    settings, objects = saved.about["settings"], saved.about.get("objects")
    now: dict[str, Any] = config.model_dump(mode="json", include=set(_STEP_SETTINGS))
    before: dict[str, Any] = {name: settings[name] for name in _STEP_SETTINGS if name in settings}
    before["margins"], now["margins"] = _saved_margins(settings), config.margins
    before["global batch"], now["global batch"] = saved.about.get("global_batch"), global_batch
    if config.lr_schedule in ("cosine", "poly"):
        before["end"], now["end"] = _end_of(settings), _end_of(config.model_dump())
    if isinstance(objects, dict):
        before, now = {**before, **objects}, {**now, **saved_objects(config)}
    changes = [
        f"{name} {before[name]} -> {value}" for name, value in now.items() if before.get(name) not in (None, value)
    ]
    if changes:
        log.warning("%s was trained with other settings than this run: %s", saved.path, "; ".join(changes))


def _saved_margins(settings: dict[str, Any]) -> tuple[float, float, float] | None:
    names = ("loss_type", "margin", "margin1", "margin2", "margin3")
    try:
        return Config(**{name: settings[name] for name in names if name in settings}).margins
    except ConfigError:  # settings of another version
        return None


def _end_of(settings: dict[str, Any]) -> str:
    epochs, steps = settings.get("train_epochs"), settings.get("train_steps")
    return f"{epochs} epochs" if epochs is not None else f"{steps} steps"


def class_parts(identity: ClassIdentity | None) -> list[Part]:
    """The identity of the classes, for rank 0 to write."""
    return [] if identity is None else [Part(f"{_CLASSES}{name}", array) for name, array in identity.arrays().items()]


def about_classes(identity: ClassIdentity | None) -> dict[str, Any] | None:
    """What a checkpoint's manifest says of the classes, in addition to the tensors of `class_parts`."""
    if identity is None:
        return None
    return {"by": identity.by, "images": identity.num_images, "digest": identity.digest}


def match_classes(
    saved: Checkpoint, identity: ClassIdentity | None, *, records: Records | None, folder: str, config: Config
) -> NDArray[np.int64] | None:
    """Compare the classes of a checkpoint with those of this run's data.

    Args:
        saved: the checkpoint.
        identity: of the classes of `records`; None where it is not known.
        records: the training data; None where it is no source of records.
        folder: of the data.
        config: `class_change` decides what happens where numbers mean other classes.

    Returns:
        [C], for each class the row of the checkpoint that is its own; None where classes keep their numbers.

    Raises:
        CheckpointError: numbers mean other classes, and `class_change` is 'stop', or 'by_name' where names were added
            or removed.
    """
    before = _read_classes(saved)
    if before is None or identity is None or records is None:
        if saved.about.get("classes") or (identity is not None and "classes" not in saved.about):
            log.info("%s: whether the classes have kept their numbers cannot be told", saved.path)
        return None
    change = None
    if config.class_change != "by_number":
        change = find_change(before, identity, records=records, folder=folder)
    if change is None:
        _check_number(saved, records)
        return None
    named = rows_by_name(before, identity)
    if config.class_change == "stop" or isinstance(named, str):
        raise CheckpointError(_explain_change(saved, change, named, config.class_change))
    rows = np.arange(max(config.num_classes, len(named)), dtype=np.int64)
    rows[: len(named)] = named
    log.info("%s: class centers are moved to the classes of their names: %s", saved.path, change)
    return rows


def _explain_change(saved: Checkpoint, change: str, named: NDArray[np.int64] | str, action: str) -> str:
    advice = ["resume on the earlier data", "train a new run without set_checkpoint_dir"]
    if not isinstance(named, str):
        advice.append("set_class_change('by_name') (--class-change by_name) to move each center to its class")
    elif action == "by_name":
        change = f"{change}. {named}"
    return (
        f"{saved.path}: class numbers mean other classes than when it was written, and class centers would belong to "
        f"other classes: {change}. {'; or '.join(advice).capitalize()}; or, where the numbers are right, "
        f"set_class_change('by_number') (--class-change by_number)"
    )


def _check_number(saved: Checkpoint, records: Records) -> None:
    trained = saved.about["settings"]["num_classes"]
    if records.num_classes is not None and records.num_classes > trained:
        raise CheckpointError(
            f"{saved.path}: it has {trained} classes, the training data has {records.num_classes}; classes cannot be "
            f"added to a checkpoint: resume on data of its classes, or train a new run without set_checkpoint_dir"
        )


def _read_classes(saved: Checkpoint) -> ClassIdentity | None:
    about = saved.about.get("classes")
    arrays = {name[len(_CLASSES) :]: saved.read(name) for name in saved.names(_CLASSES)}
    if about is None:
        return None
    try:
        identity = ClassIdentity.from_arrays(about["by"], int(about["images"]), arrays=arrays)
        if identity.digest == about["digest"] and (
            identity.by != "label" or len(identity.labels) == len(sample_places(identity.num_images))
        ):
            return identity
    except (KeyError, TypeError, ValueError):
        pass
    raise CheckpointError(f"{saved.path}: what it says of the classes is damaged; use another epoch's")


def check_save_folder(config: Config, *, epoch: int, step_in_epoch: int, is_done: bool) -> None:
    """Find out before the first step whether checkpoints can be written to `model_save_dir`.

    Args:
        config: the settings.
        epoch: where training begins.
        step_in_epoch: where training begins.
        is_done: whether no step is left to train.

    Raises:
        CheckpointError: the folder cannot be made, or holds checkpoints of later training.
    """
    root = config.model_save_dir
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{root}: checkpoints cannot be written there: {error.strerror}; choose another "
            f"folder (set_model_save_dir, --model-save-dir)"
        ) from None
    newer = [path for path in list_checkpoints(root) if order(path) > (epoch, step_in_epoch)]
    if newer and not is_done:
        raise CheckpointError(
            f"{newer[-1]} is a checkpoint of later training than this run starts from; to resume from it: "
            f"set_checkpoint_dir({str(root)!r}) (--checkpoint-dir {root}); to start a new run: choose another "
            f"set_model_save_dir (--model-save-dir), or move the old folder away"
        )
