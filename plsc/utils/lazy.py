"""Import what an extra brings, or say in one line what to install."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

from plsc.errors import MissingDependencyError
from plsc.utils.processor import use_vector_kernels

# What `plsc serve` needs, as pip takes it.
SERVER_PACKAGES = (
    "starlette 'uvicorn>=0.54,<0.55' httptools uvloop python-multipart orjson prometheus-client protobuf 'urllib3>=2'"
)


def require(module: str, install: str, purpose: str) -> ModuleType:
    """Import and return `module`.

    Args:
        module: dotted name.
        install: what to install, as pip takes it.
        purpose: what needs it, for the message.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise MissingDependencyError(
            f"{purpose} needs {module.split('.')[0]}, which is not installed: pip install {install}"
        ) from None


def require_paddle() -> ModuleType:
    """Import and return `paddle`, or say which of the two packages to install."""
    use_vector_kernels()
    with warnings.catch_warnings():
        # Of no concern to those who compile no C++ extension.
        warnings.filterwarnings("ignore", "No ccache found")
        return require("paddle", "paddlepaddle (or paddlepaddle-gpu for NVIDIA GPUs)", "PLSC")
