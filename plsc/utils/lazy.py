"""Import of optional packages, with an error that says what to install."""

from __future__ import annotations

import importlib
import os
import re
import warnings
from types import ModuleType

from plsc.errors import MissingDependencyError
from plsc.utils.paddle_noise import IMPORT_WARNING, quiet_environment
from plsc.utils.processor import use_vector_kernels

# Before, matmul and index_select have no argument `out`.
OLDEST_PADDLE = (3, 2)
# As arguments of pip. The public package index has no GPU build after 2.6.2.
PADDLE_PACKAGES = (
    "'paddlepaddle>=3.2.2,<3.4', or for NVIDIA GPUs 'paddlepaddle-gpu>=3.3,<3.4' -i "
    "https://www.paddlepaddle.org.cn/packages/stable/cu126/ (README.md: which index for which driver)"
)
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
        MissingDependencyError: neither of Paddle's two packages is installed, or one that is too old.
    """
    use_vector_kernels()
    quiet_environment(os.environ)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", IMPORT_WARNING)
        paddle = require("paddle", PADDLE_PACKAGES, purpose="PLSC")
    release = re.match(r"(\d+)\.(\d+)", paddle.__version__)
    version = tuple(map(int, release.groups())) if release else (0, 0)
    if (0, 0) < version < OLDEST_PADDLE:  # a build from source calls itself 0.0.0
        raise MissingDependencyError(
            f"PLSC needs Paddle {'.'.join(map(str, OLDEST_PADDLE))} or newer, found {paddle.__version__}: pip install "
            f"{PADDLE_PACKAGES}"
        )
    return paddle
