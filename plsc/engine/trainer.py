"""The training loop."""

from __future__ import annotations

import contextlib
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from plsc.config import Config
from plsc.data.loader import Batch, ReaderLoader
from plsc.data.transforms import normalize
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.engine import checkpoint
from plsc.engine.dataloading import agreed_batches, open_train_loader, open_verification_sets
from plsc.engine.evaluator import evaluate
from plsc.engine.observers.progress import Progress
from plsc.engine.optimizer import NamedOptimizer, step_schedule
from plsc.engine.state import (
    average_statistics,
    backbone_parts,
    gather_statistics,
    head_parts,
    load_backbone,
    load_statistics,
    load_training,
)
from plsc.errors import CheckpointError, TrainingError
from plsc.losses.classifier import Classifier
from plsc.models.base_model import build_backbone, check_embedding
from plsc.utils.seeding import derive_seed

log = logging.getLogger("plsc")

# What an epoch's order of images depends on, beside the images.
_OF_THE_ORDER = ("seed", "class_balanced", "min_images_per_class")


class Trainer:
    """One run: a backbone on every rank, this rank's class centers, and the way of the data through both.

    Args:
        config: the settings.
        topology: this rank's place.
    """

    def __init__(self, config: Config, topology: Topology) -> None:
        self.config, self.topology = config, topology
        self.collectives = Collectives(topology)
        paddle.seed(config.seed)
        self.backbone = build_backbone(config)
        self.network = paddle.DataParallel(self.backbone) if topology.world_size > 1 else self.backbone
        self.optimizer = NamedOptimizer(config, dict(self.backbone.named_parameters()))
        self.head = Classifier(config, self.collectives, lambda named: NamedOptimizer(config, named))
        self.precision = _Precision(config, topology)
        self.loader = open_train_loader(config, topology)
        self.verification_sets = open_verification_sets(config) if config.with_test else []
        self.global_batch = config.train_batch_size * topology.world_size
        self.steps_per_epoch = self._count_steps_per_epoch()
        self.schedule = step_schedule(config, self.global_batch, self.steps_per_epoch or 1)
        self.epoch, self.step_in_epoch, self.step = 0, 0, 0
        if config.checkpoint_dir:
            self._resume(checkpoint.Checkpoint(config.checkpoint_dir))
        self._check_save_folder()
        self._unchecked: tuple[int, paddle.Tensor] | None = None

    def train(self) -> dict[str, float]:
        """Train to the end; returns the last value of everything that was shown."""
        total = self.total_steps
        if self.is_done:
            log.info("nothing is left to train: %d steps are done, as train_epochs or train_steps says", self.step)
        progress = Progress(total, self.step, self.global_batch, self.config.log_period, self.topology.is_main)
        results: dict[str, float] = {}
        try:
            while not self.is_done:
                values: dict[str, Any] = {}
                for batch in self._batches():
                    values = self.train_step(batch)
                    if progress.wants(self.step - 1):
                        shown = {name: _number(value) for name, value in values.items()}
                        progress.update(self.step - 1, self.epoch, shown)
                    if self.config.test_period and self.step % self.config.test_period == 0:
                        results.update(self._evaluate(progress))
                    if self.is_done:
                        break
                results.update({name: _number(value) for name, value in values.items()})
                self._check_finite()
                self._end_epoch(results, progress)
        finally:
            progress.close()
            self.loader.close()
        if self.topology.is_main:
            results["images/s"] = progress.images_per_second
        return results

    def train_step(self, batch: Batch) -> dict[str, Any]:
        """One step of every rank on its share of the global batch; returns what there is to show."""
        self._check_finite()
        paddle.seed(derive_seed(self.config.seed, self.step, self.topology.rank))
        rate = self.schedule(self.step)
        images = normalize(paddle.to_tensor(batch.images), self.config.pixel_mean, self.config.pixel_std)
        labels = paddle.to_tensor(batch.labels)

        with self.precision.autocast():
            features = self.network(images)
        check_embedding(features, self.backbone, len(batch.labels), self.config.emb_dim)
        loss = self.head.forward(features.detach().astype("float32"), labels, self.step, self.config.calc_acc)
        values = {"loss": loss, "lr": rate}
        if self.config.calc_acc:
            values.update(self.head.accuracy())
        if self.config.on_nonfinite == "skip" and not math.isfinite(_number(loss)):
            log.warning("step %d skipped: its loss is %s", self.step + 1, _number(loss))
        else:
            feature_gradient = self.head.backward(rate)
            # The head's gradient is exact for the mean over the global batch. DataParallel averages over ranks what
            # must be summed, so that average is undone here, and nowhere else.
            scaled = self.precision.scaler.scale(feature_gradient * self.topology.world_size)
            features.backward(scaled.astype(features.dtype))
            self.optimizer.step(rate, self.precision.scaler)
            self.precision.scaler.update()
            self._unchecked = (self.step, loss)
        self.step += 1
        self.step_in_epoch += 1
        return values

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run, or None where a reader's length is not known."""
        if self.config.train_steps is not None:
            return self.config.train_steps
        return self.steps_per_epoch * self.config.train_epochs if self.steps_per_epoch else None

    @property
    def is_done(self) -> bool:
        if self.config.train_steps is not None:
            return self.step >= self.config.train_steps
        return self.epoch >= self.config.train_epochs

    def _batches(self):
        batches = self.loader.epoch(self.epoch, self.step_in_epoch)
        own_reader = isinstance(self.loader, ReaderLoader)
        return agreed_batches(batches, self.collectives) if own_reader else batches

    def _count_steps_per_epoch(self) -> int | None:
        if isinstance(self.loader, ReaderLoader):
            images = self.loader.num_images
            return None if images is None else max(1, math.ceil(images / self.global_batch))
        return self.loader.steps_per_epoch

    def _end_epoch(self, results: dict[str, float], progress: Progress) -> None:
        """Verify, then save `<epoch>`, or `<epoch>.<step>` where the run ended within an epoch."""
        if self.step_in_epoch == 0:
            raise TrainingError(
                f"epoch {self.epoch}: the training data yielded no batch; a train_reader must return "
                f"a new iterable at each call"
            )
        ended_within = self.is_done and self.step_in_epoch != self.steps_per_epoch
        name = f"{self.epoch}.{self.step_in_epoch}" if ended_within else str(self.epoch)
        if not ended_within:
            self.epoch, self.step_in_epoch = self.epoch + 1, 0
        local = gather_statistics(self.backbone, self.collectives) if ended_within else []
        results.update(self._evaluate(progress))
        progress.pause()
        path = checkpoint.save_checkpoint(
            self.config.model_save_dir,
            name,
            parts=self._parts(local),
            about=self._about(),
            collectives=self.collectives,
        )
        if self.topology.is_main:
            checkpoint.prune_checkpoints(self.config.model_save_dir, self.config.max_last_checkpoint_num)
            skipped = f"; {self.loader.skipped} unreadable images skipped so far" if self.loader.skipped else ""
            log.info("saved %s%s", path, skipped)
        progress.resume()

    def _evaluate(self, progress: Progress) -> dict[str, float]:
        progress.pause()
        average_statistics(self.backbone, self.collectives)
        results = evaluate(self.config, self.backbone, sets=self.verification_sets, collectives=self.collectives)
        progress.resume()
        return results

    def _parts(self, local: list[checkpoint.Part]) -> list[checkpoint.Part]:
        main = self.topology.is_main
        shared = backbone_parts(self.backbone, self.optimizer) + local if main else []
        return shared + head_parts(self.head, main, self.config.num_classes, self.config.is_sharded)

    def _about(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "step": self.step,
            "images_in_epoch": self.step_in_epoch * self.global_batch,
            "num_images": self.loader.num_images,
            "optimizer": self.optimizer.kind,
            "head_optimizer": self.head.optimizer_kind,
            "loss_scaling": self.precision.state(),
            "settings": self.config.model_dump(mode="json", exclude={"amp_lists"}),
        }

    def _resume(self, saved: checkpoint.Checkpoint) -> None:
        load_backbone(self.backbone, saved, self.config)
        load_statistics(self.backbone, saved, self.topology)
        load_training(self.head, self.optimizer, saved, self.config)
        about = saved.about
        self.precision.load(about["loss_scaling"])
        self.epoch, self.step = about["epoch"], about["step"]
        self.step_in_epoch = about["images_in_epoch"] // self.global_batch
        if self.topology.is_main:
            log.info("resumed from %s: epoch %d, step %d", saved.path, self.epoch, self.step)
        if about["images_in_epoch"]:
            self._check_order(about)

    def _check_order(self, about: dict[str, Any]) -> None:
        """Within an epoch a run goes on exactly only where the order of the images is the one it began with."""
        if isinstance(self.loader, ReaderLoader):
            return  # the order is the reader's, and how many images it has may be a guess
        before = {"images": about.get("num_images"), **about["settings"]}
        now = {"images": self.loader.num_images, **self.config.model_dump(mode="json", include=set(_OF_THE_ORDER))}
        changes = [
            f"{name} {before[name]} -> {value}" for name, value in now.items() if before.get(name) not in (None, value)
        ]
        if about["images_in_epoch"] % self.global_batch:
            changes.append(
                f"global batch {self.global_batch}, which does not divide the {about['images_in_epoch']} images done"
            )
        if changes and self.topology.is_main:
            log.warning(
                "epoch %d was begun otherwise (%s): in what is left of it some images come again, or not at "
                "all; the next epoch is whole",
                self.epoch,
                "; ".join(changes),
            )
        if self.step_in_epoch >= self.steps_per_epoch:
            self.epoch, self.step_in_epoch = self.epoch + 1, 0

    def _check_save_folder(self) -> None:
        """Before the first step what would else be found out after an epoch."""
        root = self.config.model_save_dir
        try:
            Path(root).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{root}: checkpoints cannot be written there: {error.strerror}; choose another "
                f"folder (set_model_save_dir, --model-save-dir)"
            ) from None
        here = (self.epoch, self.step_in_epoch)
        newer = [path for path in checkpoint.list_checkpoints(root) if checkpoint.order(path) > here]
        if newer and not self.is_done:
            raise CheckpointError(
                f"{newer[-1]} is a checkpoint of later training than this run starts from; to go on "
                f"from it: set_checkpoint_dir({str(root)!r}); to begin anew: another "
                f"set_model_save_dir, or move the old folder away"
            )

    def _check_finite(self) -> None:
        """Stop at the first loss that is not finite, one step late, so that the device is never waited for."""
        if self._unchecked is None:
            return
        (step, loss), self._unchecked = self._unchecked, None
        value = _number(loss)
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at epoch {self.epoch}, step {step + 1} (learning rate {self.schedule(step):.3g}, "
                f"scale {self.config.scale:g}); the last checkpoint in {self.config.model_save_dir} is sound. Lower "
                f"the rate (set_lr), warm up (set_warmup_epochs), or pass over such steps: set_on_nonfinite('skip')"
            )


