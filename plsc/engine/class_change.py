"""Classes that mean others than in the checkpoint: found, stopped at, or moved to their names."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from plsc.checkpoint import Checkpoint, Part
from plsc.config import Config
from plsc.data.class_identity import ClassIdentity, find_change, rows_by_name, sample_places
from plsc.data.records import Records
from plsc.data.sources.string_table import StringTable
from plsc.engine.about import About, AboutClasses
from plsc.errors import CheckpointError
from plsc.utils.hints import setter
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

_CLASSES = "classes."  # begins the names of the tensors of the classes' identity


def class_parts(identity: ClassIdentity | None) -> list[Part]:
    """The identity of the classes, for rank 0 to write."""
    return [] if identity is None else [Part(f"{_CLASSES}{name}", array) for name, array in identity.arrays().items()]


def about_classes(identity: ClassIdentity | None) -> dict[str, object] | None:
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
    about = About.of(saved)
    if about.classes is None or identity is None or records is None:
        if about.classes is not None or identity is not None:
            log.info("%s: whether the classes have kept their numbers cannot be told", saved.path)
        return None
    before = read_classes(saved, about.classes)
    change = None
    if config.class_change != "by_number":
        change = find_change(before, identity, records=records, folder=folder)
    if change is None:
        _check_number(saved, records)
        return None
    named = rows_by_name(before, identity)
    if config.class_change == "stop" or isinstance(named, str):
        raise CheckpointError(_explain_change(saved, change, named))
    rows = np.arange(max(config.num_classes, len(named)), dtype=np.int64)
    rows[: len(named)] = named
    log.info("%s: class centers are moved to the classes of their names: %s", saved.path, change)
    return rows


def names_in(saved: Checkpoint) -> StringTable | None:
    """The names of the classes of a checkpoint; None where they had none.

    Raises:
        CheckpointError: the names are damaged.
    """
    about = About.of(saved).classes
    return names_of(None if about is None or about.by != "name" else read_classes(saved, about))


def names_of(identity: ClassIdentity | None) -> StringTable | None:
    """The names of the classes of an identity; None where they have none."""
    return identity.table if identity is not None and identity.by == "name" else None


def _explain_change(saved: Checkpoint, change: str, named: NDArray[np.int64] | str) -> str:
    advice = ["Resume on the earlier data", f"train a new run without {setter('checkpoint_dir')}"]
    if not isinstance(named, str):
        advice.append(f"{setter('class_change', 'by_name')} to move each center to its class")
    else:
        change = f"{change}. {named}"
    return (
        f"{saved.path}: class numbers mean other classes than when it was written, and class centers would belong to "
        f"other classes: {change}. {'; or '.join(advice)}; or, where the numbers are right, "
        f"{setter('class_change', 'by_number')}"
    )


def _check_number(saved: Checkpoint, records: Records) -> None:
    trained = About.of(saved).settings.num_classes
    if records.num_classes is not None and records.num_classes > trained:
        raise CheckpointError(
            f"{saved.path}: it has {counted(trained, 'class')}, the training data has {records.num_classes}; classes "
            f"cannot be added to a checkpoint: resume on data of its classes, or train a new run without "
            f"{setter('checkpoint_dir')}"
        )


def read_classes(saved: Checkpoint, about: AboutClasses) -> ClassIdentity:
    """The identity of the classes of a checkpoint.

    Raises:
        CheckpointError: its tensors are missing or damaged.
    """
    arrays = {name[len(_CLASSES) :]: saved.read(name) for name in saved.names(_CLASSES)}
    try:
        identity = ClassIdentity.from_arrays(about.by, about.images, arrays=arrays)
    except KeyError as error:
        raise CheckpointError(
            f"{saved.path}: holds no tensor '{_CLASSES}{error.args[0]}'; use another checkpoint"
        ) from None
    expected = len(sample_places(about.images)) if about.by == "label" else 0
    if identity.digest != about.digest or len(identity.labels) != expected:
        raise CheckpointError(f"{saved.path}: the tensors of the classes' identity are damaged; use another checkpoint")
    return identity
