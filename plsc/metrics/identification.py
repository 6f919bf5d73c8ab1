"""Identification: whose of the embeddings in a gallery a probe is most similar to.

Similarity is the cosine of the angle between two embeddings. M gallery images, Q probe images, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plsc.errors import ConfigError, DataError
from plsc.metrics.embeddings import Array, blocks, check_embeddings, to_unit_length
from plsc.utils.plural import counted

# Elements of the [Q, M] matrix of cosines that are held at a time: a few dozen MiB.
_BLOCK_ELEMENTS = 1 << 23


def identification(
    gallery: Array,
    gallery_labels: Array,
    *,
    probes: Array,
    probe_labels: Array,
    ranks: Sequence[int] = (1, 5),
) -> dict[int, float]:
    """For each k the share of probes whose label is among the k most similar gallery images.

    This is closed-set identification, the CMC curve of ISO/IEC 19795-1. A gallery image of another label that is as
    similar as the best image of the right label counts as more similar, so that collapsed embeddings score 0. A probe
    whose label is not in the gallery counts as missed.

    Args:
        gallery: [M, D], of any length; zero rows have cosine 0.
        gallery_labels: [M].
        probes: [Q, D], of any length; zero rows have cosine 0.
        probe_labels: [Q].
        ranks: the values of k, each 1 or more.

    Returns:
        {k: share, 0 to 1}.

    Raises:
        DataError: no gallery or no probes, shapes that do not fit, or an embedding that is not finite.
        ConfigError: a value of k below 1.

    Example:
        >>> identification(np.eye(2), np.array([0, 1]), probes=np.eye(2), probe_labels=np.array([0, 0]), ranks=[1])
        {1: 0.5}
    """
    gallery, probes = check_embeddings(gallery, "gallery"), check_embeddings(probes, "probes")
    gallery_labels, probe_labels = np.asarray(gallery_labels).reshape(-1), np.asarray(probe_labels).reshape(-1)
    for name, matrix, labels in (("gallery", gallery, gallery_labels), ("probes", probes, probe_labels)):
        if len(matrix) != len(labels) or not len(labels):
            raise DataError(
                f"{name}: got {counted(len(matrix), 'embedding')} and {counted(len(labels), 'label')}, expected one "
                f"label each, and at least one"
            )
    if gallery.shape[1] != probes.shape[1]:
        raise DataError(
            f"got a gallery of {gallery.shape[1]} columns and probes of {probes.shape[1]}, expected the "
            f"same embedding size"
        )
    if any(rank < 1 for rank in ranks):
        raise ConfigError(f"ranks: got {tuple(ranks)}, expected 1 or more")
    unit_gallery = np.concatenate([to_unit_length(block)[0].astype(np.float32) for block in blocks(gallery)])
    places, rows = [], max(1, _BLOCK_ELEMENTS // len(gallery))
    for block, labels in zip(blocks(probes, rows), blocks(probe_labels, rows)):
        cosines = to_unit_length(block)[0].astype(np.float32) @ unit_gallery.T
        is_right = labels[:, None] == gallery_labels[None, :]
        best = np.where(is_right, cosines, -np.inf).max(axis=1, keepdims=True)
        more_similar = (~is_right & (cosines >= best)).sum(axis=1)
        places.append(np.where(is_right.any(axis=1), more_similar + 1, np.inf))
    place = np.concatenate(places)
    return {rank: float((place <= rank).mean()) for rank in ranks}
