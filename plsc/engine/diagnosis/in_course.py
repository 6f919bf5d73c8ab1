"""Symptoms that the course of a training shows: logged steps and verifications."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping

from plsc.engine.diagnosis import Case, Diagnosis, Point, Symptom
from plsc.engine.diagnosis.untrained import untrained_loss
from plsc.utils.hints import either, setter

# A loss is compared over one epoch, within these bounds in steps: a short epoch shows noise, and 10,000 steps without
# any effect are enough also where an epoch has a million.
LEAST_STEPS, MOST_STEPS = 1000, 10_000
# Logged losses whose mean is compared: one of them is that of a single batch.
SMOOTHED = 3
# ArcFace's loss on 1 M classes falls by more than a tenth in its first 10,000 steps; noise of a batch is 1 %.
STUCK_SHARE = 0.05
# The formula of an untrained head is an expectation over random directions, right to about 1 %.
UNTRAINED_SHARE = 0.02
# Cosines between features of different classes: about 0 after training; above 0.9 also in a network that is not
# trained, for which its first steps do not count.
COLLAPSED_COSINE, COLLAPSED_STEPS, COLLAPSED_POINTS = 0.9, 500, 3
# Above it a faster loader saves more than a quarter of the time.
DATA_WAIT, DATA_POINTS = 0.3, 3
# Standard errors of an accuracy by which it must be lower than the best: one verification in 700 is, by chance.
STANDARD_ERRORS = 3.0
# Where the number of pairs is not known: three standard errors of 0.95 on 1,000 pairs.
UNKNOWN_ERROR = 0.02
# Verifications in a row that must be lower, and the share by which the loss must have fallen since the best.
WORSE_VERIFICATIONS, FALLEN_SHARE = 2, 0.02


class StuckLoss(Symptom):
    """A loss near its start value for long, or equal to that of a head that has learned nothing."""

    name = "loss_stuck"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._untrained = untrained_loss(case.config)
        self._steps = min(max(case.steps_per_epoch or 0, LEAST_STEPS), MOST_STEPS)
        self._first: Point | None = None
        self._last: collections.deque[float] = collections.deque(maxlen=SMOOTHED)

    def at_point(self, point: Point) -> Diagnosis | None:
        if not math.isfinite(point.loss) or point.step <= self.case.warmup:
            return None
        self._last.append(point.loss)
        if self._first is None:
            self._first = point
        steps = point.step - self.case.warmup
        if steps < self._steps or len(self._last) < SMOOTHED:
            return None
        mean = sum(self._last) / len(self._last)
        return self._as_untrained(mean, steps) or self._as_at_start(mean, steps, self._first.loss)

    def _as_untrained(self, mean: float, steps: int) -> Diagnosis | None:
        level = self._untrained
        if level is None or abs(mean - level) > UNTRAINED_SHARE * level:
            return None
        what = "ln C" if self.case.config.loss_kind == "softmax" else "what random features give"
        return Diagnosis(
            f"after {steps:,} steps the loss is {mean:.4g}; {what} is {level:.4g}",
            "nothing is learned: images and labels do not belong together, all images are decoded to the same pixels, "
            "the backbone gets no gradient, or the learning rate is far off",
            self._cure(),
        )

    def _as_at_start(self, mean: float, steps: int, first: float) -> Diagnosis | None:
        # A run that has learned something before its first logged step may stay near that one, too.
        guessing = (1 - STUCK_SHARE) * math.log(max(2, self.case.config.num_classes))
        if first < max(guessing, (self._untrained or 0.0) / 2):
            return None
        if self.case.is_trained or mean < (1 - STUCK_SHARE) * first:
            return None
        return Diagnosis(
            f"after {steps:,} steps the loss is {mean:.4g}, and it was {first:.4g} at the start",
            "the margin is too hard for a network that knows nothing yet, the learning rate is too low or too high, or "
            "labels do not belong to their images",
            self._cure(),
        )

    def _cure(self) -> str:
        looks = "look at images with their labels, which plsc data inspect draws"
        config = self.case.config
        eases = config.loss.has_margin and not config.margin_warmup
        return f"{setter('margin_warmup', 5000)}; plsc lr-find; {looks}" if eases else f"plsc lr-find; {looks}"


class CollapsedFeatures(Symptom):
    """Features of all classes in nearly one direction."""

    name = "features_collapsed"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._points = 0

    def at_point(self, point: Point) -> Diagnosis | None:
        cosine = point.measures.get("class_cosine", math.nan)
        is_early = point.step <= self.case.warmup + COLLAPSED_STEPS
        self._points = 0 if is_early or not cosine >= COLLAPSED_COSINE else self._points + 1
        if self._points < COLLAPSED_POINTS:
            return None
        return Diagnosis(
            f"features of different classes have a mean cosine of {cosine:.2f}, for {self._points} logged steps",
            "the network gives every image nearly the same feature: the learning rate is too high, or the last layers "
            "have died",
            f"a lower learning rate ({setter('lr', float(f'{self.case.config.lr / 10:.3g}'))}), warm-up "
            f"({setter('warmup_epochs', 1)}), {setter('margin_warmup', 5000)}",
        )


class DataWait(Symptom):
    """Training that waits for data."""

    name = "data_wait"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._is_begun = False
        self._shares: collections.deque[float] = collections.deque(maxlen=DATA_POINTS)

    def at_point(self, point: Point) -> Diagnosis | None:
        share = point.measures.get("data_wait")
        if share is None or not math.isfinite(share):
            return None
        if not self._is_begun:  # in the first reader processes start, and files come from the disk
            self._is_begun = True
            return None
        self._shares.append(share)
        mean = sum(self._shares) / len(self._shares)
        if len(self._shares) < DATA_POINTS or not mean > DATA_WAIT:
            return None
        workers = self.case.config.num_workers
        return Diagnosis(
            f"training waits for data {mean:.0%} of the time, with {workers} reader processes per rank",
            "images are read and decoded more slowly than they are trained on",
            f"{setter('num_workers', max(4, 2 * workers))}, where cores are free; one packed file in place of many "
            f"small ones, of images in the size of training (plsc data convert); plsc doctor measures the reading",
        )


class FallingVerification(Symptom):
    """Verification that gets worse while the loss falls."""

    name = "verification_falls"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._losses: list[float] = []  # since the verification before
        self._best: dict[str, tuple[int, float, float]] = {}  # step, accuracy, mean loss before it
        self._worse: collections.Counter[str] = collections.Counter()

    def at_point(self, point: Point) -> Diagnosis | None:
        if math.isfinite(point.loss):
            self._losses.append(point.loss)
        return None

    def at_verification(self, step: int, results: Mapping[str, float]) -> Diagnosis | None:
        loss = sum(self._losses) / len(self._losses) if self._losses else math.nan
        self._losses = []
        for name, value in results.items():
            if name.rpartition("/")[2] in ("accuracy", "top1") and math.isfinite(value):
                found = self._judge(name, step, value, loss=loss, pairs=results.get(_pairs_of(name)))
                if found is not None:
                    return found
        return None

    def _judge(self, name: str, step: int, value: float, *, loss: float, pairs: float | None) -> Diagnosis | None:
        if name not in self._best or value >= self._best[name][1]:
            self._best[name], self._worse[name] = (step, value, loss), 0
            return None
        best_step, best, best_loss = self._best[name]
        error = math.sqrt(max(best * (1 - best), 1 / pairs) / pairs) * STANDARD_ERRORS if pairs else UNKNOWN_ERROR
        is_worse = best - value > error and loss < (1 - FALLEN_SHARE) * best_loss
        self._worse[name] = self._worse[name] + 1 if is_worse else 0
        if self._worse[name] < WORSE_VERIFICATIONS:
            return None
        return Diagnosis(
            f"{name} is {value:.4f}, and was {best:.4f} at step {best_step:,}, while the loss fell from "
            f"{best_loss:.4g} to {loss:.4g}",
            "the network learns the training images by heart, or images of verification are prepared in another way",
            f"augmentation ({either('set_augment', '--augment-crop')}), a greater {setter('weight_decay')}, fewer "
            f"epochs; keep the best checkpoint: {setter('keep_best', name.replace('/', '.'))}",
        )


def _pairs_of(name: str) -> str:
    return f"{name.rpartition('/')[0]}/{'pairs' if name.endswith('accuracy') else 'images'}"
