"""Symptoms that the data and the settings show before the first step."""

from __future__ import annotations

import math

from plsc.config import Config
from plsc.engine.diagnosis import Diagnosis, Point, Symptom
from plsc.engine.schedules import peak_of
from plsc.utils.hints import either, setter

# Numbers without an image are told from this share on: a few gaps are left where images were cleaned, and cost nothing.
ABSENT_SHARE = 0.01
# Classes of one image teach nothing of what a class has in common. From this share on they are a tenth of all centers.
SINGLE_SHARE = 0.1
# The margins of the papers were chosen on data of 47 (CASIA-WebFace: 494,414 images of 10,575 classes) to 68 images per
# class (MS1MV2: 5.8 M of 85,742). With fewer than a tenth of the former most classes have no image to confirm a center.
FEW_IMAGES = 5.0
# What a margin takes off the cosine at an angle of 60 degrees: 0.48 for ArcFace's 0.5, 0.35 for CosFace's 0.35. Half of
# ArcFace's is what is still used on small data.
LARGE_MARGIN = 0.25
# Peak learning rates at 1024 images with which each optimizer is used, up to 2.5 times the greatest of the literature.
# momentum: 0.2 (ArcFace: 0.1 at 512) to 0.4 (Goyal et al., 2017: 0.1 at 256). sgd
# lacks the factor 1 / (1 - 0.9) of momentum. adamw: 1e-3 to 4e-3 (ViT and its followers). lion: a third to a tenth of
# adamw's (Chen et al., 2023). lars: 1 to 12 (You et al., 2017).
RATES = {
    "momentum": (1e-3, 1.0),
    "sgd": (1e-2, 10.0),
    "adamw": (1e-5, 1e-2),
    "lion": (1e-6, 3e-3),
    "lars": (5e-2, 30.0),
}
# In the middle of what is used; suggested in place of what is not.
USUAL_RATES = {"momentum": 0.1, "sgd": 1.0, "adamw": 1e-3, "lion": 2e-4, "lars": 2.0}
# Goyal et al. (2017) found the linear rule to fail without warm-up from this batch on.
WARMUP_BATCH = 8192
# The parameter of losses that is their margin, and whether it is an angle; dynamic_margin fits its own to the images.
_MARGINS = {
    **dict.fromkeys(("adaface", "curricularface", "elasticface_arc", "elasticface_arc_plus"), ("m", True)),
    **dict.fromkeys(("elasticface_cos", "elasticface_cos_plus", "uniface"), ("m", False)),
    "magface": ("l_margin", True),
}


class AbsentLabels(Symptom):
    """Class numbers that no image has."""

    name = "labels_absent"

    def at_start(self) -> Diagnosis | None:
        counts = self.case.counts
        if counts is None or not counts.absent or counts.absent < ABSENT_SHARE * (counts.classes + counts.absent):
            return None
        every = counts.classes + counts.absent
        return Diagnosis(
            f"{counts.absent:,} of {every:,} labels never occur in the training data",
            "the labels are not numbered without gaps, as in a part of a data set; their class centers take memory and "
            "time, and only push others away",
            f"number the classes anew: {setter('min_images_per_class', 1)}",
        )


class SingleLabels(Symptom):
    """Classes with a single image."""

    name = "labels_single"

    def at_start(self) -> Diagnosis | None:
        counts = self.case.counts
        if counts is None or not counts.single or counts.single < SINGLE_SHARE * counts.classes:
            return None
        return Diagnosis(
            f"{counts.single:,} of {counts.classes:,} classes have one image",
            "such a class does not teach what its images have in common; many are often images without a true label",
            f"leave them out: {setter('min_images_per_class', 2)}",
        )


class LargeMargin(Symptom):
    """A margin that is too large for so few images per class."""

    name = "margin_large"

    def at_start(self) -> Diagnosis | None:
        counts, cost = self.case.counts, margin_cost(self.case.config)
        if counts is None or cost is None or cost < LARGE_MARGIN:
            return None
        each = counts.images / max(counts.classes, 1)
        if each >= FEW_IMAGES:
            return None
        config = self.case.config
        smaller = setter("margin") if config.loss.main is not None else setter("loss_options")
        return Diagnosis(
            f"{each:.1f} images per class, and a margin of '{config.loss_kind}' that takes {cost:.2f} off the cosine "
            f"at 60 degrees",
            "with so few images the network learns them by heart to reach the margin, or the loss does not fall",
            f"a smaller margin ({smaller}), {setter('margin_warmup', 2000)}, augmentation "
            f"({either('set_augment', '--augment-crop')}), or {setter('min_images_per_class', 5)}",
        )


class UnfitRate(Symptom):
    """A learning rate outside of what its optimizer is used with, by the size of the batch."""

    name = "learning_rate"

    def at_start(self) -> Diagnosis | None:
        config = self.case.config
        if callable(config.lr_schedule):
            return None  # its rates are seen at logged steps
        found = self._judge(peak_of(config, self.case.global_batch), is_peak=True)
        if found is not None:
            return found
        large = self.case.global_batch >= WARMUP_BATCH and config.optimizer == "momentum"
        if not large or self.case.warmup or config.lr_schedule == "one_cycle":
            return None
        return Diagnosis(
            f"a global batch of {self.case.global_batch:,} begins at its peak learning rate without warm-up",
            "at so large a batch the first steps overshoot, and the loss stays high or becomes NaN",
            setter("warmup_epochs", 1),
        )

    def at_point(self, point: Point) -> Diagnosis | None:
        if not callable(self.case.config.lr_schedule):
            return None
        return self._judge(point.lr, is_peak=False)  # whether it is the peak is not known: it is not too low

    def _judge(self, rate: float, *, is_peak: bool) -> Diagnosis | None:
        config = self.case.config
        if not isinstance(config.optimizer, str) or config.optimizer not in RATES:
            return None
        least, most = RATES[config.optimizer]
        at_1024 = rate * 1024 / self.case.global_batch
        is_low = is_peak and at_1024 < least and not self.case.is_trained and not config.frozen
        if at_1024 <= most and not is_low:
            return None
        usual = USUAL_RATES[config.optimizer]
        way = "low: the loss falls slowly or not at all" if is_low else "high: the loss stays high or becomes NaN"
        more = "" if is_peak else f", which is {usual * self.case.global_batch / 1024:.3g} at this batch"
        return Diagnosis(
            f"the learning rate is {rate:.3g} at a global batch of {self.case.global_batch:,}, as {at_1024:.3g} at "
            f"1024; optimizer '{config.optimizer}' is used with {least:g} to {most:g} there",
            f"it is too {way}",
            f"{setter('lr', usual)}{more}; plsc lr-find measures it",
        )


def margin_cost(config: Config) -> float | None:
    """What the margin takes off the cosine at an angle of 60 degrees; None where it is not known."""
    if config.margin_function is not None:
        return None
    if config.margins is not None:
        m1, m2, m3 = config.margins
    elif config.loss_kind in _MARGINS:
        name, is_angle = _MARGINS[config.loss_kind]
        margin = float(getattr(config.loss_parameters, name))
        m1, m2, m3 = (1.0, margin, 0.0) if is_angle else (1.0, 0.0, margin)
    else:
        return None
    angle = math.pi / 3
    return math.cos(angle) - (math.cos(m1 * angle + m2) - m3)
