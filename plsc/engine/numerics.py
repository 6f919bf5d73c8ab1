"""Switches of Paddle that decide, for the whole process, how GPUs compute: TF32, and deterministic algorithms.

TF32 keeps 10 of float32's 23 bits of a factor. cuDNN's convolutions and cuBLAS's matrix products have a switch each,
and Paddle's defaults differ: 3.2 has both on, 3.3 only that of convolutions.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

import paddle

_TF32_SWITCHES = ("set_cudnn_switch", "set_cublas_switch")  # of GPU builds since 2.1; read at each call
_DETERMINISTIC = {
    "FLAGS_cudnn_deterministic": True,
    "FLAGS_embedding_deterministic": 1,
    "FLAGS_cudnn_exhaustive_search": False,  # with the first, Paddle's convolutions refuse it
}


def set_tf32(on: bool) -> None:
    """Allow or forbid TF32 in float32 convolutions and matrix products on GPUs, from here on."""
    for name in _TF32_SWITCHES:
        if hasattr(paddle.base.core, name):
            getattr(paddle.base.core, name)(on)
    _set_flags({"FLAGS_cudnn_allow_tf32": on})  # of 3.3, whose convolutions read it too


def prepare_tf32() -> None:
    """Let `tf32_allowed` have an effect on matrix products. Call it before the first of them.

    Paddle 3.3 reads this flag once, when it makes the cuBLAS handle that the switch then chooses.
    """
    _set_flags({"FLAGS_cublas_allow_tf32": True})


@contextlib.contextmanager
def tf32_allowed() -> Iterator[None]:
    """The context in which TF32 is allowed; it is forbidden afterwards."""
    set_tf32(True)
    try:
        yield
    finally:
        set_tf32(False)


def make_deterministic() -> None:
    """Choose GPU algorithms that compute the same numbers each time. Call it before the first matrix product.

    A switch of the environment that the user has set for cuBLAS is left as it is.
    """
    _set_flags(_DETERMINISTIC)
    # cuBLAS may otherwise choose its workspace by what other streams do.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _set_flags(flags: Mapping[str, bool | int]) -> None:
    """Set those of the flags that this build of Paddle has: each kind of device and version has others."""
    for name, value in flags.items():
        with contextlib.suppress(ValueError):
            paddle.set_flags({name: value})
