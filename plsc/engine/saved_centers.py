"""The class centers of a checkpoint, for a classification without training."""

from __future__ import annotations

import numpy as np
import paddle

from plsc.checkpoint import Checkpoint
from plsc.distributed.agreement import agree
from plsc.distributed.collectives import Collectives
from plsc.engine.about import About, AboutScores
from plsc.errors import CheckpointError
from plsc.losses.centers import Centers
from plsc.losses.storage import set_rows
from plsc.utils.ranges import shard_range

WEIGHT, BIAS = "head.weight", "head.bias"


def scores_of(saved: Checkpoint) -> AboutScores:
    """How the head of a checkpoint scores classes.

    Raises:
        CheckpointError: the head is a custom one without class centers.
    """
    about = About.of(saved)
    if "scores" not in about.model_fields_set and saved.names(WEIGHT):  # an older checkpoint
        kind = about.settings.loss_type.removeprefix("dist_")
        is_cosine = kind != "softmax"
        scale = about.settings.model_dump().get("scale", 64.0) if is_cosine else 1.0
        return AboutScores(is_cosine=is_cosine, scale=float(scale))
    if about.scores is None:
        raise CheckpointError(
            f"{saved.path}: its head has no class centers that score images: it is a custom one whose centers() "
            f"returns None; see docs/extending.md"
        )
    return about.scores


def read_centers(saved: Checkpoint, collectives: Collectives) -> Centers:
    """The class centers of this rank's share of the classes of a checkpoint. Every rank must call this.

    Raises:
        CheckpointError: it is damaged, or its head has no class centers; the same on all ranks.
    """
    topology = collectives.topology

    def read() -> Centers:
        scores, num_classes = scores_of(saved), About.of(saved).settings.num_classes
        own = shard_range(num_classes, topology.world_size, shard=topology.rank)
        # Block by block into the type in which it was saved: a shard may fill the memory.
        weight = paddle.empty(
            [own.size, *saved.shape(WEIGHT)[1:]], "bfloat16" if saved.dtype(WEIGHT) == np.uint16 else "float32"
        )
        for start, rows in saved.blocks(WEIGHT, own, is_finite=True):
            set_rows(weight, slice(start - own.start, start - own.start + len(rows)), rows)
        bias = saved.read(BIAS, own, is_finite=True) if BIAS in saved.names(BIAS) else None
        return Centers(
            weight=weight,
            bias=None if bias is None else paddle.to_tensor(bias),
            classes=own,
            is_cosine=scores.is_cosine,
            scale=scores.scale,
        )

    return agree(read, collectives, error=CheckpointError)
