"""The parts of a training run, made from the settings and from what a script gives, on all ranks in step."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import paddle

from plsc.checkpoint import Checkpoint
from plsc.config import Config
from plsc.data.class_identity import ClassIdentity, identify_classes
from plsc.data.loader import ReaderLoader, TrainLoader
from plsc.data.records import Records
from plsc.data.verification_set import VerificationSet
from plsc.distributed.agreement import agree
from plsc.distributed.collectives import Collectives
from plsc.distributed.groups import HeadGroups
from plsc.distributed.replica import Replica
from plsc.distributed.topology import Topology, init_topology, is_restart, use_threads
from plsc.engine.about import About
from plsc.engine.auto_resume import open_start
from plsc.engine.class_change import names_of
from plsc.engine.closed_set import ClosedSet, open_closed_set
from plsc.engine.contents import Contents
from plsc.engine.dataloading import (
    Loader,
    agree_on_images,
    build_dataloader,
    check_loader,
    count_images,
    data_folder,
    missing_default_set,
    num_classes_of,
    open_verification_sets,
)
from plsc.engine.freezing import freeze
from plsc.engine.idle_settings import warn_of_idle_settings
from plsc.engine.judge import Judge
from plsc.engine.observers import Observer
from plsc.engine.observers.group import ObserverGroup
from plsc.engine.observers.launch_report import LaunchReport
from plsc.engine.observers.loggers import make_loggers
from plsc.engine.observers.metrics_file import MetricsFile
from plsc.engine.observers.progress import Progress
from plsc.engine.observers.run_notes import RunNotes
from plsc.engine.observers.summary import Summary
from plsc.engine.observers.training_doctor import TrainingDoctor
from plsc.engine.optimizer import NamedOptimizer
from plsc.engine.places import places_of_training, remote_settings
from plsc.engine.precision import Precision
from plsc.engine.pretrained import load_pretrained
from plsc.engine.rank_check import (
    check_ranks_agree,
    describe_checkpoint,
    describe_network,
    describe_program,
    describe_settings,
)
from plsc.engine.resume import clean_save_folder
from plsc.engine.run_lock import WAIT_SECONDS, RunLock
from plsc.engine.saver import Notices, Saver
from plsc.engine.stopping import StopRequest
from plsc.engine.transfer import Transfers, transfers_of
from plsc.engine.uploads import Uploader
from plsc.engine.verifier import Verifier
from plsc.errors import CheckpointError, ConfigError, DataError, StorageError
from plsc.losses import Head, check_head
from plsc.losses.classifier import Classifier, groups_of
from plsc.models.base_model import build_backbone, check_model
from plsc.models.recompute import BlockRecompute
from plsc.utils.hints import setter
from plsc.utils.logging import show_log

log = logging.getLogger("plsc")


class Given(NamedTuple):
    """What a script gives in place of what the settings name.

    Attributes:
        backbone: a layer [N, 3, H, W] -> [N, D].
        loader: the source of training batches.
        head: the last layer.
        observers: in addition to those of every run.
    """

    backbone: paddle.nn.Layer | None
    loader: Loader | None
    head: Head | None
    observers: Iterable[Observer]


class Folder(NamedTuple):
    """Where a run saves.

    Attributes:
        remote: the settings that were URLs, by name.
        uploads: copies checkpoints to a remote folder; None where the folder is local.
        lock: of the local folder.
    """

    remote: dict[str, str]
    uploads: Uploader | None
    lock: RunLock


class Data(NamedTuple):
    """What a run trains on.

    Attributes:
        loader: the source of training batches.
        records: of the loader; None where it is not the library's own.
        classes: their identity; None where it is not known.
    """

    loader: Loader
    records: Records | None
    classes: ClassIdentity | None


class Network(NamedTuple):
    """The backbone, and what depends on nothing else.

    Attributes:
        backbone: with initial weights.
        trained: its parameters that are not frozen.
        recomputing: the context of a forward pass.
        observers: of the run.
    """

    backbone: paddle.nn.Layer
    trained: dict[str, paddle.Tensor]
    recomputing: Callable[[], AbstractContextManager[None]]
    observers: ObserverGroup


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a run, each complete.

    Attributes:
        collectives: over all ranks.
        folder: where the run saves.
        saved: the checkpoint to start from; None for none.
        network: the backbone, with the average of its gradients over ranks.
        recomputing: the context of a forward pass.
        verification_sets: pairs of images.
        closed_set: the validation data; None for none.
        verifier: measures the backbone on both.
        transfers: bring batches to the device.
        saver: writes checkpoints.
        contents: what checkpoints hold: settings, backbone, head, optimizer, precision, loader, judge.
        observers: of the run.
    """

    collectives: Collectives
    folder: Folder
    saved: Checkpoint | None
    network: Replica
    recomputing: Callable[[], AbstractContextManager[None]]
    verification_sets: list[VerificationSet]
    closed_set: ClosedSet | None
    verifier: Verifier
    transfers: Transfers
    saver: Saver
    contents: Contents
    observers: ObserverGroup


