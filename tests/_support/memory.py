"""What is taken of memory, on a CPU."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc

import paddle


class Taken:
    """The most bytes that Paddle and NumPy take within the context, beyond what there was."""

    def __enter__(self):
        core = paddle.base.core
        core.host_memory_stat_reset_peak_value("Allocated", 0)
        self._before = core.host_memory_stat_current_value("Allocated", 0)
        tracemalloc.start()
        return self

    def __exit__(self, *error):
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        self.bytes = paddle.base.core.host_memory_stat_peak_value("Allocated", 0) - self._before + peak


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
