"""Checks of the devices that Paddle computes on, and of their driver."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from plsc.doctor.findings import Finding, Request, check, fault, ok, warning
from plsc.doctor.paddle_facts import SECONDS
from plsc.utils.files import size_text
from plsc.utils.hints import setter
from plsc.utils.lazy import PADDLE_PACKAGES
from plsc.utils.plural import counted

# What the kernel driver of NVIDIA says of itself; containers have it too.
DRIVER = Path("/proc/driver/nvidia")
# The oldest driver by the major version of CUDA (NVIDIA, "CUDA Compatibility", minor version compatibility).
_OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
# Tensor cores for bfloat16 and TF32 came with this compute capability, float16's with 7.0.
_BFLOAT16 = (8, 0)


@check("devices", seconds=SECONDS + 30.0)
def devices(request: Request) -> Iterator[Finding]:
    found, present = request.paddle.found, _cards()
    if found is None:
        return  # the check of Paddle has said so
    if found.devices:
        for number, device in enumerate(found.devices):
            yield ok(
                f"gpu:{number}: {device.name}, {size_text(device.memory)}, compute capability "
                f"{device.capability[0]}.{device.capability[1]}"
            )
        if any(device.capability < _BFLOAT16 for device in found.devices):
            yield warning(
                "a GPU has a compute capability below 8.0",
                means="it multiplies neither bfloat16 nor TF32 in hardware",
                cure=f"for mixed precision leave amp_dtype at float16; {setter('tf32')} has no effect",
            )
        return
    if found.cuda is None and not present:
        yield ok("no GPU: Paddle computes on the CPU")
    elif found.cuda is None:
        yield warning(
            f"the machine has {counted(present, 'GPU')}, and Paddle is a build for CPUs",
            means="training computes on the CPU",
            cure=f"pip uninstall paddlepaddle, then pip install {PADDLE_PACKAGES}",
        )
    else:
        yield warning(
            f"Paddle is a build for CUDA {found.cuda} and finds no GPU; the driver names {present}",
            means="training computes on the CPU",
            cure="start the container with --gpus all; look at nvidia-smi and at CUDA_VISIBLE_DEVICES",
        )


@check("driver", seconds=SECONDS + 30.0)
def driver(request: Request) -> Iterator[Finding]:
    found, version = request.paddle.found, _driver_version()
    cuda = found.cuda if found is not None else None
    if cuda is None and version is None:
        return  # a machine without a GPU
    if version is None:
        yield warning(
            f"no driver of NVIDIA is loaded, and Paddle is a build for CUDA {cuda}",
            means="no GPU can be used",
            cure="install the driver; in a container, start it with --gpus all",
        )
        return
    oldest = _OLDEST_DRIVER.get(int((cuda or "0").partition(".")[0]), 0)
    if int(version.partition(".")[0]) < oldest:
        yield fault(
            f"NVIDIA's driver {version}, and Paddle is a build for CUDA {cuda}",
            means=f"CUDA {cuda} needs a driver from {oldest} on",
            cure="install a newer driver, or the build of Paddle for an older CUDA: README.md has the commands",
        )
        return
    yield ok(f"NVIDIA's driver {version}" + (f" for CUDA {cuda}" if cuda else ""))


def _cards() -> int:
    """How many GPUs the driver of NVIDIA names."""
    try:
        return len(list((DRIVER / "gpus").iterdir()))
    except OSError:
        return 0


def _driver_version() -> str | None:
    try:
        found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)", (DRIVER / "version").read_text())
    except OSError:
        return None
    return found[1] if found else None
