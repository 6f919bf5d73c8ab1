"""What a resumed run is checked for, in addition to the tensors that `plsc.engine.state` loads."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

from plsc.checkpoint import is_checkpoint_name, is_copy, list_checkpoints, order, remove_leftovers, try_folder
from plsc.config import Config
from plsc.data.class_identity import ClassIdentity
from plsc.data.records import Records
from plsc.data.subset import TrainingPart
from plsc.distributed.agreement import agree
from plsc.distributed.collectives import Collectives
from plsc.engine.about import METRICS, About
from plsc.engine.rank_check import describe_object
from plsc.errors import CheckpointError, ConfigError
from plsc.utils.hints import setter
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

# The settings that decide the order of the images in an epoch, in addition to the images themselves.
_ORDER_SETTINGS = ("seed", "class_balanced", "min_images_per_class", "val_split")
# The settings that decide the result of a run, in addition to the classes and the images. `train_batch_size` and the
# number of ranks are none of them: they change the global batch, of which there is a warning. The loss, its margins,
# scale and parameters, the network and the end of a schedule are compared apart.
DECIDING_SETTINGS = (
    *("subcenters", "interclass_filter"),
    *(
        "sample_ratio",
        "center_storage",
        "momentum_storage",
        "margin_warmup",
        "label_smoothing",
        "class_weights",
        "class_counts",
    ),
    *("lr", "lr_schedule", "lr_steps", "lr_epochs", "lr_decay_factor", "lr_power", "warmup_epochs", "warmup_steps"),
    *("momentum", "weight_decay", "decay_norms", "head_lr_factor", "backbone_lr_factor", "frozen"),
    *("emb_dim", "image_shape", "pixel_mean", "pixel_std", "flip"),
    *("augment_crop", "augment_rotate", "augment_color_jitter", "augment_rand_augment", "augment_rand_magnitude"),
    *("augment_gray", "augment_blur", "augment_erase"),
    *("use_fp16", "amp_dtype"),
    *_ORDER_SETTINGS,
)
# Python objects that decide it.
_DECIDING_OBJECTS = ("optimizer", "head_optimizer", "margin_function", "param_attr", "bias_attr")


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


def held_out_digest(records: Records | None) -> str | None:
    """Digest of which training images are held out; None where none are."""
    return records.digest if isinstance(records, TrainingPart) else None


def warn_of_other_split(about: About, records: Records | None) -> None:
    """Warn where images are held out that the network was trained on before, so that top-1 and top-5 are too high.

    Args:
        about: what the checkpoint says of the run that wrote it.
        records: the training data now.
    """
    digest = held_out_digest(records)
    if digest is None or about.held_out == digest or not about.step:
        return
    before = "others were" if about.held_out else "none were"
    log.warning(
        "the images that are held out now are not those that were held out in training, where %s: the network has "
        "seen some of them, and their top-1 and top-5 say little; give the data, seed and val_split of that training",
        before,
    )


def saved_objects(config: Config) -> dict[str, str]:
    """The Python objects that decide what a step computes, as a checkpoint's manifest names them."""
    return {name: str(describe_object(getattr(config, name))) for name in _DECIDING_OBJECTS}


def find_changes(about: About, config: Config, *, network: str) -> dict[str, tuple[Any, Any]]:
    """What decides the result of a run and is not as in the run that wrote a checkpoint: name -> (before, now).

    Classes and images are not compared here.

    Args:
        about: what the checkpoint says of the run that wrote it.
        config: the settings of this run.
        network: class of this run's network.
    """
    settings = about.settings.model_dump()
    given = config.model_dump(mode="json")
    before, now = _describe_loss(_saved_loss(settings)), _describe_loss(config)
    if before["loss_type"] == now["loss_type"]:  # sharded and replicated heads train alike
        del before["loss_type"], now["loss_type"]
    else:
        before["loss_type"], now["loss_type"] = about.settings.loss_type, config.loss_type
        del now["loss_options"]
    before["network"], now["network"] = about.network, network
    before = {name: value for name, value in before.items() if value is not None}  # an older checkpoint lacks some
    before.update((name, settings[name]) for name in DECIDING_SETTINGS if name in settings)
    now.update((name, given[name]) for name in DECIDING_SETTINGS)
    if before.get("lr_schedule") == "poly":  # its name before polynomial
        before["lr_schedule"] = "polynomial"
    if config.lr_schedule in ("cosine", "polynomial", "one_cycle"):
        before["end"], now["end"] = _end_of(settings), _end_of(given)
    before.update(about.objects or {})
    if before.get("optimizer") == "None":  # the default before it had a name
        before["optimizer"] = "momentum"
    now.update(saved_objects(config))
    return {name: (before[name], value) for name, value in now.items() if name in before and before[name] != value}


def warn_of_other_steps(about: About, config: Config, *, path: Path, network: str, global_batch: int) -> None:
    """Warn where a step computes something else than in the run that wrote the checkpoint, with both values.

    Args:
        about: what the checkpoint says of the run that wrote it.
        config: the settings of this run.
        path: the checkpoint, for the message.
        network: class of this run's network.
        global_batch: images per step of this run.
    """
    changes = find_changes(about, config, network=network)
    changes.pop("network", None)  # there is a warning where it is loaded
    if about.global_batch not in (None, global_batch):
        changes["global batch"] = about.global_batch, global_batch
    if changes:
        listed = "; ".join(f"{name} {before} -> {now}" for name, (before, now) in changes.items())
        log.warning("%s was trained with other settings than this run: %s", path, listed)