def make_parts(config: Config, given: Given, *, stop: StopRequest, held: contextlib.ExitStack) -> Parts:
    """Join the ranks and make the parts. Every rank must call this; what fails on one rank fails on all.

    Args:
        config: the settings.
        given: by the script.
        stop: whether the run was asked to stop.
        held: gets what is to be given back where the run ends.
    """
    config, collectives = _join(config)
    notes = RunNotes(collectives.topology)
    held.callback(notes.close)
    given = given._replace(observers=[notes, *given.observers])
    config, folder = _open_folder(config, collectives, held)
    saved = open_start(config, collectives)
    if collectives.topology.is_main:
        warn_of_idle_settings(config)
    config, data = agree(
        lambda: _open_data(config, saved, given.loader, collectives.topology), collectives, error=DataError
    )
    config, network = agree(
        lambda: _make_network(config, given, collectives.topology, data.records), collectives, error=ConfigError
    )
    pretrained = agree(
        lambda: load_pretrained(config, network.backbone, resumed=saved, topology=collectives.topology),
        collectives,
        error=CheckpointError,
    )
    check_ranks_agree(
        lambda: (
            _facts(config, data, network, given.head, topology=collectives.topology)
            | {"checkpoint": describe_checkpoint(saved), "pretrained weights": pretrained}
        ),
        collectives,
    )
    agree_on_images(data.loader, collectives)
    replica = Replica(network.backbone, collectives)
    saver = Saver(config, collectives, uploads=folder.uploads, lock=folder.lock)
    transfers = transfers_of(collectives.topology)
    make_judge = functools.partial(
        Judge,
        collectives=collectives,
        transfers=transfers,
        notices=functools.partial(_notices, saver, stop),
        settle=saver.finish,
    )
    groups = groups_of(config, collectives) if given.head is None else None
    contents = agree(
        lambda: _make_contents(
            config, collectives, folder, data, network, head=given.head, groups=groups, make_judge=make_judge
        ),
        collectives,
        error=ConfigError,
    )
    sets = open_verification_sets(config, collectives) if config.with_test else []
    closed = _open_closed_set(config, data, contents.head, collectives) if config.with_test else None
    if config.with_test and closed is None and (path := missing_default_set(config)) is not None:
        log.warning(
            "no verification: %s (the default of val_targets) does not exist; for pairs of images %s, for top-1 of the "
            "classes of training %s",
            path,
            setter("val_targets"),
            f"{setter('val_dataset_dir')} or {setter('val_split')}",
        )
    verifier = Verifier(
        config,
        network.backbone,
        sets=sets,
        closed=closed,
        head=contents.head,
        collectives=collectives,
        uploads=folder.uploads,
    )
    return Parts(
        collectives=collectives,
        folder=folder,
        saved=saved,
        network=replica,
        recomputing=network.recomputing,
        verification_sets=sets,
        closed_set=closed,
        verifier=verifier,
        transfers=transfers,
        saver=saver,
        contents=contents,
        observers=network.observers,
    )


def _join(config: Config) -> tuple[Config, Collectives]:
    """Join the ranks, and check the settings."""
    if not isinstance(config, Config):
        raise ConfigError(f"config: got {type(config).__name__}, expected a plsc.Config")
    topology = init_topology(config.rank_timeout)
    show_log(topology.is_main)
    use_threads(config.cpu_threads, topology)
    for doubt in config.doubts() if topology.is_main else ():
        log.warning(doubt)
    collectives = Collectives(topology)
    config = agree(lambda: _with_environment(config), collectives, error=ConfigError)
    agree(config.check, collectives, error=ConfigError)
    return config, collectives


def _with_environment(config: Config) -> Config:
    """The settings, with `auto_resume` where the environment asks for it."""
    return config.model_copy(update={"auto_resume": True}) if is_restart() else config


def _open_folder(config: Config, collectives: Collectives, held: contextlib.ExitStack) -> tuple[Config, Folder]:
    """Fetch what lies in remote folders, and hold the folder of the checkpoints."""
    remote = remote_settings(config)
    config, uploads = agree(lambda: places_of_training(config), collectives, error=StorageError)
    # What the search for a checkpoint depends on, before it.
    check_ranks_agree(lambda: describe_settings(config, only=["auto_resume", "model_save_dir"]), collectives)
    lock = RunLock(config.model_save_dir)
    held.callback(lock.release)
    lock.hold(collectives, wait=WAIT_SECONDS if config.auto_resume else 0.0)
    if lock.is_held:
        clean_save_folder(config.model_save_dir)
    if config.auto_resume and uploads is not None:
        agree(uploads.open_newest, collectives, error=StorageError)
    return config, Folder(remote, uploads, lock)


