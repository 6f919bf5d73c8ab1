"""What a checkpoint of a run holds and says, and how a run that resumes takes it over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import paddle
from numpy.typing import NDArray

from plsc.checkpoint import Checkpoint, Part, reading
from plsc.config import Config
from plsc.data.class_identity import ClassIdentity
from plsc.data.records import Records
from plsc.distributed.topology import Topology
from plsc.engine.about import About, saved_results, saved_settings
from plsc.engine.auto_resume import is_in_save_folder, is_named
from plsc.engine.class_change import ClassMove, about_classes, class_parts, match_classes
from plsc.engine.dataloading import Loader, data_folder
from plsc.engine.judge import Judge
from plsc.engine.new_classes import initial_rows, restore_rows
from plsc.engine.optimizer import NamedOptimizer
from plsc.engine.precision import Precision
from plsc.engine.resume import held_out_digest, refuse_changes, saved_objects, warn_of_other_split
from plsc.engine.state import (
    backbone_parts,
    head_parts,
    load_backbone,
    load_statistics,
    load_training,
    statistics_parts,
)
from plsc.losses import Head
from plsc.models.base_model import network_name


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run takes over from a checkpoint, in addition to the tensors.

    Attributes:
        about: what the checkpoint says.
        has_statistics: whether it held the running statistics of each rank.
        move: what becomes of the classes; None where they keep their numbers.
        is_anew: epochs and steps begin at 0.
    """

    about: About
    has_statistics: bool
    move: ClassMove | None
    is_anew: bool


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The parts of a run whose state is in its checkpoints.

    Args:
        config: the settings, complete.
        remote: settings that name remote folders, as the user gave them; they take the place of those in `config`.
        topology: of the ranks.
        loader: of the training data.
        records: of the training data; None where the loader is not the library's own.
        classes: of the training data; None where not known.
        backbone: the network.
        head: the last layer.
        optimizer: of the backbone.
        precision: with the loss scale.
        judge: knows which tensors of the backbone are constants that hold numbers that are not finite.
    """

    config: Config
    remote: Mapping[str, str]
    topology: Topology
    loader: Loader
    records: Records | None
    classes: ClassIdentity | None
    backbone: paddle.nn.Layer
    head: Head
    optimizer: NamedOptimizer
    precision: Precision
    judge: Judge

    def parts(self, statistics: Mapping[str, NDArray[Any]]) -> Iterator[Part]:
        """What this rank writes: whole tensors on rank 0, and its class centers.

        Args:
            statistics: the running statistics of each rank, [R, ...] by name; empty where all ranks have the same.
        """
        is_main = self.topology.is_main
        if is_main:
            constants = self.judge.constants
            averages = {
                name: rows.mean(axis=0, dtype="float64").astype(rows.dtype) for name, rows in statistics.items()
            }
            yield from backbone_parts(self.backbone, self.optimizer, averages=averages, constants=constants)
            yield from class_parts(self.classes)
            yield from statistics_parts(statistics, constants=constants)
        yield from head_parts(self.head, is_main, num_classes=self.config.num_classes)

    def about(self, *, results: Mapping[str, float], **progress: Any) -> dict[str, Any]:
        """What the manifest says, as `About` reads it.

        Args:
            results: the last values of the run.
            progress: the fields of `About` that change from step to step.
        """
        centers = self.head.centers()
        return {
            **progress,
            "results": saved_results(results),
            "num_images": self.loader.num_images,
            "optimizer": self.optimizer.kind,
            "head_optimizer": self.head.optimizer_kind,
            "loss_scaling": self.precision.state(),
            "network": network_name(self.backbone),
            "settings": {**saved_settings(self.config), **self.remote},
            "objects": saved_objects(self.config),
            "classes": about_classes(self.classes),
            "scores": None if centers is None else {"is_cosine": centers.is_cosine, "scale": centers.scale},
            "held_out": held_out_digest(self.records),
        }

    def load(self, saved: Checkpoint) -> Start:
        """Take over the state of a checkpoint.

        Raises:
            CheckpointError: it is damaged, or does not fit the settings or the classes of the data.
        """
        about, config = About.of(saved), self.config
        goes_on = config.auto_resume and is_in_save_folder(config, saved) and not is_named(config, saved)
        if goes_on:
            refuse_changes(
                about,
                config,
                path=saved.path,
                network=network_name(self.backbone),
                num_images=None if self.records is None else self.loader.num_images,
            )
        if self.topology.is_main:
            warn_of_other_split(about, self.records)
        # The head of a run that goes on is its own, and new no more.
        action = "stop" if goes_on and config.class_change == "new_head" else config.class_change
        move = match_classes(
            saved, self.classes, records=self.records, folder=data_folder(config), config=config, action=action
        )
        is_anew = not goes_on and _begins_anew(config, move)
        load_backbone(self.backbone, saved, config=config, other_embedding=action == "new_head")
        has_statistics = not is_anew and load_statistics(self.backbone, saved, topology=self.topology)
        if move is None or move.num_kept:
            initial = {} if move is None else initial_rows(self.head, move)
            rows = None if move is None else move.rows
            load_training(self.head, self.optimizer, saved=saved, config=config, rows=rows)
            if move is not None:
                restore_rows(self.head, move, initial)
            with reading(saved.path, "the loss scale "):
                self.precision.load(about.loss_scaling)
        return Start(about=about, has_statistics=has_statistics, move=move, is_anew=is_anew)


def _begins_anew(config: Config, move: ClassMove | None) -> bool:
    """Whether epochs and steps begin at 0, of a checkpoint that does not lie on the way of this run."""
    if config.counters == "auto":
        return move is not None and move.changes_classes
    return config.counters == "anew"
