"""The problems that the workers solve and the tests know the answer to."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import paddle

from plsc.losses.margins.combined import CombinedMargin

ARCFACE, COSFACE, SPHEREFACE = (1.0, 0.5, 0.0), (1.0, 0.0, 0.35), (1.35, 0.0, 0.0)


class NormMargin:
    """psi = cos(theta + m), m = 0.1 + 0.02 |x| (1 + y mod 2): a margin that depends on the norm, as MagFace's does."""

    def __call__(self, cosine, norms, labels):
        share = 0.02 * (1 + labels % 2).astype(cosine.dtype)
        angle = 0.1 + share * norms
        sine = paddle.sqrt(1.0 - cosine * cosine)
        by_angle = sine * paddle.cos(angle) + cosine * paddle.sin(angle)
        value = cosine * paddle.cos(angle) - sine * paddle.sin(angle)
        return value, by_angle / sine, -by_angle * share

    @staticmethod
    def of_one(cosine, norm, label):
        """The same for one sample, from the definition."""
        theta, share = math.acos(cosine), 0.02 * (1 + label % 2)
        angle = theta + 0.1 + share * norm
        return math.cos(angle), math.sin(angle) / math.sin(theta), -math.sin(angle) * share


class RunningMargin:
    """psi = cos - m, m = 0.3 + 0.05 (|x| - mean), with a running mean of all norms that were seen."""

    def __init__(self):
        self.mean = paddle.zeros([1])

    def __call__(self, cosine, norms, labels):
        self.mean = 0.9 * self.mean + 0.1 * norms.mean()
        margin = 0.3 + 0.05 * (norms - self.mean)
        return cosine - margin, paddle.ones_like(cosine), paddle.full_like(cosine, -0.05)

    def state(self):
        return {"mean": self.mean}

    def load(self, state):
        self.mean = paddle.to_tensor(state["mean"])


class HeadCase(NamedTuple):
    classes: int
    margins: tuple[float, float, float] | None = ARCFACE
    scale: float = 64.0
    samples_per_rank: int = 5
    with_bias: bool = False
    dtype: str = "float64"
    by_norm: bool = False
    short: bool = False

    @property
    def margin(self):
        """The margin object of the head."""
        if self.by_norm:
            return NormMargin()
        return None if self.margins is None else CombinedMargin(*self.margins)

    @property
    def of_oracle(self):
        """The arguments of `oracle` for the same loss."""
        margin = {"margin": NormMargin.of_one} if self.by_norm else {"margins": self.margins}
        return {**margin, "scale": self.scale}


HEAD_CASES = {
    "six": HeadCase(6),
    "five": HeadCase(5),
    "three": HeadCase(3),
    "one class": HeadCase(1),
    "batch of one": HeadCase(7, samples_per_rank=1),
    "scale 128": HeadCase(11, scale=128.0),
    "scale 64000": HeadCase(9, scale=64000.0),
    "cosface": HeadCase(10, COSFACE),
    "sphereface": HeadCase(10, SPHEREFACE),
    "combined": HeadCase(10, (0.9, 0.4, 0.15), 30.0),
    "softmax": HeadCase(10, None),
    "softmax with bias": HeadCase(6, None, with_bias=True),
    "float32": HeadCase(50, samples_per_rank=8, dtype="float32"),
    "short vectors": HeadCase(10, samples_per_rank=7, short=True),
    "short vectors, three": HeadCase(3, samples_per_rank=7, short=True),
    "short vectors, margin by norm": HeadCase(10, samples_per_rank=7, by_norm=True, scale=16.0, short=True),
    "short vectors, float32": HeadCase(11, samples_per_rank=7, dtype="float32", short=True),
    "margin by norm": HeadCase(10, by_norm=True),
    "margin by norm, three": HeadCase(3, by_norm=True, scale=128.0),
    "margin by norm, float32": HeadCase(50, by_norm=True, samples_per_rank=8, dtype="float32"),
}


# Both sides of what counts as short: 0.04 for a feature of 16 numbers, 1e-4 for a class center. None: as it is.
FEATURE_LENGTHS = [0.0, 1e-20, 1e-6, 1e-3, 2e-2, None]
CENTER_LENGTHS = [None, 0.0, 1e-7, 5e-5, 2e-4]


def shortened(rows, lengths):
    """Row n with the n-th of the lengths, which are taken in turns; None leaves it."""
    rows = rows.copy()
    for row, length in zip(rows, lengths * len(rows)):
        if length is not None:
            row *= length / np.linalg.norm(row)
    return rows


def head_problem(case, ranks):
    """(features [G, D], labels [G] with duplicates, weight [C, D], bias [C] or None), in rank order."""
    rng = np.random.default_rng(7)
    samples = case.samples_per_rank * ranks
    weight = rng.standard_normal((case.classes, 16)).astype(case.dtype) * 0.1
    labels = rng.integers(0, case.classes, samples)
    labels[-1] = labels[0]
    features = (3.0 * weight[labels] + rng.standard_normal((samples, 16))).astype(case.dtype)
    if case.short:
        features, weight = shortened(features, FEATURE_LENGTHS), shortened(weight, CENTER_LENGTHS)
    bias = rng.standard_normal(case.classes).astype(case.dtype) if case.with_bias else None
    return features, labels, weight, bias


