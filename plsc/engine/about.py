"""What a checkpoint says of the run that wrote it, in addition to its tensors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from plsc.checkpoint import MANIFEST, Checkpoint, check_content
from plsc.config import Config

_Count = Annotated[int, Field(ge=0, lt=2**63)]


class SavedSettings(BaseModel):
    """The settings of that run. What loading needs has a field here; the others are kept as they are."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    num_classes: int
    emb_dim: int
    image_shape: list[int]
    model_name: str | None = None
    loss_type: str


class AboutClasses(BaseModel):
    """The identity of the classes, whose tensors are in the checkpoint; see `plsc.data.class_identity`."""

    model_config = ConfigDict(extra="allow", strict=True)

    by: Literal["name", "image", "label"]
    images: _Count
    digest: str


class About(BaseModel):
    """`Checkpoint.about` as the trainer writes it. A key that older checkpoints lack has a default.

    Attributes:
        epoch: epochs done.
        step: steps done.
        images_in_epoch: images done of the epoch that follows.
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
    """

    model_config = ConfigDict(extra="allow", strict=True)

    epoch: _Count
    step: _Count
    images_in_epoch: _Count
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

    @classmethod
    def of(cls, saved: Checkpoint) -> About:
        """What a checkpoint says.

        Raises:
            CheckpointError: a key is missing, or its value is of another type.
        """
        return check_content(cls, saved.about, saved.path / MANIFEST, inside="about")


def saved_settings(config: Config) -> dict[str, Any]:
    """The settings as a checkpoint's manifest holds them, without those that only Python can hold.

    With a network of the user's own there is no `model_name`: the manifest's "network" says what class it is.
    """
    left_out = {"amp_lists"} if config.model is None else {"amp_lists", "model_name"}
    return config.model_dump(mode="json", exclude=left_out)
