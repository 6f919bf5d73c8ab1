"""The training loop.

N batch on this rank, R ranks, D embedding.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
import paddle
from numpy.typing import NDArray

from plsc import checkpoint
from plsc.config import Config
from plsc.data.class_identity import identify_classes
from plsc.data.loader import Batch, ReaderLoader, TrainLoader
from plsc.data.transforms import normalize_tensor, tensor_constants
from plsc.distributed import watch
from plsc.distributed.agreement import agree, on_all_ranks
from plsc.distributed.collectives import Collectives
from plsc.distributed.launching.reports import report_uncaught
from plsc.distributed.replica import Replica
from plsc.distributed.topology import init_topology, is_restart, use_threads
from plsc.engine.about import About, read_metrics
from plsc.engine.auto_resume import open_start
from plsc.engine.class_change import ClassMove, names_of
from plsc.engine.closed_set import ClosedSet, open_closed_set
from plsc.engine.contents import Contents
from plsc.engine.dataloading import (
    Loader,
    agree_on_images,
    agreed_batches,
    build_dataloader,
    check_loader,
    count_images,
    count_steps_per_epoch,
    data_folder,
    missing_default_set,
    num_classes_of,
    open_verification_sets,
    warn_of_large_batch,
)
from plsc.engine.evaluator import check_closed, check_keep_best, check_verification_sets
from plsc.engine.freezing import freeze
from plsc.engine.judge import Judge, Made, Place
from plsc.engine.new_classes import begin_new_classes
from plsc.engine.observers import Observer, Run, Step, TrainingClock, Values
from plsc.engine.observers.group import ObserverGroup
from plsc.engine.observers.launch_report import LaunchReport
from plsc.engine.observers.metrics_file import MetricsFile
from plsc.engine.observers.progress import Progress
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
from plsc.engine.resume import (
    check_content_of,
    check_save_folder,
    clean_save_folder,
    warn_of_another_order,
    warn_of_other_steps,
)
from plsc.engine.run_lock import WAIT_SECONDS, RunLock
from plsc.engine.saver import Notices, Saver
from plsc.engine.schedules import build_schedule, explain_learning_rate, try_schedule
from plsc.engine.soundness import Evidence
from plsc.engine.stopping import StopRequest
from plsc.engine.transfer import Feed, transfers_of
from plsc.engine.verifier import Verifier
from plsc.errors import CheckpointError, ConfigError, DataError, Interrupted, PLSCError, StorageError, TrainingError
from plsc.losses import Head, check_gradient, check_head
from plsc.losses.classifier import Classifier
from plsc.models.base_model import build_backbone, check_embedding, check_model, network_name, warn_of_batch_of_one
from plsc.models.recompute import BlockRecompute
from plsc.utils.hints import setter
from plsc.utils.logging import show_log
from plsc.utils.plural import counted
from plsc.utils.seeding import derive_seed

log = logging.getLogger("plsc")

_NONE: Mapping[str, NDArray[Any]] = MappingProxyType({})


class Trainer:
    """One training run: a backbone on every rank, this rank's class centers, and the loop that trains both.

    The constructor joins the ranks that `python -m paddle.distributed.launch` started, builds what is not given from
    the settings, and loads `config.checkpoint_dir` where that is set. Every rank makes a trainer of the same settings.

    Args:
        config: the settings.
        backbone: a layer [N, 3, H, W] -> [N, D]; by default `config.model`, else the one that `model_name` names.
        loader: the source of training batches; by default built from `train_reader`, `train_dataset` or `dataset_dir`.
        head: the last layer; by default the `Classifier` of `loss_type`.
        observers: called after the progress bar and the file of metrics, which every run has.

    Attributes:
        step: steps done in the whole run, those skipped included.
        epoch: epochs done.
        step_in_epoch: steps done of the epoch that follows.
        steps_per_epoch: None where the number of training images is unknown.
        global_batch: images per step of all ranks, N R.
        schedule: step -> learning rate.

    Raises:
        ConfigError: settings contradict each other, or an argument is not of the kind described above.
        DataError: the training data or a verification set cannot be opened, or an image of a verification set cannot
            be decoded: all are decoded once.
        CheckpointError: the checkpoint to start from is damaged or does not fit the settings or the classes of the
            data; the file of `pretrained` cannot be read or does not fit the network; or `model_save_dir` cannot be
            written to, or another run saves into it.
        StorageError: a remote folder cannot be read or written, or does not fit into the cache.
        DistributedError: ranks have different settings or data.

    Example:
        >>> config = Config(dataset_dir="./faces", num_classes=10575, train_epochs=20, lr_schedule="cosine")
        >>> results = Trainer(config, backbone=MyNetwork(emb_dim=512), observers=[MyLogger()]).train()
        >>> results["lfw/accuracy"]
    """

    def __init__(
        self,
        config: Config,
        *,
        backbone: paddle.nn.Layer | None = None,
        loader: Loader | None = None,
        head: Head | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        report_uncaught()
        self._stop = StopRequest()
        self._held = contextlib.ExitStack()  # what is given back where this trainer goes
        weakref.finalize(self, self._held.close)
        try:
            with self._stop.heeded(at_once=True), watch.watched():
                self._prepare(config, backbone, loader, head, observers)
        except BaseException:
            self._held.close()
            raise

    def _prepare(
        self,
        config: Config,
        backbone: paddle.nn.Layer | None,
        loader: Loader | None,
        head: Head | None,
        observers: Iterable[Observer],
    ) -> None:
        if not isinstance(config, Config):
            raise ConfigError(f"config: got {type(config).__name__}, expected a plsc.Config")
        self.topology = init_topology(config.rank_timeout)
        show_log(self.topology.is_main)
        use_threads(config.cpu_threads, self.topology)
        for doubt in config.doubts() if self.topology.is_main else ():
            log.warning(doubt)
        self.collectives = Collectives(self.topology)
        config = agree(lambda: _with_environment(config), self.collectives, error=ConfigError)
        agree(config.check, self.collectives, error=ConfigError)
        self._remote = remote_settings(config)
        config, self._uploads = agree(
            functools.partial(places_of_training, config), self.collectives, error=StorageError
        )
        # What the search for a checkpoint depends on, before it.
        check_ranks_agree(lambda: describe_settings(config, only=["auto_resume", "model_save_dir"]), self.collectives)
        self._lock = RunLock(config.model_save_dir)
        self._held.callback(self._lock.release)
        self._lock.hold(self.collectives, wait=WAIT_SECONDS if config.auto_resume else 0.0)
        if self._lock.is_held:
            clean_save_folder(config.model_save_dir)
        if config.auto_resume and self._uploads is not None:
            agree(self._uploads.open_newest, self.collectives, error=StorageError)
        saved = open_start(config, self.collectives)
        agree(lambda: self._open(config, saved, loader), self.collectives, error=DataError)
        agree(lambda: self._make_parts(backbone, observers), self.collectives, error=ConfigError)
        weights = functools.partial(load_pretrained, self.config, self.backbone, resumed=saved, topology=self.topology)
        self._pretrained = agree(weights, self.collectives, error=CheckpointError)
        check_ranks_agree(lambda: self._facts(saved, head), self.collectives)
        agree_on_images(self.loader, self.collectives)
        config = self.config
        self.network = Replica(self.backbone, self.collectives)
        self._saver = Saver(config, self.collectives, uploads=self._uploads, lock=self._lock)
        self._transfers = transfers_of(self.topology)
        self._pixel_mean, self._pixel_std = (
            paddle.to_tensor(value) if isinstance(value, np.ndarray) else value
            for value in tensor_constants(config.pixel_mean, config.pixel_std)
        )
        agree(lambda: self._make_head(head), self.collectives, error=ConfigError)
        self._feed: Feed | None = None
        self.verification_sets = open_verification_sets(config, self.collectives) if config.with_test else []
        self._closed = self._open_closed_set() if config.with_test else None
        if config.with_test and self._closed is None and (path := missing_default_set(config)) is not None:
            log.warning("no verification: %s (the default of val_targets) does not exist", path)
        self.global_batch = config.train_batch_size * self.topology.world_size
        self.steps_per_epoch = count_steps_per_epoch(self.loader, self.global_batch)
        self.epoch, self.step_in_epoch, self.step = 0, 0, 0
        self._epoch_began_at = 0  # the step
        self._results: dict[str, float] = {}
        self._resumed_from: Path | None = None
        self._verifier = Verifier(
            config,
            self.backbone,
            sets=self.verification_sets,
            closed=self._closed,
            head=self.head,
            collectives=self.collectives,
            uploads=self._uploads,
        )
        self._save_again: Callable[[], None] = lambda: None
        self._contents = Contents(
            config=config,
            remote=self._remote,
            topology=self.topology,
            loader=self.loader,
            records=self._records,
            classes=self._classes,
            backbone=self.backbone,
            head=self.head,
            optimizer=self.optimizer,
            precision=self.precision,
            judge=self._judge,
        )
        self._run = self.collectives.gather_objects(secrets.token_hex(8))[0]
        if saved is not None:
            self._resume(saved)
        self.schedule = build_schedule(
            config, self.global_batch, steps_per_epoch=self.steps_per_epoch, total_steps=self.total_steps
        )
        if not self.is_done:
            self._check_start()
        self._clock = TrainingClock()

    def _open(self, config: Config, saved: checkpoint.Checkpoint | None, loader: Loader | None) -> None:
        """Open the training data, and complete the settings by the data and the checkpoint to start from."""
        trained = None if saved is None else About.of(saved).settings.num_classes
        if loader is None:
            follows_data = config.class_change in ("by_name", "new_head")
            loader = build_dataloader(
                config, self.topology, classes_trained=trained, follows_data=saved is not None and follows_data
            )
        self.loader = check_loader(loader, config, topology=self.topology)
        num_classes = num_classes_of(self.loader, config, classes_trained=trained)
        self.config = config.model_copy(update={"num_classes": num_classes})
        self._records = self.loader.records if isinstance(self.loader, TrainLoader) else None
        self._classes = None if self._records is None else identify_classes(self._records, data_folder(config))

    def _open_closed_set(self) -> ClosedSet | None:
        """The validation data, if any."""
        closed = open_closed_set(
            self.config,
            self._records,
            names=names_of(self._classes),
            num_classes=self.config.num_classes,
            collectives=self.collectives,
        )
        if closed is not None and self.head.centers() is None:
            raise ConfigError(
                f"head {type(self.head).__name__}: centers() returns None, and validation data needs class centers; "
                f"return them (docs/extending.md), or leave the validation data out"
            )
        return closed

    def _make_parts(self, backbone: paddle.nn.Layer | None, observers: Iterable[Observer]) -> None:
        """Make what takes no other rank: the backbone and the observers."""
        if backbone is not None:
            self.config = self.config.model_copy(update={"model": check_model(backbone)})
        paddle.seed(self.config.seed)
        self.backbone = build_backbone(self.config)
        self._trained = freeze(self.backbone, self.config.frozen)
        self._recomputing = BlockRecompute(self.backbone).forward if self.config.recompute else contextlib.nullcontext
        self.observers = ObserverGroup([Progress(), MetricsFile(), LaunchReport(), *observers], self.topology.is_main)

    def _make_head(self, head: Head | None) -> None:
        """Make the head, unless it is given, and the optimizers.

        What one rank alone may not be able to: its memory may not hold them, or its GPU not know the type.
        """
        config = self.config
        self.precision = Precision(config, self.topology)
        self.optimizer = NamedOptimizer(config, self._trained)
        if head is None:
            head = Classifier(
                config,
                self.collectives,
                make_optimizer=lambda own: NamedOptimizer(config, own, of_centers=True),
                class_counts=functools.partial(count_images, self._records, config.num_classes),
            )
        self.head = check_head(head, config.num_classes)
        self._judge = Judge(
            config,
            self.backbone,
            head=self.head,
            loader=self.loader,
            collectives=self.collectives,
            transfers=self._transfers,
            precision=self.precision,
            notices=functools.partial(_notices, self._saver, self._stop),
            settle=self._saver.finish,
        )

    def _facts(self, saved: checkpoint.Checkpoint | None, head: Head | None) -> dict[str, object]:
        """What ranks must have in common, in addition to settings: compared before any collective depends on it."""
        return {
            **describe_program(self.topology),
            **describe_settings(self.config),
            "network": describe_network(self.backbone),
            "loader": type(self.loader).__qualname__,
            "head": "that of loss_type" if head is None else type(head).__qualname__,
            "number of training images": None if isinstance(self.loader, ReaderLoader) else self.loader.num_images,
            "classes of the training data": self._classes
            and f"known by {self._classes.by}, {self._classes.digest[:12]}",
            "checkpoint": describe_checkpoint(saved),
            "pretrained weights": self._pretrained,
        }

    @watch.watched()
    def train(self) -> dict[str, float]:
        """Train to the end, save and verify after each epoch.

        Returns:
            The last value of everything: 'loss', 'lr', 'lfw/accuracy', ...; on rank 0 also 'images/s', unless no step
            was left. A run that resumes starts from the values of its checkpoint.

        Raises:
            TrainingError: a step is not sound, as `plsc.engine.soundness` says, or `max_skipped_steps` in a row were
                not; there is no training data; or an observer raised an exception.
            DataError: a training image cannot be read.
            CheckpointError: numbers to save are not finite.
            NotSavedError: the last checkpoint cannot be written. An earlier one that cannot be written ends nothing.
            Interrupted: SIGTERM, SIGINT or SIGUSR1 asked to stop; all of training is saved.
        """
        if self.is_done:
            more = setter("train_epochs") if self.config.train_steps is None else setter("train_steps")
            log.info("nothing is left to train after %s; to train on, give more: %s", counted(self.step, "step"), more)
        else:
            self._log_start()
        results = self._results
        self._clock = TrainingClock()
        run = Run(
            config=self.config,
            first_step=self.step,
            total_steps=self.total_steps,
            global_batch=self.global_batch,
            checkpoint=self._resumed_from,
        )
        uploads = self._uploads if self.topology.is_main and self._uploads else contextlib.nullcontext()
        with (
            self._locked(),
            contextlib.closing(self.loader),
            self._stop.heeded(),
            uploads,
            self.observers.running(run, results),
            self._saver.rescued(),
        ):
            self._verify_resumed(results)
            if not self.is_done:
                self._judge.check_start()
            while not self.is_done:
                step = self._make_step({})
                for batch in self._batches():
                    self._between_steps(step)
                    step = self._make_step(self.train_step(batch))
                    self._saver.note_step(self.step)
                    if not self._judge.skipped_in_a_row:  # a step has made the state of the optimizers
                        self._saver.prepare(lambda: self._contents.parts(_NONE))
                    self.observers.on_step(step)
                    if self.is_done:
                        break
                    if self._is_verified_within_epoch():
                        self._between_steps(step, every=True)
                        results.update(self._verify(step))
                results.update(step.values)
                self._end_epoch(step, results)
            if self.topology.is_main and self.step > run.first_step:
                images = (self.step - run.first_step) * self.global_batch
                results["images/s"] = images / max(self._clock.seconds, 1e-9)
        return results

    def train_step(self, batch: Batch) -> dict[str, Any]:
        """One step of every rank on its share of the global batch.

        A step that is not sound stops training when the next one begins, on a GPU `plsc.engine.transfer.LAGS` steps
        later: the device works while the next batch is awaited. With `on_nonfinite` 'skip' it is found before anything
        moves, and left out: everything stays as it was, but for the number of steps. With float16, a step that
        overflows is left out in either mode, and the loss scale shrinks. Both wait for the device once per step.

        Returns:
            Numbers, and tensors of one element that the device may still be computing: 'loss', 'lr', with
            `calc_acc` 'acc1' and 'acc5', and where steps may be left out 'skipped_steps'.

        Raises:
            TrainingError: an earlier step is not sound, or `max_skipped_steps` in a row were skipped.
        """
        watch.phase(f"in step {self.step + 1}")
        self._judge.check()
        paddle.seed(derive_seed(self.config.seed, self.step, self.topology.rank))
        learning_rate = self.schedule(self.step)
        place = Place(epoch=self.epoch, step_in_epoch=self.step_in_epoch, step=self.step, learning_rate=learning_rate)
        pixels, labels = self._transfers.take(batch)
        images = normalize_tensor(pixels, mean=self._pixel_mean, std=self._pixel_std)

        self._judge.before_forward()
        with self.precision.forward(), self._recomputing():
            features = self.network(images)
        check_embedding(features, self.backbone, images=len(batch.labels), emb_dim=self.config.emb_dim)
        head_features = features.detach().astype("float32")
        loss = self.head.forward(head_features, labels, step=self.step, count_above=self.config.calc_acc)
        values = {"loss": loss, "lr": learning_rate}
        if self.config.calc_acc:
            values.update(self.head.accuracy())
        feature_gradient = self.head.backward()
        check_gradient(feature_gradient, self.head, features=features)
        # The head's gradient is exact for the mean over the global batch. `Replica` averages over ranks what must be
        # summed, so that average is undone here, and nowhere else.
        scaled = self.precision.scaled(feature_gradient * self.topology.world_size)
        with self.precision.backward():
            if not features.stop_gradient:  # as where all of the backbone is frozen
                features.backward(scaled.astype(features.dtype))
        self.network.average_gradients()
        self._fetch()

        made = Made(
            images=images if batch.images.dtype.kind == "f" else None,
            features=head_features,
            loss=loss,
            feature_gradient=feature_gradient,
            overflowed=self.precision.unscale_(self.optimizer.gradients()),
        )
        evidence = self._judge.collect(made)
        if self._judge.leaves_out(place, evidence):
            self.optimizer.clear_gradients()
        else:
            self._update(place, evidence)
        if self._judge.may_leave_out:
            values["skipped_steps"] = self._judge.skipped_steps
        self.step += 1
        self.step_in_epoch += 1
        return values

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run, done and left; None where the number of training images is unknown.

        The epochs done may have had another number of steps: the run may have had another global batch before it was
        resumed.
        """
        if self.config.train_epochs is None:
            return self.config.train_steps
        if self.steps_per_epoch is None:
            return None
        left = (self.config.train_epochs - self.epoch) * self.steps_per_epoch - self.step_in_epoch
        return self.step + max(left, 0)

    @property
    def is_done(self) -> bool:
        """Whether no step is left to train."""
        if self.config.train_epochs is None:
            return self.step >= (self.config.train_steps or 0)
        return self.epoch >= self.config.train_epochs

    def _log_start(self) -> None:
        log.info(
            "training from step %d to %s: %s steps per epoch, global batch %d (%d on each rank), ranks %d",
            self.step + 1,
            self.total_steps or "an unknown end",
            self.steps_per_epoch or "an unknown number of",
            self.global_batch,
            self.config.train_batch_size,
            self.topology.world_size,
        )
        if self.topology.is_main:
            rate = explain_learning_rate(
                self.config,
                self.schedule,
                self.step,
                global_batch=self.global_batch,
                steps_per_epoch=self.steps_per_epoch,
                total_steps=self.total_steps,
            )
            log.info(rate)

    def _make_step(self, values: dict[str, Any]) -> Step:
        return Step(number=self.step, epoch=self.epoch, values=Values(values), clock=self._clock)

    def _batches(self) -> Iterator[Batch]:
        batches = self.loader.epoch(self.epoch, self.step_in_epoch)
        # A TrainLoader has equally many batches on every rank; of another loader that is not known.
        if not isinstance(self.loader, TrainLoader):
            batches = agreed_batches(batches, self.collectives, self._transfers)
        feed = self._feed = Feed(batches, self._transfers)
        try:
            while True:
                watch.phase(f"reading a batch of epoch {self.epoch}, for step {self.step + 1}")
                batch = next(feed, None)
                if batch is None:
                    return
                yield batch
        finally:
            if self._feed is feed:  # an epoch that an error has ended may be closed while a later one is read
                self._feed = None

    def _fetch(self) -> None:
        """Read the batch of the next step, if there is one, while the device computes this one, before any wait."""
        if self._feed is not None and self._transfers.lag and self.step + 1 != self.total_steps:
            watch.phase(f"reading a batch of epoch {self.epoch}, for step {self.step + 2}")
            self._feed.fetch()
            watch.phase(f"in step {self.step + 1}")

    def _is_verified_within_epoch(self) -> bool:
        """Whether `test_period` is over. After the last step of an epoch it is saved first, see `_end_epoch`."""
        if isinstance(self.loader, TrainLoader) and self.step_in_epoch == self.steps_per_epoch:
            return False
        return self.config.test_period > 0 and self.step % self.config.test_period == 0

    def _heed(self, *, every: bool = False) -> bool:
        """Heed the verdicts that are due, and what ranks told each other with them; returns whether to stop.

        Args:
            every: those on the last steps, too. No checkpoint may hold a step that is not judged.
        """
        stops = False
        for of_step, numbers in self._judge.check(every=every):
            notices = Notices(*numbers)
            self._saver.heed(notices, of_step=of_step, step=self.step)
            stops |= notices.stop > 0
        self._announce()
        return stops

    def _between_steps(self, step: Step, *, every: bool = False) -> None:
        """Stop after a step where that was asked for; save within the epoch where that is due."""
        stops = self._heed(every=every)
        if stops or self._saver.is_due(self.step):
            stops |= self._heed(every=True)
        if stops:
            self._leave(step)
        if self._saver.is_due(self.step):
            self._save_within_epoch(step)

    def _end_epoch(self, step: Step, results: dict[str, float]) -> None:
        """Save `<epoch>`, or `<epoch>.<step>` where the run ended within an epoch; then verify.

        The checkpoint is written while the network is verified and trained on. A verification that fails costs no
        training: observers get the checkpoint.
        """
        if self.step_in_epoch == 0:
            raise TrainingError(
                f"epoch {self.epoch}: the training data yielded no batch; a train_reader must return "
                f"a new iterable at each call"
            )
        stops = self._heed(every=True)
        if self.is_done and self.step_in_epoch != self.steps_per_epoch:
            self._save_within_epoch(step)
        else:
            self.epoch, self.step_in_epoch, self._epoch_began_at = self.epoch + 1, 0, self.step
            self._verifier.average_statistics(step.number)
            self._save(step, self._name)
        if stops:
            self._leave(step)
        try:
            results.update(self._verify(step))
        finally:
            self._announce()
        if self.is_done:
            self._insist()

    def _leave(self, step: Step) -> NoReturn:
        """End the run, as a signal has asked, once all of it is saved."""
        names = self.collectives.gather_objects(self._stop.name)
        if self._saver.saved_step != self.step:
            self._save_within_epoch(step)
        self._insist()
        rank, name = next((rank, name) for rank, name in enumerate(names) if name is not None)
        where = f" on rank {rank}" if len(names) > 1 else ""
        interruption = Interrupted(
            f"stopped by {name}{where}: training up to step {self.step} is saved in {self._saver.newest}; start "
            f"again to go on"
        )
        raise on_all_ranks(interruption)

    def _insist(self) -> None:
        """Wait until the last checkpoint of this run is complete."""
        self._saver.insist(self._save_again, is_stopped=self._stop.is_asked)
        self._announce()

    def _verify(self, step: Step) -> dict[str, float]:
        """The metrics of every verification set, as '<set>/<metric>'; none where this step was verified before.

        Where it fails, training up to this step is in a checkpoint.
        """
        if self._verifier.is_verified(step.number):
            return {}
        try:
            with self._clock.paused():
                results = self._verifier.verify(step.number, is_stopped=self._stop.is_asked)
        except PLSCError as error:  # on all ranks
            if self._saver.saved_step != step.number:
                self._save_within_epoch(step)
            self._saver.finish()
            self._announce()
            raise type(error)(f"{error}; training up to here is saved in {self._saver.newest}") from error
        if results is None:
            self._leave(step)
        if results:
            with self._clock.paused():
                self.observers.on_verify(step, results)
        return results

    def _verify_resumed(self, results: dict[str, float]) -> None:
        """Verify what training resumes from, where the run before ended between its saving and its verification."""
        about, self._verifier.interrupted = self._verifier.interrupted, None
        if about is None:
            return
        epoch = about.epoch if about.images_in_epoch else about.epoch - 1
        step = Step(number=self.step, epoch=epoch, values=Values(about.last_results), clock=self._clock)
        results.update(self._verify(step))
        if self._resumed_from is not None and self._is_own(self._resumed_from):
            self._verifier.record(self.step, self._resumed_from)

    def _save_within_epoch(self, step: Step) -> None:
        """Begin to save `<epoch>.<step>`, with the running statistics of each rank: training goes on with these."""
        self._save(step, self._name, self._verifier.own_statistics(step.number))

    def _save(self, step: Step, name: str, statistics: Mapping[str, NDArray[Any]] = _NONE) -> None:
        """Begin to save a checkpoint; `statistics` are those of each rank."""
        if self._judge.skipped_in_a_row and self.topology.is_main:
            log.warning(
                "skipped the last %s: earlier checkpoints are kept until a step is sound again",
                counted(self._judge.skipped_in_a_row, "step"),
            )
        self._save_again = functools.partial(self._save, step, name, statistics)
        with self._clock.paused():
            values = dict(step.values)  # read now: observers get this step when later ones were made
            self._saver.finish()
            self._announce()  # before the new one may have the earlier one deleted
            self._saver.start(
                step,
                name,
                parts=lambda: self._contents.parts(statistics),
                about=self._contents.about(
                    results={**self._results, **values},
                    run=self._run,
                    epoch=self.epoch,
                    step=self.step,
                    images_in_epoch=self.step_in_epoch * self.global_batch,
                    steps_in_epoch=self.step - self._epoch_began_at,
                    global_batch=self.global_batch,
                    verified=self._verifier.is_verified(self.step),
                    averaged=self._verifier.is_averaged(self.step),
                ),
                # The newest is of no use where its last step was skipped.
                prunes=not self._judge.skipped_in_a_row,
            )

    def _announce(self) -> None:
        """Tell observers of the checkpoints that are complete."""
        for step, path in self._saver.take_completed():
            if self.topology.is_main:
                skipped = {"unreadable image": self.loader.skipped, "step": self._judge.skipped_steps}
                told = [f"; {counted(number, what)} skipped so far" for what, number in skipped.items() if number]
                log.info("saved %s%s", path, "".join(told))
            self._verifier.record(step.number, path)
            self.observers.on_save(step, path)

    def _check_start(self) -> None:
        """Find out before the first step what training would find out later, on all ranks together."""
        if self.topology.is_main:
            warn_of_large_batch(self.loader, self.config, global_batch=self.global_batch)
            warn_of_batch_of_one(self.backbone, self.config.train_batch_size)

        def try_learning_rates() -> dict[int, float]:
            return try_schedule(self.schedule, self.step, total_steps=self.total_steps)

        rates = agree(try_learning_rates, self.collectives, error=ConfigError)
        # Functions of one name may return different numbers. The last digits may differ with the machine.
        check_ranks_agree(
            lambda: {f"the learning rate of step {step + 1}": f"{value:.6g}" for step, value in rates.items()},
            self.collectives,
        )
        check_save_folder(
            self.config, position=self._position, last_epoch=self._last_epoch, collectives=self.collectives
        )
        agree(self._lock.require, self.collectives, error=CheckpointError)
        self._saver.check_space(self._contents.parts(_NONE))
        agree(self._check_uploads, self.collectives, error=CheckpointError)
        sets, has_closed_set = self.verification_sets, self._closed is not None
        agree(
            lambda: check_keep_best(self.config, sets, has_closed_set=has_closed_set),
            self.collectives,
            error=ConfigError,
        )
        check_verification_sets(self.config, sets, collectives=self.collectives)
        check_closed(self.config, self._closed, collectives=self.collectives)

    def _check_uploads(self) -> None:
        if self._uploads is not None and self.topology.is_main:
            self._uploads.check(self._position)

    @property
    def _position(self) -> tuple[int, int]:
        """The progress as names of checkpoints count it: epochs done, and steps of the epoch that follows."""
        return self.epoch, self.step - self._epoch_began_at

    @property
    def _name(self) -> str:
        """The name of a checkpoint at this step.

        Within an epoch it rises from step to step also where the global batch has changed, unlike `step_in_epoch`,
        which counts batches of the present size.
        """
        epoch, step = self._position
        return f"{epoch}.{step}" if step else str(epoch - 1)

    @property
    def _last_epoch(self) -> int:
        """The last epoch that this run may train, complete or not."""
        if self.config.train_epochs is not None:
            return self.config.train_epochs - 1
        left = (self.config.train_steps or 0) - self.step
        # Where an epoch has an unknown number of steps, it has one at least.
        return self.epoch + (self.step_in_epoch + left) // (self.steps_per_epoch or 1)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the save folder while training, and give it back."""
        try:
            if self._lock.hold(self.collectives) and not self.is_done:
                # Another trainer of this process has had the folder since this one was made.
                root, position, last_epoch = Path(self.config.model_save_dir), self._position, self._last_epoch
                agree(
                    lambda: check_content_of(root, position, last_epoch=last_epoch),
                    self.collectives,
                    error=CheckpointError,
                )
            self._lock.is_running = True
            yield
        finally:
            self._lock.release()

    def _is_own(self, saved: Path) -> bool:
        return saved.resolve().parent == Path(self.config.model_save_dir).resolve()

    def _resume(self, saved: checkpoint.Checkpoint) -> None:
        start = agree(lambda: self._contents.load(saved), self.collectives, error=CheckpointError)
        if start.move is not None:
            self._begin_classes(saved, start.move)
        if start.is_anew:
            self._judge.started_from = f" since the run was started from {saved.path}"
            if self.topology.is_main:
                log.info("started from %s: epochs and steps begin at 0, with the schedule of this run", saved.path)
            return
        about = start.about
        self.epoch, self.step = about.epoch, about.step
        self.step_in_epoch = about.images_in_epoch // self.global_batch
        self._epoch_began_at = about.step - about.last_step_in_epoch
        self._resumed_from = saved.path
        if self._is_own(saved.path):
            self._run = about.run
            self._saver.saved_step, self._saver.newest = self.step, saved.path
        metrics = self.collectives.gather_objects(read_metrics(saved.path))[0]  # rank 0 decides
        self._results = {**about.last_results, **(metrics or {})}
        has, due = start.has_statistics, self._is_verification_due(about)
        self._verifier.resume(about, metrics, has_statistics=has, is_due=due)
        self._judge.started_from = f" since the run was resumed from {saved.path}"
        if self.topology.is_main:
            log.info("resumed from %s: %s done, step %d", saved.path, counted(self.epoch, "epoch"), self.step)
            warn_of_other_steps(
                about,
                self.config,
                path=saved.path,
                network=network_name(self.backbone),
                global_batch=self.global_batch,
            )
        # The order of the images of another loader is its own, and how many it has may be a guess.
        if about.images_in_epoch and isinstance(self.loader, TrainLoader):
            if self.topology.is_main:
                warn_of_another_order(
                    about,
                    self.config,
                    num_images=self.loader.num_images,
                    classes=self._classes,
                    global_batch=self.global_batch,
                )
            if self.step_in_epoch >= self.loader.steps_per_epoch:
                self.epoch, self.step_in_epoch = self.epoch + 1, 0
                self._epoch_began_at = self.step

    def _begin_classes(self, saved: checkpoint.Checkpoint, move: ClassMove) -> None:
        """Set the centers of new classes, and say what becomes of all."""
        begin = begin_new_classes(
            self.head,
            self.backbone,
            move,
            records=self._records,
            config=self.config,
            collectives=self.collectives,
        )
        if self.topology.is_main:
            log.info("classes of %s in this run:\n  %s", saved.path, "\n  ".join(move.table(begin)))

    def _is_verification_due(self, about: About) -> bool:
        """Whether a run that is not interrupted verifies at the last step of a checkpoint."""
        if about.images_in_epoch == 0 or self.is_done:
            return True
        return self.config.test_period > 0 and about.step % self.config.test_period == 0

    def _update(self, place: Place, evidence: Evidence) -> None:
        """Move the head and the backbone by their gradients."""
        self.head.update(place.learning_rate * self.config.head_lr_factor)
        self.optimizer.step(place.learning_rate * self.config.backbone_lr_factor)
        self.precision.update(overflowed=False)
        self._judge.after_update(place, evidence)


def _with_environment(config: Config) -> Config:
    """The settings, with `auto_resume` where the environment asks for it."""
    return config.model_copy(update={"auto_resume": True}) if is_restart() else config


def _notices(saver: Saver, stop: StopRequest) -> Notices:
    """What this rank tells the others with the verdict on a step."""
    return saver.notices()._replace(stop=float(stop.is_asked()))