def _open_data(
    config: Config, saved: Checkpoint | None, loader: Loader | None, topology: Topology
) -> tuple[Config, Data]:
    """Open the training data, and complete the settings by the data and the checkpoint to start from."""
    trained = None if saved is None else About.of(saved).settings.num_classes
    if loader is None:
        follows_data = config.class_change in ("by_name", "new_head")
        loader = build_dataloader(
            config, topology, classes_trained=trained, follows_data=saved is not None and follows_data
        )
    loader = check_loader(loader, config, topology=topology)
    num_classes = num_classes_of(loader, config, classes_trained=trained)
    config = config.model_copy(update={"num_classes": num_classes})
    records = loader.records if isinstance(loader, TrainLoader) else None
    classes = None if records is None else identify_classes(records, data_folder(config))
    return config, Data(loader, records, classes)


def _make_network(config: Config, given: Given, topology: Topology, records: Records | None) -> tuple[Config, Network]:
    """Make what takes no other rank: the backbone and the observers."""
    if given.backbone is not None:
        config = config.model_copy(update={"model": check_model(given.backbone)})
    paddle.seed(config.seed)
    backbone = build_backbone(config)
    trained = freeze(backbone, config.frozen)
    recomputing = BlockRecompute(backbone).forward if config.recompute else contextlib.nullcontext
    doctor = [TrainingDoctor(records)] if config.training_doctor else []
    loggers = make_loggers(config.loggers, is_main=topology.is_main)
    shown = [Summary(topology, backbone, records), Progress(on_gpu=topology.on_gpu)]
    observers = [*shown, MetricsFile(), LaunchReport(), *doctor, *loggers, *given.observers]
    return config, Network(backbone, trained, recomputing, ObserverGroup(observers, topology.is_main))


def _facts(config: Config, data: Data, network: Network, head: Head | None, *, topology: Topology) -> dict[str, object]:
    """What ranks must have in common: compared before any collective depends on it."""
    return {
        **describe_program(topology),
        **describe_settings(config),
        "network": describe_network(network.backbone),
        "loader": type(data.loader).__qualname__,
        "head": "that of loss_type" if head is None else type(head).__qualname__,
        "number of training images": None if isinstance(data.loader, ReaderLoader) else data.loader.num_images,
        "classes of the training data": data.classes and f"known by {data.classes.by}, {data.classes.digest[:12]}",
    }


def _make_contents(
    config: Config,
    collectives: Collectives,
    folder: Folder,
    data: Data,
    network: Network,
    *,
    head: Head | None,
    groups: HeadGroups | None,
    make_judge: Callable[..., Judge],
) -> Contents:
    """Make the head, unless it is given, the optimizers and the judge.

    What one rank alone may not be able to: its memory may not hold them, or its GPU not know the type.
    """
    precision = Precision(config, collectives.topology)
    optimizer = NamedOptimizer(config, network.trained)
    if head is None:
        head = Classifier(
            config,
            collectives,
            make_optimizer=lambda own: NamedOptimizer(config, own, of_centers=True),
            groups=groups,
            class_counts=functools.partial(count_images, data.records, config.num_classes),
        )
    head = check_head(head, config.num_classes)
    judge = make_judge(config, network.backbone, head=head, loader=data.loader, precision=precision)
    return Contents(
        config=config,
        remote=folder.remote,
        topology=collectives.topology,
        loader=data.loader,
        records=data.records,
        classes=data.classes,
        backbone=network.backbone,
        head=head,
        optimizer=optimizer,
        precision=precision,
        judge=judge,
    )


def _open_closed_set(config: Config, data: Data, head: Head, collectives: Collectives) -> ClosedSet | None:
    """The validation data, if any."""
    closed = open_closed_set(
        config,
        data.records,
        names=names_of(data.classes),
        num_classes=config.num_classes,
        collectives=collectives,
    )
    if closed is not None and head.centers() is None:
        raise ConfigError(
            f"head {type(head).__name__}: centers() returns None, and validation data needs class centers; "
            f"return them (docs/extending.md), or leave the validation data out"
        )
    return closed


def _notices(saver: Saver, stop: StopRequest) -> Notices:
    """What this rank tells the others with the verdict on a step."""
    return saver.notices()._replace(stop=float(stop.is_asked()))
