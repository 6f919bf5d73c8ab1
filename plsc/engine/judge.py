"""The judgment of a run's steps: stop at one that is not sound, or leave it out.

`plsc.engine.soundness` says what is sound.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import paddle

from plsc.checkpoint import list_checkpoints
from plsc.config import Config
from plsc.distributed.agreement import on_all_ranks
from plsc.distributed.collectives import Collectives
from plsc.engine.dataloading import Loader
from plsc.engine.precision import Precision
from plsc.engine.soundness import BackboneState, Evidence, Finding, Snapshot, Stage
from plsc.engine.transfer import Transfers
from plsc.errors import TrainingError
from plsc.losses import Head
from plsc.utils.hints import setter
from plsc.utils.plural import counted

log = logging.getLogger("plsc")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A step of a run.

    Attributes:
        epoch: from 0.
        step_in_epoch: from 0.
        step: of the whole run, from 0.
        learning_rate: of the step.
    """

    epoch: int
    step_in_epoch: int
    step: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a step made before its update.

    Attributes:
        images: [N, 3, H, W], the network's input, where that came as floats; else None.
        features: [N, D] float32.
        loss: 0-d.
        feature_gradient: [N, D].
        overflowed: [1] bool, whether a gradient of the backbone was not finite where the loss is scaled; else None.
    """

    images: paddle.Tensor | None
    features: paddle.Tensor
    loss: paddle.Tensor
    feature_gradient: paddle.Tensor
    overflowed: paddle.Tensor | None


class Told(NamedTuple):
    """What ranks told each other with the verdict on a step.

    Attributes:
        step: steps done when they told it, that one included.
        numbers: the sums over ranks of `notices()`; the same on every rank.
    """

    step: int
    numbers: list[float]


class Judge:
    """The judgment of all steps of a run. Every rank makes one, and calls the same methods in the same order.

    With `on_nonfinite` 'stop' the verdict on a step is read when the next one begins, or `transfers.lag` steps after
    that, so that the device works while the next batch is awaited. It is always that number of steps, whether the
    device has come to it sooner or not: ranks that read the verdicts on different steps would save and stop after
    different ones. With 'skip', and where the loss is scaled, it is read before anything moves: such a step may be left
    out, as if it had not been, but for the number of steps and the loss scale. Only the verdict on what the update left
    is read late then.

    Args:
        config: the settings.
        backbone: the network.
        head: the last layer.
        loader: its `describe(epoch, step, row=...)`, where it has one, names a sample.
        collectives: over all ranks.
        transfers: bring the verdicts to the host.
        precision: knows what float16 explains, and has the loss scale.
        notices: called once per step: what this rank tells the others with the verdict, as many numbers on every rank.
        settle: called on every rank before an error is raised, so that a checkpoint under way is complete.

    Attributes:
        constants: names of tensors of the network that are not finite from the start, as a mask.
        started_from: the checkpoint that the run resumed from, in words, for messages.
        skipped_steps: steps that were skipped.
        skipped_in_a_row: those since the last step that moved something.
    """

    def __init__(
        self,
        config: Config,
        backbone: paddle.nn.Layer,
        *,
        head: Head,
        loader: Loader,
        collectives: Collectives,
        transfers: Transfers,
        precision: Precision,
        notices: Callable[[], Sequence[float]] = tuple,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self._notices, self._settle = notices, settle
        self._told: list[Told] = []
        self._config, self._head, self._loader = config, head, loader
        self._collectives, self._transfers, self._precision = collectives, transfers, precision
        self._state = BackboneState(backbone)
        self.constants = self._state.constants
        self.started_from = ""
        self.skipped_steps, self.skipped_in_a_row = 0, 0
        self._before: Snapshot = []
        self._unread: deque[tuple[Place, Evidence]] = deque()

    @property
    def may_leave_out(self) -> bool:
        """Whether steps may be left out, so that the verdict is read before anything moves."""
        return self._skips or self._precision.scales_loss

    @property
    def _skips(self) -> bool:
        return self._config.on_nonfinite == "skip"

    def check_start(self) -> None:
        """Find a parameter that is not sound before the first step, so that it is not blamed on a step.

        Raises:
            TrainingError: there is one, on any rank.
        """
        evidence = Evidence(self._collectives, self._transfers)
        evidence.add(Stage.PARAMETER, self._state.parameters)
        evidence.add(Stage.CENTERS, self._head.parameters)
        if not evidence.is_sound():
            text = evidence.find(str, self._head, is_updated=True).text
            error = TrainingError(
                f"before the first step {text.removeprefix('after the update ')}; correct its initial value, or the "
                f"checkpoint that it comes from"
            )
            raise on_all_ranks(error)

    def check(self, *, every: bool = False) -> list[Told]:
        """Read the verdicts that are due: on all steps but the last `transfers.lag`.

        Args:
            every: on the last steps, too, for which this waits.

        Returns:
            What ranks told each other with the steps whose verdict was not read before.

        Raises:
            TrainingError: a step was not sound.
        """
        told, self._told = self._told, []
        while len(self._unread) > (0 if every else self._transfers.lag):
            place, evidence = self._unread.popleft()
            if not evidence.is_sound():
                self._unread.clear()
                raise self._error(place, self._find(place, evidence, is_updated=True))
            if numbers := evidence.notices():
                told.append(Told(place.step + 1, numbers))
        return told

    def before_forward(self) -> None:
        """Where steps may be left out, copy what the forward pass may move."""
        if self.may_leave_out:
            self._before = self._state.copy()

    def collect(self, made: Made) -> Evidence:
        """The evidence on a step before its update."""
        evidence = Evidence(self._collectives, self._transfers)
        if made.images is not None:
            evidence.add(Stage.INPUT, {"input": made.images})
        # What the next steps move cannot be looked at late.
        evidence.add(Stage.STATISTIC, self._state.statistics(), keep=self.may_leave_out or self._transfers.lag == 0)
        evidence.add(Stage.FEATURES, {"features": made.features})
        evidence.add(Stage.LOSS, {"loss": made.loss})
        evidence.add(Stage.FEATURE_GRADIENT, {"feature gradient": made.feature_gradient})
        if made.overflowed is not None:
            evidence.add_overflow(made.overflowed)
        else:
            # They are gone when a verdict is read late.
            evidence.add(Stage.GRADIENT, self._state.gradients(), keep=self.may_leave_out)
        return evidence

    def leaves_out(self, place: Place, evidence: Evidence) -> bool:
        """Whether the step is left out. Backbone and head are then as before its forward pass.

        Raises:
            TrainingError: the step may not be left out, or as many in a row were as may be.
        """
        if not self.may_leave_out:
            return False
        evidence.close(self._notices())
        is_sound, numbers = evidence.is_sound(), evidence.notices()
        if not is_sound:  # what an earlier update has broken is no fault of this step
            self._told = self.check(every=True)
        if numbers:
            self._told.append(Told(place.step + 1, numbers))
        if is_sound:
            return False
        finding = self._find(place, evidence, is_updated=False)
        self._state.restore(self._before)
        self._head.discard()
        # The finding is the same on all ranks, and so is the loss scale.
        overflowed = self._precision.may_have_overflowed(finding.stage)
        if finding.stage is Stage.CENTERS_BEFORE or not (overflowed or self._skips):
            raise self._error(place, finding)
        if overflowed:
            self._precision.update(overflowed=True)
        log.warning("step %d skipped: %s%s", place.step + 1, finding.text, self._scale_in_words(overflowed))
        self._count(place, finding)
        return True

    def _scale_in_words(self, overflowed: bool) -> str:
        scale = self._precision.scale
        return f"; the loss scale is now {scale.value:g}" if overflowed and scale is not None else ""

    def after_update(self, place: Place, evidence: Evidence) -> None:
        """Judge what the update of a step left; `check` reads the verdict.

        Args:
            place: the step.
            evidence: on the step before its update.
        """
        self.skipped_in_a_row = 0
        notices: Sequence[float] = ()
        if self.may_leave_out:
            # What was before the update was read already.
            evidence = Evidence(self._collectives, self._transfers)
        else:
            notices = self._notices()
        evidence.add(Stage.PARAMETER, self._state.parameters, keep=self._transfers.lag == 0)
        centers = self._head.sum_of_squares()
        if centers is not None:
            evidence.add_sum(Stage.CENTERS, "class centers", sum_of_squares=centers)
        evidence.close(notices)
        self._unread.append((place, evidence))

    def _count(self, place: Place, finding: Finding) -> None:
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self._config.max_skipped_steps:
            number = f"skipped {counted(self.skipped_in_a_row, 'step')} in a row ({setter('max_skipped_steps')})"
            raise self._error(place, finding._replace(text=f"{number}; in the last {finding.text}"), skipped=True)

    def _find(self, place: Place, evidence: Evidence, *, is_updated: bool) -> Finding:
        describe: Callable[..., str] | None = getattr(self._loader, "describe", None)

        def describe_row(row: int) -> str:
            if describe is None:
                return f"image {row} of the batch"
            return describe(place.epoch, place.step_in_epoch, row=row)

        return evidence.find(describe_row, self._head, is_updated=is_updated)

    def _error(self, place: Place, finding: Finding, *, skipped: bool = False) -> TrainingError:
        self._settle()
        saved = list_checkpoints(self._config.model_save_dir)
        kept = f"the newest checkpoint is {saved[-1]}" if saved else f"no checkpoint was saved{self.started_from}"
        cure = "Correct or leave out that image"
        if finding.stage is not Stage.INPUT:
            cure = f"Lower the learning rate ({setter('lr')}), warm up ({setter('warmup_epochs')})"
        # What an update has broken, skipping cannot mend.
        if not (self._skips or skipped) and finding.stage not in (Stage.PARAMETER, Stage.CENTERS):
            cure += f", or skip such steps: {setter('on_nonfinite', 'skip')}"
        if self._precision.scales_loss and finding.stage not in (Stage.INPUT, Stage.CENTERS_BEFORE):
            cure += f", or train in a type of greater range: {setter('amp_dtype', 'bfloat16')}"
        error = TrainingError(
            f"epoch {place.epoch}, step {place.step + 1}: {finding.text} (learning rate {place.learning_rate:.3g}, "
            f"scale {self._config.loss_scale:g}); {kept}. {cure}"
        )
        return on_all_ranks(error)
