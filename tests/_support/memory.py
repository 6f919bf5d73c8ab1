"""What a forward pass keeps in memory, on a CPU."""

from __future__ import annotations

import contextlib
import gc

import paddle


def kept_bytes(network, images, context=None):
    """Bytes that a forward pass leaves behind for the backward pass, those of its result and its images included."""
    gc.collect()  # what earlier tests left in cycles would be freed meanwhile
    before = _allocated()
    with context or contextlib.nullcontext():
        features = network(images)
    kept = _allocated() - before + images.size * images.element_size()
    features.sum().backward()
    network.clear_gradients()
    return kept


def _allocated():
    return paddle.base.core.host_memory_stat_current_value("Allocated", 0)
