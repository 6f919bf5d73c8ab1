"""What a resumed run is checked for, in addition to the tensors that `plsc.engine.state` loads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from plsc.config import Config
from plsc.engine.checkpoint import list_checkpoints, order
from plsc.errors import CheckpointError
from plsc.utils.hints import setter

log = logging.getLogger("plsc")

# The settings that decide the order of the images in an epoch, in addition to the images themselves.
_ORDER_SETTINGS = ("seed", "class_balanced", "min_images_per_class")


def saved_settings(config: Config) -> dict[str, Any]:
    """The settings as a checkpoint's manifest holds them, without those that only Python can hold.

    With a network of the user's own there is no `model_name`: the manifest's "network" says what class it is.
    """
    left_out = {"amp_lists"} if config.model is None else {"amp_lists", "model_name"}
    return config.model_dump(mode="json", exclude=left_out)


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
            f"folder with {setter('model_save_dir')}"
        ) from None
    newer = [path for path in list_checkpoints(root) if order(path) > (epoch, step_in_epoch)]
    if newer and not is_done:
        raise CheckpointError(
            f"{newer[-1]} is a checkpoint of later training than this run starts from; to resume from it: "
            f"{setter('checkpoint_dir', root)}; to start a new run: choose another folder with "
            f"{setter('model_save_dir')}, or move the old folder away"
        )