def refuse_changes(about: About, config: Config, *, path: Path, network: str, num_images: int | None) -> None:
    """Refuse to go on by itself with a run whose result was decided by something else.

    Args:
        about: what the checkpoint says of the run that wrote it.
        config: the settings of this run.
        path: the checkpoint.
        network: class of this run's network.
        num_images: images per epoch of this run; None where not known for certain.

    Raises:
        CheckpointError: names each change with both values.
    """
    changes = find_changes(about, config, network=network)
    if num_images is not None and about.num_images not in (None, num_images):
        changes["number of training images"] = about.num_images, num_images
    if changes:
        listed = "; ".join(f"{name} was {before} and is {now}" for name, (before, now) in changes.items())
        raise CheckpointError(
            f"{path}: settings or data that decide the result have changed: {listed}. Give the former ones; or go on "
            f"with the new ones from this checkpoint: {setter('checkpoint_dir', path)}; or train a new run in another "
            f"folder: {setter('model_save_dir')}"
        )


def _saved_loss(settings: dict[str, Any]) -> Config | None:
    names = ("loss_type", "margin", "margin1", "margin2", "margin3", "scale", "loss_options")
    try:
        saved = Config(**{name: settings[name] for name in names if name in settings})
        saved.check_loss()
    except ConfigError:  # settings of another version
        return None
    return saved


def _describe_loss(config: Config | None) -> dict[str, Any]:
    """What of a loss decides the result: `loss_type` without dist_, and what its settings come to."""
    if config is None:
        return {"loss_type": None}
    options = dataclasses.asdict(config.loss_parameters)
    return {
        "loss_type": config.loss_kind,
        "margins": config.margins,
        "scale": config.loss_scale,
        "loss_options": options,
    }


def _end_of(settings: dict[str, Any]) -> str:
    epochs = settings.get("train_epochs")
    return counted(settings["train_steps"], "step") if epochs is None else counted(epochs, "epoch")


def check_save_folder(config: Config, *, position: tuple[int, int], last_epoch: int, collectives: Collectives) -> None:
    """Find out before the first step whether checkpoints can be written to `model_save_dir`. Every rank must call this.

    Args:
        config: the settings.
        position: where training begins, as names of checkpoints count: (epochs, steps of the epoch that follows).
        last_epoch: number of the last epoch that this run may train.
        collectives: over the ranks.

    Raises:
        CheckpointError: the folder cannot be made or written to, or holds checkpoints of later training, or anything
            else under a name that this run will need; the same on every rank.
    """
    root = Path(config.model_save_dir)
    agree(lambda: check_content_of(root, position, last_epoch=last_epoch), collectives, error=CheckpointError)
    try:
        try_folder(root, collectives)
    except CheckpointError as error:
        raise CheckpointError(f"{root}: checkpoints cannot be written there: {error}; {_other_folder()}") from None


def check_content_of(root: Path, position: tuple[int, int], *, last_epoch: int) -> None:
    """Refuse a save folder in which a checkpoint of this run would meet another one; arguments and errors as above."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        # A copy under another name is no progress of a run.
        newer = [path for path in list_checkpoints(root) if not is_copy(path) and order(path) > position]
        names = [path.name for path in root.iterdir()]
    except OSError as error:
        raise CheckpointError(
            f"{root}: checkpoints cannot be written there: {error.strerror}; {_other_folder()}"
        ) from None
    if newer:
        raise CheckpointError(
            f"{newer[-1]} is a checkpoint of later training than this run starts from; to go on from it: "
            f"{setter('auto_resume', True)} or {setter('checkpoint_dir', root)}; to start a new run: choose another "
            f"folder with {setter('model_save_dir')}, or move the old folder away"
        )
    taken = [name for name in names if _is_needed(name, position, last_epoch=last_epoch)]
    if taken:
        path = root / min(taken)
        what = "is a checkpoint that was saved under another name" if is_copy(path) else "is no checkpoint"
        raise CheckpointError(
            f"{path} exists and {what}, and this run will save one under that name; nothing is overwritten: "
            f"move it away, or {_other_folder()}"
        )


def _is_needed(name: str, position: tuple[int, int], *, last_epoch: int) -> bool:
    """Whether training from `position` on may save a checkpoint of this name."""
    if not is_checkpoint_name(name):
        return False
    epoch = int(name.partition(".")[0])
    return order(Path(name)) > position and epoch <= last_epoch


def _other_folder() -> str:
    return f"choose another folder with {setter('model_save_dir')}"


def clean_save_folder(root: str | Path) -> None:
    """Remove what killed runs have left in a save folder. No other run may save into it meanwhile."""
    root = Path(root)
    try:
        remove_leftovers(root)
        for path in root.glob("*.plsc-trial*"):  # of `try_folder`
            shutil.rmtree(path)
        for path in [
            *root.glob(".metrics.*.*.partial"),
            *root.glob(".run.json.*.partial"),
            *root.glob(f"*/.{METRICS}.*.partial"),
        ]:
            path.unlink()
    except OSError as error:
        log.warning("%s: what a killed run has left cannot be removed: %s", root, error)
