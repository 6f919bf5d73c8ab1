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
from plsc.data.loader import Batch, TrainLoader
from plsc.data.transforms import normalize_tensor, tensor_constants
from plsc.distributed import watch
from plsc.distributed.agreement import agree, on_all_ranks
from plsc.distributed.launching.reports import report_uncaught
from plsc.engine.about import About, read_metrics
from plsc.engine.class_change import ClassMove
from plsc.engine.dataloading import (
    Loader,
    agreed_batches,
    count_steps_per_epoch,
    warn_of_large_batch,
)
from plsc.engine.evaluator import check_closed, check_keep_best, check_verification_sets
from plsc.engine.figures import Figures
from plsc.engine.judge import Made, Place
from plsc.engine.new_classes import begin_new_classes
from plsc.engine.observers import Observer, Run, Step, TrainingClock, Values, is_logged
from plsc.engine.parts import Given, Parts, make_parts
from plsc.engine.rank_check import check_copies, check_ranks_agree
from plsc.engine.resume import (
    check_content_of,
    check_save_folder,
    warn_of_another_order,
    warn_of_other_steps,
)
from plsc.engine.saver import Notices
from plsc.engine.schedules import build_schedule, explain_learning_rate, try_schedule
from plsc.engine.soundness import Evidence
from plsc.engine.stopping import StopRequest
from plsc.engine.transfer import Feed
from plsc.errors import CheckpointError, ConfigError, Interrupted, PLSCError, TrainingError
from plsc.losses import Head, check_gradient
from plsc.models.base_model import check_embedding, network_name, warn_of_batch_of_one
from plsc.utils.hints import setter
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
                given = Given(backbone, loader, head, observers)
                self._begin(make_parts(config, given, stop=self._stop, held=self._held))
        except BaseException:
            self._held.close()
            raise

    def _begin(self, parts: Parts) -> None:
        """Stand before the first step, or before that which the checkpoint to start from has not done."""
        self.collectives, self.topology = parts.collectives, parts.collectives.topology
        self.network, self._recomputing = parts.network, parts.recomputing
        self.verification_sets, self._closed, self._verifier = parts.verification_sets, parts.closed_set, parts.verifier
        self._transfers, self._saver, self.observers = parts.transfers, parts.saver, parts.observers
        self._lock, self._uploads = parts.folder.lock, parts.folder.uploads
        contents = self._contents = parts.contents
        self.config, self.loader, self._classes = contents.config, contents.loader, contents.classes
        self.backbone, self.head, self._judge = contents.backbone, contents.head, contents.judge
        self.optimizer, self.precision = contents.optimizer, contents.precision
        self._pixel_mean, self._pixel_std = (
            paddle.to_tensor(value) if isinstance(value, np.ndarray) else value
            for value in tensor_constants(self.config.pixel_mean, self.config.pixel_std)
        )
        self.global_batch = self.config.train_batch_size * self.topology.world_size
        self._figures = Figures(
            self.head, collectives=self.collectives, transfers=self._transfers, global_batch=self.global_batch
        )
        self.steps_per_epoch = count_steps_per_epoch(self.loader, self.global_batch)
        self.epoch, self.step_in_epoch, self.step = 0, 0, 0
        self._epoch_began_at = 0  # the step
        self._results: dict[str, float] = {}
        self._resumed_from: Path | None = None
        self._feed: Feed | None = None
        self._save_again: Callable[[], None] = lambda: None
        self._run = self.collectives.gather_objects(secrets.token_hex(8))[0]
        move = None if parts.saved is None else self._resume(parts.saved)
        self.schedule = build_schedule(
            self.config, self.global_batch, steps_per_epoch=self.steps_per_epoch, total_steps=self.total_steps
        )
        if not self.is_done:
            self._check_start()
        if parts.saved is not None and move is not None:
            self._begin_classes(parts.saved, move)  # a pass over images, after all that may refuse the run
        self._clock = TrainingClock()

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
            self._log_learning_rate()
        results = self._results
        self._clock = TrainingClock()
        self._figures.begin(self.step)
        run = Run(
            config=self.config,
            first_step=self.step,
            total_steps=self.total_steps,
            global_batch=self.global_batch,
            checkpoint=self._resumed_from,
            steps_per_epoch=self.steps_per_epoch,
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
        if is_logged(self.step + 1, log_period=self.config.log_period, total_steps=self.total_steps):
            self._figures.collect(head_features, labels, self.optimizer.gradients())
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

    def _log_learning_rate(self) -> None:
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
        return Step(
            number=self.step,
            epoch=self.epoch,
            values=Values(values),
            clock=self._clock,
            measures=self._figures.take(self.step, self._clock),
        )

    def _batches(self) -> Iterator[Batch]:
        batches = self._clock.reading(self.loader.epoch(self.epoch, self.step_in_epoch))
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
            if self._is_stopped_meanwhile():
                self._leave(step)

    def _is_stopped_meanwhile(self) -> bool:
        """Whether a signal came to any rank while training waited for a save: no further step is made to tell it."""
        return self._saver.waits and any(self.collectives.gather_objects(self._stop.is_asked()))

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
        if stops or self._is_stopped_meanwhile():
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
        check_copies(self.head, self.collectives)
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

    def _resume(self, saved: checkpoint.Checkpoint) -> ClassMove | None:
        """Take over a checkpoint, but for the centers of new classes: what becomes of the classes is returned."""
        start = agree(lambda: self._contents.load(saved), self.collectives, error=CheckpointError)
        if start.is_anew:
            self._judge.started_from = f" since the run was started from {saved.path}"
            if self.topology.is_main:
                log.info("started from %s: epochs and steps begin at 0, with the schedule of this run", saved.path)
            return start.move
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
        return start.move

    def _begin_classes(self, saved: checkpoint.Checkpoint, move: ClassMove) -> None:
        """Set the centers of new classes, and say what becomes of all."""
        begin = begin_new_classes(
            self.head,
            self.backbone,
            move,
            records=self._contents.records,
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
