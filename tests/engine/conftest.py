"""Fixtures of the tests of switches that act on the whole process."""

from __future__ import annotations

import paddle
import pytest
from paddle.base import core


@pytest.fixture
def gpu_flags(monkeypatch):
    """The flags that are set, by name, as on a GPU build of Paddle 3.3: any that it has not is refused, as there."""
    known = {
        *("FLAGS_cudnn_allow_tf32", "FLAGS_cublas_allow_tf32", "FLAGS_cudnn_deterministic"),
        *("FLAGS_embedding_deterministic", "FLAGS_cudnn_exhaustive_search"),
    }
    found = {}

    def set_flags(flags):
        for name, value in flags.items():
            if name not in known:
                raise ValueError(f"Flag {name} cannot set its value through this function.")
            found[name] = value

    monkeypatch.setattr(paddle, "set_flags", set_flags)
    return found


@pytest.fixture
def tf32():
    """Called, it tells whether (cuDNN, cuBLAS) may use TF32, which each build of Paddle has; set back afterwards."""
    before = core.get_cudnn_switch(), core.get_cublas_switch()
    yield lambda: (core.get_cudnn_switch(), core.get_cublas_switch())
    core.set_cudnn_switch(before[0])
    core.set_cublas_switch(before[1])
