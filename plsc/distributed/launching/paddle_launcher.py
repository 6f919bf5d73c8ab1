"""Paddle's launcher, on the devices that were asked for: `python -m plsc.distributed.launching.paddle_launcher`.

It takes the flags of `python -m paddle.distributed.launch`, and `--devices=cpu` for CPU ranks on a machine that has
GPUs. Paddle's launcher by itself ends with an IndexError where there are fewer GPUs than ranks, also where
CUDA_VISIBLE_DEVICES is empty, and otherwise puts ranks on GPUs whenever there are any.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings

from plsc.utils.paddle_noise import IMPORT_WARNING

warnings.filterwarnings("ignore", IMPORT_WARNING)

from paddle import device  # noqa: E402
from paddle.distributed.launch import main as launcher  # noqa: E402
from paddle.distributed.launch.context.args_envs import parse_args  # noqa: E402
from paddle.distributed.launch.context.device import Device, DeviceType  # noqa: E402

from plsc.errors import ConfigError  # noqa: E402

CPU = "cpu"
_CPU_RANKS = f"CPU ranks: --devices={CPU} --nproc_per_node="


class _CPUOnly(Device):
    """No GPU, whatever the flags, the environment and the machine say."""

    def __init__(self) -> None:
        super().__init__(DeviceType.CPU)

    def get_selected_devices(self, devices: str = "") -> list[str]:
        return []


def main() -> None:
    """Start ranks as the flags say, and wait for them.

    Raises:
        ConfigError: ranks and GPUs do not fit each other.
    """
    if "PADDLE_LOG_LEVEL" not in os.environ:
        sys.argv.insert(1, "--log_level=WARNING")  # a later flag goes before it
    flags, unknown = parse_args()
    # Paddle's launcher prefers these variables to its flags.
    asked = os.environ.get("PADDLE_DEVICES", flags.devices)
    ranks = int(os.environ.get("PADDLE_NPROC_PER_NODE", flags.nproc_per_node or 0))
    if asked == CPU:
        # So that Paddle finds no GPU in the ranks. The second is for Paddle's older launcher.
        os.environ.update(CUDA_VISIBLE_DEVICES="", PADDLE_DISTRI_BACKEND="gloo")
        Device.parse_device = classmethod(lambda cls: _CPUOnly())
        # Paddle's launcher looks for a GPU named cpu.
        logging.getLogger("LAUNCH").addFilter(lambda record: "Device not found cpu" not in record.getMessage())
    elif not _is_older(flags, unknown):  # which has its own checks
        found = Device.parse_device()
        if found.dtype in (DeviceType.CPU, DeviceType.GPU):
            found.labels = visible_gpus(found.labels)
            check_fit(ranks, asked.split(",") if asked else [], found.labels)
            device_found = found if found.labels else _CPUOnly()
            Device.parse_device = classmethod(lambda cls: device_found)
    launcher.launch()


def _is_older(flags: argparse.Namespace, unknown: list[str]) -> bool:
    """Whether Paddle's launcher becomes its older form, by the rule of its `Context.is_legacy_mode`."""
    has_master = os.environ.get("PADDLE_MASTER", flags.master)
    return bool(flags.legacy or (unknown and not has_master))


def visible_gpus(labels: list[str]) -> list[str]:
    """The GPUs that Paddle can use, by the names that --gpus takes.

    Args:
        labels: what Paddle's launcher takes them for: the entries of CUDA_VISIBLE_DEVICES if it is set, without regard
            to whether there are such GPUs.
    """
    count = device.cuda.device_count() if device.is_compiled_with_cuda() else 0
    return [label.strip() for label in labels[:count]]


def check_fit(ranks: int, asked: list[str], gpus: list[str]) -> None:
    """Compare ranks with GPUs.

    Args:
        ranks: of this machine, from --nproc_per_node; 0 if that is not given.
        asked: GPUs of --gpus; empty if that is not given.
        gpus: those that Paddle can use.

    Raises:
        ConfigError: a GPU that was asked for is not there or is named twice, or there are not as many GPUs as ranks.
    """
    there = f"Paddle finds {'GPUs ' + ','.join(gpus) if gpus else 'no GPU'} here"
    if missing := [gpu for gpu in asked if gpu.strip() not in gpus]:
        raise ConfigError(
            f"--gpus={','.join(asked)}: {there}, expected GPU {missing[0]} too; correct --gpus or "
            f"CUDA_VISIBLE_DEVICES, or start {_CPU_RANKS}{ranks or len(asked)}"
        )
    if len({gpu.strip() for gpu in asked}) < len(asked):
        raise ConfigError(
            f"--gpus={','.join(asked)}: a GPU is named twice, expected each once, since a rank takes a whole one"
        )
    if asked and ranks not in (0, len(asked)):
        raise ConfigError(
            f"--nproc_per_node={ranks} and --gpus={','.join(asked)}: expected as many GPUs as ranks; leave one of the "
            f"two flags out"
        )
    if gpus and ranks > len(gpus):
        raise ConfigError(
            f"--nproc_per_node={ranks}: {there}, expected one for each rank; start {len(gpus)} at most, or "
            f"{_CPU_RANKS}{ranks}"
        )


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"plsc launch: {error}")
