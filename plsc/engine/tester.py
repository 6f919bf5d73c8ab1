"""Verification of a checkpoint: `Entry.test` and `plsc test`."""

from __future__ import annotations

import functools
import logging
import os
import re
from pathlib import Path
from typing import Any

from plsc.checkpoint import Checkpoint
from plsc.config import DEFAULT_VAL_TARGETS, Config
from plsc.data.records import Records
from plsc.distributed import watch
from plsc.distributed.agreement import agree
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.engine.about import About
from plsc.engine.class_change import names_in
from plsc.engine.closed_set import ClosedSet, open_closed_set, write_tables
from plsc.engine.dataloading import open_training_records, open_verification_sets
from plsc.engine.evaluator import check_verification_pairs, evaluate
from plsc.engine.places import places_of_use
from plsc.engine.rank_check import (
    check_ranks_agree,
    describe_checkpoint,
    describe_network,
    describe_program,
    describe_settings,
)
from plsc.engine.resume import warn_of_other_split
from plsc.engine.saved_centers import read_centers
from plsc.engine.state import NETWORK_SETTINGS, open_backbone
from plsc.errors import CheckpointError, ConfigError, DataError
from plsc.metrics.closed_set import ClosedSetReport
from plsc.utils.hints import setter

log = logging.getLogger("plsc")


@watch.watched()
def test(config: Config, topology: Topology, *, tables: Path | None = None) -> dict[str, float]:
    """Verify a checkpoint on the verification sets and the validation data of a configuration.

    With `val_split`, the images are those that training held out: the seed and `min_images_per_class` are those of the
    checkpoint where they are not given.

    Args:
        config: the settings.
        topology: this rank.
        tables: folder to write `classes.csv` and `confusions.csv` of the validation data to; rank 0 writes.

    Returns:
        The metrics as '<set>/<metric>', the same on all ranks.

    Raises:
        ConfigError: settings contradict each other, or `tables` is given without validation data.
        CheckpointError: there is no checkpoint, it is of another network, or its head has no class centers.
        DataError: there is nothing to test on, an image cannot be decoded, or a class is not in training.
        DistributedError: ranks have different networks or checkpoints.
    """
    collectives = Collectives(topology)
    agree(config.check, collectives, error=ConfigError)
    config = agree(lambda: places_of_use(config, sets=True), collectives, error=DataError)
    sets = open_verification_sets(config, collectives)
    is_closed = any((config.val_dataset is not None, config.val_dataset_dir is not None, config.val_split))
    if tables is not None and not is_closed:
        raise ConfigError(
            f"tables of classes need validation data: {setter('val_dataset_dir')}, or {setter('val_split')} as in "
            f"training"
        )
    agree(lambda: _check_tables(tables), collectives, error=ConfigError)
    if not sets and not is_closed:
        raise DataError(
            f"nothing to test on: no verification set is given, and {_lacking(config)}; for top-1 of the classes of "
            f"training {setter('val_dataset_dir')}, or {setter('val_split')} as in training"
        )
    check_verification_pairs(sets)
    backbone, config, saved = agree(lambda: open_backbone(config), collectives, error=CheckpointError)
    check_ranks_agree(
        lambda: {
            **describe_program(topology),
            **describe_settings(config, NETWORK_SETTINGS),
            "network": describe_network(backbone),
            "checkpoint": describe_checkpoint(saved),
        },
        collectives,
    )
    closed = _open_closed(config, saved, collectives) if is_closed else None

    def write(report: ClosedSetReport) -> None:
        if tables is not None and closed is not None and topology.is_main:
            write_tables(tables, report, closed.names)

    found = evaluate(
        config,
        backbone,
        sets=sets,
        collectives=collectives,
        closed=closed,
        centers=functools.partial(read_centers, saved, collectives),
        on_report=lambda report: agree(lambda: write(report), collectives, error=ConfigError),
    )
    return found or {}


def _check_tables(tables: Path | None) -> None:
    """Refuse a file in the place of the folder of tables before images are read."""
    if tables is not None and os.path.lexists(tables) and not os.path.isdir(tables):
        raise ConfigError(f"{tables}: is no folder, expected one to write classes.csv and confusions.csv to")


def _open_closed(config: Config, saved: Checkpoint, collectives: Collectives) -> ClosedSet | None:
    about = About.of(saved)
    settings = about.settings.model_dump()
    unset: dict[str, Any] = {
        name: settings[name]
        for name in ("seed", "min_images_per_class")
        if name in settings and not config.is_given(name)
    }
    config = config.model_copy(update=unset)
    training: Records | None = None
    if config.val_split:
        training = agree(lambda: open_training_records(config), collectives, error=DataError)
        if collectives.topology.is_main:
            warn_of_other_split(about, training)
    return open_closed_set(
        config,
        training,
        names=agree(lambda: names_in(saved), collectives, error=CheckpointError),
        num_classes=about.settings.num_classes,
        collectives=collectives,
    )


def _lacking(config: Config) -> str:
    """Why there is no verification set where none is given, and what to do."""
    data, naming = config.dataset_dir, f"name one with {setter('val_targets')}"
    if config.val_targets is not None:
        return f"val_targets is empty; make one with plsc data pairs, or {naming}"
    is_path = re.fullmatch(r"[^:*?\[{]+", data) is not None  # no pattern and no synthetic:...
    if is_path and not os.path.exists(data):
        return f"{data} does not exist; name the data with {setter('dataset_dir')}, or {naming}"
    return f"{data} holds no {DEFAULT_VAL_TARGETS}.bin; make one with plsc data pairs, or {naming}"
