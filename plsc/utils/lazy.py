"""Import of optional packages, with an error that says what to install."""

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


def require(module: str, install: str, *, purpose: str) -> ModuleType:
    """Import and return `module`.

    Args:
        module: dotted name.
        install: the packages to install, as arguments of pip.
        purpose: what needs the module, for the message.

    Raises:
        MissingDependencyError: the module is not installed.

    Example:
        >>> parquet = require("pyarrow.parquet", "pyarrow", "reading Parquet files")
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
    """Import and return `paddle`, with the fastest matrix products of the processor.

    Raises:
        MissingDependencyError: neither of Paddle's two packages is installed.
    """
    use_vector_kernels()
    with warnings.catch_warnings():
        # Paddle warns of a missing ccache, which only compiling C++ extensions needs.
        warnings.filterwarnings("ignore", "No ccache found")
        return require("paddle", "paddlepaddle (or paddlepaddle-gpu for NVIDIA GPUs)", purpose="PLSC")
