"""The switches of TF32 and of deterministic algorithms."""

from __future__ import annotations

import os

import pytest
from paddle.base import core

from plsc.engine import numerics


def test_both_libraries_are_switched(gpu_flags, tf32):
    for on in (True, False):
        numerics.set_tf32(on)
        assert tf32() == (on, on)
        assert gpu_flags == {"FLAGS_cudnn_allow_tf32": on}


def test_matrix_products_get_a_handle_that_can(gpu_flags, tf32):
    """Paddle 3.3 makes it once: switching this flag later would do nothing."""
    numerics.prepare_tf32()
    with numerics.tf32_allowed():
        pass
    assert gpu_flags == {"FLAGS_cudnn_allow_tf32": False, "FLAGS_cublas_allow_tf32": True}
    assert tf32() == (False, False)


def test_tf32_is_allowed_within_the_context_only(tf32):
    with numerics.tf32_allowed():
        assert tf32() == (True, True)
    assert tf32() == (False, False)
    with pytest.raises(RuntimeError), numerics.tf32_allowed():
        raise RuntimeError
    assert tf32() == (False, False)


def test_a_build_without_a_switch_is_served(tf32, monkeypatch):
    """A CPU build has no flags of GPUs, and another version may lack a function."""
    numerics.set_tf32(False)
    with monkeypatch.context() as patch:
        patch.delattr(core, "set_cudnn_switch")
        numerics.set_tf32(True)
    assert tf32() == (False, True)


def test_deterministic_algorithms_are_chosen(gpu_flags, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    numerics.make_deterministic()
    assert gpu_flags == {
        "FLAGS_cudnn_deterministic": True,
        "FLAGS_embedding_deterministic": 1,
        "FLAGS_cudnn_exhaustive_search": False,
    }
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    numerics.make_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
