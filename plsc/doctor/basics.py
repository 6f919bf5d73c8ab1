"""Checks of what every run needs: Python, Paddle, the packages, and the decoding of images."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
import time
from collections.abc import Iterator

from plsc.doctor.findings import Finding, Request, check, fault, ok, warning
from plsc.doctor.paddle_facts import SECONDS
from plsc.utils.lazy import OLDEST_PADDLE, PADDLE_PACKAGES
from plsc.version import __version__

_NEWEST_PYTHON = (3, 13)
# The releases of Paddle from this one on are not tested: pyproject.toml excludes them.
_UNTESTED_PADDLE = (3, 4)
_PACKAGES = ("numpy", "opencv-python-headless", "opencv-python", "simplejpeg", "Pillow", "safetensors", "numba")
# A float32 product of 1024 x 1024 normal numbers deviates by about 1e-6 of its greatest; TF32 by 1e-3.
_PRODUCT_DEVIATION = 1e-4
# A core at 2 GHz with AVX2 does 64 GFLOP/s at best; MKL's SSE2 kernels do about 10.
_SLOW_PRODUCT = 5e9


@check("python")
def python(request: Request) -> Iterator[Finding]:
    seen = f"PLSC {__version__}, Python {platform.python_version()}, {platform.system()} on {platform.machine()}"
    if platform.system() != "Linux":
        yield warning(
            seen, means="PLSC is tested on Linux only", cure="train on Linux, as in a container or under WSL 2"
        )
    elif sys.version_info[:2] > _NEWEST_PYTHON:
        newest = ".".join(map(str, _NEWEST_PYTHON))
        yield warning(
            seen, means="this Python is newer than those that are tested", cure=f"use Python 3.10 to {newest}"
        )
    else:
        yield ok(seen)


@check("paddle", seconds=SECONDS + 30.0)
def paddle(request: Request) -> Iterator[Finding]:
    found = request.paddle.found
    if found is None:
        yield fault(
            f"Paddle cannot be used: {request.paddle.child.reason()}",
            means="nothing can be trained, exported or served",
            cure=f"install a build for this processor and driver: pip install {PADDLE_PACKAGES}",
        )
        return
    build = "for CPUs" if found.cuda is None else f"for CUDA {found.cuda}, cuDNN {found.cudnn}, NCCL {found.nccl}"
    seen = f"Paddle {found.version} ({found.commit}), a build {build}"
    numbers = re.match(r"(\d+)\.(\d+)", found.version)
    version = tuple(map(int, numbers.groups())) if numbers else OLDEST_PADDLE
    if version >= _UNTESTED_PADDLE:
        yield warning(seen, means="PLSC is not tested with this release", cure=f"pip install {PADDLE_PACKAGES}")
    else:
        yield ok(seen)
    yield _product(found.device, found.deviation, found.rate)


def _product(device: str, deviation: float, rate: float) -> Finding:
    """A product of matrices, compared with NumPy's."""
    seen = f"a product of matrices on {device}: {rate / 1e9:.0f} GFLOP/s, {deviation:.1e} from the exact one"
    if not deviation <= _PRODUCT_DEVIATION:  # NaN is no less
        return fault(
            seen,
            means="numbers that training computes are wrong",
            cure="install Paddle again; unset MKL_DEBUG_CPU_TYPE; on a GPU also test the card and its driver",
        )
    if device == "cpu" and rate < _SLOW_PRODUCT:
        return warning(
            seen,
            means="a core computes slowly: other processes use it, or the library of Paddle has no kernels for it",
            cure="run it again on an idle machine; docs/performance.md says what to expect",
        )
    return ok(seen)


@check("packages")
def packages(request: Request) -> Iterator[Finding]:
    versions = {name: _version_of(name) for name in _PACKAGES}
    yield ok(", ".join(f"{name} {version}" for name, version in versions.items() if version))
    if versions["opencv-python"] and versions["opencv-python-headless"]:
        yield warning(
            "opencv-python and opencv-python-headless are both installed",
            means="they write to the same folder: which version is imported depends on the order of installation",
            cure="pip uninstall opencv-python opencv-python-headless, then pip install opencv-python-headless",
        )


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@check("image decoding")
def decoding(request: Request) -> Iterator[Finding]:
    """Decode a JPEG by both decoders: pixels must agree, and libjpeg-turbo must be there."""
    try:
        import cv2
        import numpy as np
        import simplejpeg  # noqa: F401  # plsc.data.jpeg needs it

        from plsc.data.jpeg import decode_by_opencv, decode_jpeg
    except ImportError as error:
        yield fault(
            f"a decoder cannot be imported: {error}",
            means="no image can be read",
            cure="pip install --force-reinstall opencv-python-headless simplejpeg",
        )
        return
    side = 112
    smooth = cv2.resize(np.random.default_rng(0).integers(0, 256, (14, 14, 3), np.uint8), (side, side))
    encoded = cv2.imencode(".jpg", smooth)[1].tobytes()
    fast, plain = decode_jpeg(encoded), decode_by_opencv(encoded)
    if fast is None or plain is None or not np.array_equal(fast, plain):
        yield fault(
            f"OpenCV {cv2.__version__} and simplejpeg decode a JPEG to different pixels",
            means="networks are trained on other pixels than they are served with",
            cure="pip install --upgrade opencv-python-headless simplejpeg",
        )
        return
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 0.3:
        decode_jpeg(encoded)
        count += 1
    rate = count / (time.perf_counter() - start)
    yield ok(f"OpenCV {cv2.__version__}, libjpeg-turbo by simplejpeg: {rate:,.0f} JPEGs of {side} x {side} a second")