class _Precision:
    """Mixed precision where there is a GPU; elsewhere each call is the plain one."""

    def __init__(self, config: Config, topology: Topology) -> None:
        self._enabled, self._dtype = config.use_fp16 and topology.on_gpu, config.amp_dtype
        if config.use_fp16 and not topology.on_gpu and topology.is_main:
            log.warning("set_mixed_precision has no effect on CPU: Paddle computes in float32 there")
        lists = config.amp_lists or {}
        self._lists = {name: lists[name] for name in ("custom_white_list", "custom_black_list") if name in lists}
        self.scaler = paddle.amp.GradScaler(
            self._enabled,
            config.init_loss_scaling,
            config.incr_ratio,
            config.decr_ratio,
            config.incr_every_n_steps,
            config.decr_every_n_nan_or_inf,
            config.use_dynamic_loss_scaling,
        )

    def autocast(self):
        return paddle.amp.auto_cast(dtype=self._dtype, **self._lists) if self._enabled else contextlib.nullcontext()

    def state(self) -> dict[str, Any]:
        return {key: np.asarray(value).tolist() for key, value in self.scaler.state_dict().items()}

    def load(self, state: dict[str, Any]) -> None:
        if self._enabled and state:
            self.scaler.load_state_dict(
                {key: np.asarray(value, np.float32) if key == "scale" else value for key, value in state.items()}
            )


def _number(value: Any) -> float:
    return value.item() if isinstance(value, paddle.Tensor) else float(value)
