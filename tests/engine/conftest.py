"""Fixtures of the tests of switches that act on the whole process."""

from __future__ import annotations

import functools

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
def tf32(monkeypatch):
    """Called, it tells whether (cuDNN, cuBLAS) may use TF32; set back afterwards.

    A CPU build of Paddle 3.3 has the switches; of 3.2 it has not, and the fixture plays them.
    """
    names = ("cudnn", "cublas")
    if not hasattr(core, "set_cudnn_switch"):
        state = dict.fromkeys(names, True)
        for name in names:
            monkeypatch.setattr(core, f"get_{name}_switch", functools.partial(state.get, name), raising=False)
            set_one = functools.partial(state.__setitem__, name)
            monkeypatch.setattr(core, f"set_{name}_switch", set_one, raising=False)
    before = [getattr(core, f"get_{name}_switch")() for name in names]
    yield lambda: tuple(getattr(core, f"get_{name}_switch")() for name in names)
    for name, value in zip(names, before):
        getattr(core, f"set_{name}_switch")(value)
