"""Slow rankings of classes, and checkpoints and exports of a head that is given."""

from __future__ import annotations

import math

import numpy as np

from plsc.checkpoint import Checkpoint, Part, save_checkpoint
from plsc.data.class_identity import ClassIdentity
from plsc.data.sources.string_table import StringTable
from plsc.distributed.collectives import Collectives
from plsc.engine.class_change import about_classes, class_parts
from plsc.export.export import export_backbone
from plsc.utils.ranges import shard_ranges
from tests._support.exporting import EMB_DIM, SHAPE, network, settings


def slow_scores(feature, weight, bias=None, *, is_cosine):
    """The score of each class for one feature, in plain loops of float64."""
    scores = []
    if weight.ndim == 3:  # the nearest sub-center counts
        return [max(slow_scores(feature, rows, is_cosine=is_cosine)) for rows in weight]
    for number, row in enumerate(weight):
        product = math.fsum(float(a) * float(b) for a, b in zip(feature, row))
        if is_cosine:
            lengths = [math.sqrt(math.fsum(float(a) ** 2 for a in vector)) for vector in (feature, row)]
            product /= max(lengths[0], 1e-12) * max(lengths[1], 1e-4)
        elif bias is not None:
            product += float(bias[number])
        scores.append(product)
    return scores


def slow_ranking(features, weight, bias=None, *, is_cosine, count):
    """The `count` classes of the highest scores of each feature, equal ones by number."""
    ranked = []
    for feature in features:
        scores = slow_scores(feature, weight, bias, is_cosine=is_cosine)
        ranked.append(sorted(range(len(scores)), key=lambda number: (-scores[number], number))[:count])
    return ranked


def make_checkpoint(root, weight, bias=None, *, names=None, scale=16.0, shards=3, **about):
    """A checkpoint of a head in several shards, and of no backbone; returns it opened."""
    identity = None if names is None else ClassIdentity("name", 100, StringTable(names), np.zeros([0], np.int64))
    parts = class_parts(identity)
    for name, tensor in (("head.weight", weight), ("head.bias", bias)):
        for own in shard_ranges(len(weight), shards) if tensor is not None else ():
            parts.append(Part(name, tensor[own.start : own.stop], offset=own.start, rows=len(weight)))
    kind = "softmax" if bias is not None else "dist_arcface"
    told = {
        "epoch": 1,
        "step": 1,
        "images_in_epoch": 0,
        "optimizer": "Momentum",
        "head_optimizer": "Momentum",
        "loss_scaling": {},
        "settings": {
            "num_classes": len(weight),
            "emb_dim": weight.shape[-1],
            "image_shape": list(SHAPE),
            "loss_type": kind,
            "scale": scale,
        },
        "classes": about_classes(identity),
        "scores": {"is_cosine": bias is None, "scale": scale if bias is None else 1.0},
        **about,
    }
    return Checkpoint(save_checkpoint(root, "0", parts=parts, about=told, collectives=Collectives()))


def make_centers(classes=8, seed=3):
    return np.random.default_rng(seed).standard_normal((classes, EMB_DIM)).astype(np.float32)


def make_classifier(folder, weight=None, bias=None, *, flip=True, bake=(), **options):
    """Export a small untrained network with a head; returns (the eager network, the head's weight)."""
    weight = make_centers() if weight is None else weight
    saved = make_checkpoint(folder.with_name(f"{folder.name}.checkpoint"), weight, bias, **options)
    made = network()
    export_backbone(made, settings(flip=flip), directory=folder, bake=bake, classifier=saved)
    return made, weight