# Settings of heads whose loss has a state, draws, counts classes, needs all cosines, weights its samples, or changes
# the negatives.
LOSS_SETTINGS = {
    "adaface": {"loss_type": "dist_adaface", "loss_options": {"average": 0.3}},
    "magface": {"loss_type": "dist_magface", "loss_options": {"l_a": 2.0}},
    "elasticface_arc": {"loss_type": "dist_elasticface_arc"},
    "elasticface_cos_plus": {"loss_type": "dist_elasticface_cos_plus"},
    "dynamic_margin": {"loss_type": "dist_dynamic_margin", "class_counts": [1, 20, 3, 4, 500, 6, 7]},
    "warm-up of adaface": {"loss_type": "dist_adaface", "margin_warmup": 5},
    "smoothing": {"loss_type": "dist_arcface", "label_smoothing": 0.2},
    "smoothing of softmax": {"loss_type": "dist_softmax", "label_smoothing": 0.2},
    "curricularface": {"loss_type": "dist_curricularface", "loss_options": {"average": 0.3}},
    "sphereface2": {"loss_type": "dist_sphereface2"},
    "uniface": {"loss_type": "dist_uniface", "class_weights": [1, 0, 2, 3, 0.5, 0.1, 7]},
    "sub-centers": {"loss_type": "dist_cosface", "subcenters": 3},
    "filter": {"loss_type": "dist_arcface", "interclass_filter": 0.1},
    "sub-centers of uniface": {"loss_type": "dist_uniface", "subcenters": 2, "interclass_filter": 0.3},
    "all of curricularface": {
        **{"loss_type": "dist_curricularface", "loss_options": {"average": 0.3}, "label_smoothing": 0.1},
        **{"subcenters": 2, "interclass_filter": 0.2, "margin_warmup": 5},
    },
    "class weights": {"loss_type": "dist_magface", "class_weights": [1, 0, 2, 3, 0.5, 0.1, 7]},
}


# Settings of heads in groups of ranks: one that can be sampled, one with a bias, one whose chunks differ in number, ...
GROUP_CASES = {
    "arcface": {"loss_type": "dist_arcface", "num_classes": 7},
    "several chunks": {"loss_type": "dist_cosface", "num_classes": 81},
    "adaface": {"loss_type": "dist_adaface", "loss_options": {"average": 0.3}, "num_classes": 7},
    "curricularface": {"loss_type": "dist_curricularface", "loss_options": {"average": 0.3}, "num_classes": 50},
    "sphereface2": {"loss_type": "dist_sphereface2", "num_classes": 7},
    "elasticface_cos_plus": {"loss_type": "dist_elasticface_cos_plus", "num_classes": 7},
    "softmax": {"loss_type": "dist_softmax", "num_classes": 101},
    "smoothing": {"loss_type": "dist_arcface", "label_smoothing": 0.2, "num_classes": 7},
    "class weights": {
        **{"loss_type": "dist_magface", "num_classes": 7},
        **{"class_weights": [1, 0, 2, 3, 0.5, 0.1, 7], "loss_options": {"l_a": 2.0}},
    },
    "sub-centers": {"loss_type": "dist_cosface", "subcenters": 3, "num_classes": 55},
    "sampled": {"loss_type": "dist_arcface", "sample_ratio": 0.3, "num_classes": 81},
    "fewer drawn than samples": {"loss_type": "dist_arcface", "sample_ratio": 0.01, "num_classes": 81},
    "lean": {
        **{"loss_type": "dist_arcface", "num_classes": 81},
        **{"center_storage": "bfloat16", "momentum_storage": "int8"},
    },
    "lean sample": {
        **{"loss_type": "dist_arcface", "num_classes": 81, "sample_ratio": 0.5},
        **{"center_storage": "bfloat16", "momentum_storage": "int8"},
    },
    "lean sample on a disk": {
        **{"loss_type": "dist_arcface", "num_classes": 81, "sample_ratio": 0.5, "center_location": "disk"},
        **{"center_storage": "bfloat16", "momentum_storage": "int8"},
    },
    "AdamW": {"loss_type": "dist_arcface", "optimizer": "adamw", "num_classes": 50},
    "unfused": {"loss_type": "dist_arcface", "optimizer": paddle.optimizer.Adagrad, "num_classes": 50},
    "an empty shard": {"loss_type": "dist_arcface", "num_classes": 2},
}
RESUMED_GROUPS = ("adaface", "sampled", "lean sample", "lean sample on a disk", "unfused")
GROUP_STEPS, GROUP_SAMPLES = 4, 12


def group_batch(classes, step):
    """(features [G, 16], labels [G]) of a step."""
    rng = np.random.default_rng(step)
    features = rng.standard_normal((GROUP_SAMPLES, 16)).astype("float32") * np.float32(1 + step % 3)
    return features, rng.integers(0, classes, GROUP_SAMPLES)
