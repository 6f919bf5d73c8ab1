"""The classifier of an export: the class centers of a checkpoint and the names of its classes, in one file.

S classes of a block, D embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.checkpoint import Checkpoint
from plsc.engine.about import About
from plsc.engine.class_change import names_in
from plsc.engine.saved_centers import BIAS as HEAD_BIAS
from plsc.engine.saved_centers import WEIGHT as HEAD_WEIGHT
from plsc.engine.saved_centers import scores_of
from plsc.inference.classifier import BIAS, CENTERS, ENDS, TEXT, names_digest
from plsc.inference.model_card import CLASSIFIER_FILE
from plsc.metrics.embeddings import CENTER_FLOOR
from plsc.utils.row_types import decoded
from plsc.utils.safetensors_file import make_header, tensor_order


def write_classifier(saved: Checkpoint, folder: Path) -> dict[str, Any]:
    """Write the class centers, and the bias where there is one, block by block from the checkpoint's shards.

    Args:
        saved: the checkpoint.
        folder: of the export.

    Returns:
        What the model card says of the classifier, without the digest of the file.

    Raises:
        CheckpointError: the checkpoint is damaged, or its head has no class centers.
    """
    scores, names = scores_of(saved), names_in(saved)
    classes, shape = About.of(saved).settings.num_classes, saved.shape(HEAD_WEIGHT)
    tensors: dict[str, tuple[str, list[int], Iterator[NDArray[Any]]]] = {
        CENTERS: ("float32", shape, _centers(saved, scores.is_cosine)),
    }
    if saved.names(HEAD_BIAS) and not scores.is_cosine:
        bias = (block.rows for block in saved.blocks(HEAD_BIAS, is_finite=True))
        tensors[BIAS] = ("float32", [classes], bias)
    if names is not None:
        tensors[TEXT] = ("uint8", [len(names.text)], iter([names.text]))
        tensors[ENDS] = ("int64", [len(names.ends)], iter([names.ends]))
    order = sorted(tensors, key=lambda name: tensor_order(name, tensors[name][0]))
    with open(folder / CLASSIFIER_FILE, "wb") as file:
        file.write(make_header((name, tensors[name][0], tensors[name][1]) for name in order))
        for name in order:
            for block in tensors[name][2]:
                file.write(np.ascontiguousarray(block).data)
    return {
        "classes": classes,
        "score": "cosine" if scores.is_cosine else "product",
        "scale": scores.scale,
        "subcenters": shape[1] if len(shape) == 3 else 1,
        "names": None if names is None else names_digest(names.text, names.ends),
    }


def _centers(saved: Checkpoint, is_cosine: bool) -> Iterator[NDArray[np.float32]]:
    """The rows in blocks, of unit length where the score is a cosine: w / max(|w|, 1e-4)."""
    for block in saved.blocks(HEAD_WEIGHT, is_finite=True):
        rows = decoded(block.rows, block.rows.shape[-1]).astype(np.float32, copy=False)
        if is_cosine:
            lengths = np.linalg.norm(rows.astype(np.float64), axis=-1, keepdims=True)
            rows = (rows / np.maximum(lengths, CENTER_FLOOR)).astype(np.float32)
        yield rows
