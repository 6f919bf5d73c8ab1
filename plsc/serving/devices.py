"""Which device each predictor process of a server computes on."""

from __future__ import annotations

import re

from plsc.errors import ServingError
from plsc.utils.plural import counted

_FORM = re.compile(r"cpu|gpu|gpu:\d+(,\d+)*")


def check_form(devices: str) -> str:
    """The setting `devices` as it is given.

    Raises:
        ValueError: it is of another form.
    """
    if not _FORM.fullmatch(devices):
        raise ValueError("expected cpu, gpu, or GPUs by index as gpu:0,2")
    return devices


def device_of(number: int, devices: str | None, *, gpus: int) -> str:
    """The device of a predictor process, 'cpu' or 'gpu:<index>': processes take the GPUs in turn.

    Args:
        number: of the process, from 0.
        devices: the setting: 'cpu'; 'gpu' for all GPUs; 'gpu:0,2' for these; None for all GPUs, and the CPU where there
            is none.
        gpus: number of GPUs that Paddle finds.

    Raises:
        ServingError: a GPU that the setting asks for is not there.

    Example:
        >>> [device_of(number, "gpu", gpus=2) for number in range(3)]
        ['gpu:0', 'gpu:1', 'gpu:0']
    """
    if devices == "cpu" or (devices is None and not gpus):
        return "cpu"
    indices = (devices or "gpu").partition(":")[2]
    chosen = [int(index) for index in indices.split(",")] if indices else list(range(gpus))
    if not gpus or max(chosen) >= gpus:
        raise ServingError(
            f"devices: got {devices!r}, but Paddle finds {counted(gpus, 'GPU')} here; correct the setting or "
            f"CUDA_VISIBLE_DEVICES, or take the CPU by 'cpu'"
        )
    return f"gpu:{chosen[number % len(chosen)]}"
