"""What a checkpoint says of the run that wrote it, in addition to its tensors; and of its verification, `metrics.json`.

    output/7/metrics.json    {"lfw/accuracy": 0.9912, "lfw/pairs": 6000.0}

The network is verified after the checkpoint is saved, so the metrics are a file of their own. A number that is not
finite is null in both.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from plsc.checkpoint import MANIFEST, Checkpoint, check_content
from plsc.config import Config
from plsc.utils.atomic import write_file
from plsc.utils.json_text import to_json

METRICS = "metrics.json"

log = logging.getLogger("plsc")

_Count = Annotated[int, Field(ge=0, lt=2**63)]


class SavedSettings(BaseModel):
    """The settings of that run. What loading needs has a field here; the others are kept as they are."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    num_classes: int
    emb_dim: int
    image_shape: list[int]
    model_name: str | None = None
    loss_type: str
    subcenters: int = 1


class AboutClasses(BaseModel):
    """The identity of the classes, whose tensors are in the checkpoint; see `plsc.data.class_identity`."""

    model_config = ConfigDict(extra="allow", strict=True)

    by: Literal["name", "image", "label"]
    images: _Count
    digest: str


class AboutScores(BaseModel):
    """How the head scores classes, without a margin; see `plsc.losses.centers.Centers`."""

    model_config = ConfigDict(extra="allow", strict=True)

    is_cosine: bool
    scale: float


class About(BaseModel):
    """`Checkpoint.about` as the trainer writes it. A key that older checkpoints lack has a default.

    Attributes:
        epoch: epochs done.
        step: steps done.
        images_in_epoch: images done of the epoch that follows.
        steps_in_epoch: steps done of the epoch that follows, those repeated after another global batch included: the
            second number of the checkpoint's name. None in older checkpoints.
        run: an identifier of the run, which it keeps when it resumes in the same folder; '' in older checkpoints.
        results: the last values of the run, null where not finite. Of a verification after saving, see `METRICS`.
        verified: whether the network was verified after the checkpoint's last step and before it was saved. None in
            older checkpoints.
        num_images: images per epoch; None where unknown.
        optimizer: class of the backbone's optimizer.
        head_optimizer: class of the head's optimizer.
        loss_scaling: state of `Precision`.
        settings: of the run. `model_name` is None where the network was an object of the user's own.
        objects: the Python objects that decide what a step computes, by the names of their settings.
        global_batch: images per step.
        averaged: whether the running statistics of the last step were replaced by their average over ranks.
        network: class of the network, as 'package.module:Class'; None in older checkpoints, whose `model_name` says
            nothing about an object.
        classes: None where not known.
        scores: None for a custom head without class centers. Not set in older checkpoints.
        held_out: digest of which training images `val_split` held out; None where none were.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    epoch: _Count
    step: _Count
    images_in_epoch: _Count
    steps_in_epoch: _Count | None = None
    run: str = ""
    results: dict[str, float | None] = {}
    verified: bool | None = None
    num_images: _Count | None = None
    optimizer: str
    head_optimizer: str
    loss_scaling: dict[str, Any]
    settings: SavedSettings
    objects: dict[str, str] | None = None
    global_batch: _Count | None = None
    averaged: bool = True
    network: str | None = None
    classes: AboutClasses | None = None
    scores: AboutScores | None = None
    held_out: str | None = None

    @classmethod
    def of(cls, saved: Checkpoint) -> About:
        """What a checkpoint says.

        Raises:
            CheckpointError: a key is missing, or its value is of another type.
        """
        return check_content(cls, saved.about, saved.path / MANIFEST, inside="about")

    @property
    def last_step_in_epoch(self) -> int:
        """`steps_in_epoch`, also of an older checkpoint."""
        if self.steps_in_epoch is not None:
            return self.steps_in_epoch
        return self.images_in_epoch // self.global_batch if self.global_batch else 0

    @property
    def last_results(self) -> dict[str, float]:
        """`results` with NaN for each number that is not finite."""
        return _numbers(self.results)


def saved_results(results: Mapping[str, float]) -> dict[str, float | None]:
    """Results as a checkpoint's manifest holds them: without the speed, which is that of a machine."""
    return {
        name: float(value) if math.isfinite(value) else None for name, value in results.items() if name != "images/s"
    }


def write_metrics(path: Path, metrics: Mapping[str, float]) -> None:
    """Write the metrics of a verification into the folder of the checkpoint that was verified.

    Where they cannot be written, a warning says so: a run that resumes from the checkpoint verifies it again.

    Args:
        path: the checkpoint's folder.
        metrics: as '<set>/<metric>'.
    """
    try:
        with write_file(path / METRICS) as file:
            file.write(to_json(dict(metrics)).encode())
    except OSError as error:
        log.warning("%s: cannot be written: %s", path / METRICS, error.strerror)


def read_metrics(path: Path) -> dict[str, float] | None:
    """The metrics of a checkpoint's verification, as '<set>/<metric>'; None where it was not verified after saving."""
    try:
        return _numbers(json.loads((path / METRICS).read_bytes()))
    except (OSError, ValueError, TypeError, AttributeError):  # none, or damaged
        return None


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def saved_settings(config: Config) -> dict[str, Any]:
    """The settings as a checkpoint's manifest holds them, without those that only Python can hold.

    With a network of the user's own there is no `model_name`: the manifest's "network" says what class it is.
    """
    left_out = {"amp_lists"} if config.model is None else {"amp_lists", "model_name"}
    return config.model_dump(mode="json", exclude=left_out)
