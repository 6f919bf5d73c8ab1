"""`plsc launch`: `paddle.distributed.launch` with restarts. Its flags are taken, and passed on."""

from __future__ import annotations

import importlib.util
import inspect
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from plsc.cli.command import Command
from plsc.distributed.launching.launcher import Launcher, LaunchSettings
from plsc.errors import ConfigError, MissingDependencyError
from plsc.utils.lazy import PADDLE_PACKAGES
from plsc.utils.paddle_noise import quiet_environment

# Flags of paddle.distributed.launch. Each takes one value.
PADDLE_FLAGS = {
    "nproc_per_node": "Ranks on this machine. Default: one per GPU, one without a GPU.",
    "gpus": "GPUs of this machine, as 0,1,2,3. Each has a rank. Also --npus, --xpus.",
    "selected_gpus": "The same as --gpus.",
    "devices": "cpu: CPU ranks, as many as --nproc_per_node, also on a machine with GPUs. Else the same as --gpus.",
    "nnodes": "Number of machines.",
    "master": "HOST:PORT at which the machines meet: a free port of the machine with --rank 0.",
    "rank": "Number of this machine, from 0.",
    "ips": "Addresses of all machines, separated by commas, in place of --master and --rank.",
    "host": "Address of this machine, where Paddle finds a wrong one.",
    "start_port": "First port of the ranks, with --ips.",
    "job_id": "Name of the job, the same on all machines.",
    "log_level": "Of the launcher: DEBUG, INFO, WARNING or ERROR. Default: WARNING.",
}
RARE_FLAGS = (
    *("npus", "xpus", "selected_xpus", "legacy", "log_overwrite", "sort_ip", "enable_gpu_log", "run_mode"),
    *("auto_parallel_config", "auto_cluster_config", "auto_tuner_json", "max_restart", "elastic_level"),
    *("elastic_timeout", "servers", "trainers", "trainer_num", "server_num", "gloo_port", "with_gloo", "backend"),
    *("cluster_topo_path", "rank_mapping_path", "enable_auto_mapping", "workers", "worker_num", "http_port"),
    *("heter_workers", "heter_worker_num", "heter_devices", "coordinators", "coordinator_num"),
    *("elastic_server", "elastic_pre_hook", "np", "scale", "force"),
)
_NUMBERS = ("nproc_per_node", "rank", "start_port")
_PANEL = "Flags of paddle.distributed.launch"


class LaunchCommand(Command):
    """A command whose flags end where the script begins."""

    def _unknown_flags(self, args: list[str]) -> list[str]:
        flags, number = self._flags(), 0
        while number < len(args) and args[number].startswith("-"):
            number += 2 if flags.get(args[number]) else 1
        return super()._unknown_flags(args[:number])


def with_paddle_flags(function: Callable[..., None]) -> Callable[..., None]:
    """A decorator that gives a command the flags of Paddle's launcher; it gets those given as `flags`."""

    def command(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in (*PADDLE_FLAGS, *RARE_FLAGS)}
        function(flags=[f"--{name}={value}" for name, value in given.items() if value is not None], **arguments)

    own = [value for name, value in inspect.signature(function, eval_str=True).parameters.items() if name != "flags"]
    taken = [_parameter(name, help=text) for name, text in PADDLE_FLAGS.items()]
    taken += [_parameter(name, hidden=True) for name in RARE_FLAGS]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [parameter.replace(kind=keyword) for parameter in (*own, *taken)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # Typer reads it
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    return command


def _parameter(name: str, **options: Any) -> inspect.Parameter:
    type_, metavar = (int, "INT") if name in _NUMBERS else (str, "TEXT")
    option = typer.Option(f"--{name}", metavar=metavar, rich_help_panel=_PANEL, **options)
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=Annotated[type_ | None, option])


@with_paddle_flags
def launch(
    flags: list[str],
    command: Annotated[list[str], typer.Argument(metavar="SCRIPT [ARGS]...", help="What every rank runs.")],
    restarts: Annotated[int, typer.Option(min=0, help="Starts again after failures, at most.")] = 3,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds for the ranks to save and end after SIGTERM, SIGINT or SIGUSR1.")
    ] = 120.0,
    backoff: Annotated[
        float, typer.Option(min=0, help="Seconds before the first restart; twice as many before each further one.")
    ] = 5.0,
    log_dir: Annotated[
        Path | None, typer.Option("--log_dir", help="Each start writes its logs to a new folder in it. Default: log.")
    ] = None,
) -> None:
    """Start the ranks of a script, and start them again from the newest checkpoint where they fail.

    It takes the flags of python -m paddle.distributed.launch. A run is started again only where a checkpoint has become
    whole since the start before. Exit status: 0 finished; 75 saved, the same command goes on; 1, or that of the rank
    that failed first; 128 + signal: stopped, not all is saved. See docs/reliability.md.
    """
    _check_script(command[0])
    flags = [_with_address(flag) for flag in _with_one_name(flags)]
    if importlib.util.find_spec("paddle") is None:
        raise MissingDependencyError(f"plsc launch needs paddle, which is not installed: pip install {PADDLE_PACKAGES}")
    settings = LaunchSettings(
        command=command,
        flags=flags,
        log_dir=log_dir or Path(os.environ.get("PADDLE_LOG_DIR") or "log"),
        restarts=restarts,
        grace=grace,
        backoff=backoff,
    )
    environment = dict(os.environ)
    quiet_environment(environment, of_launcher=True)
    sys.exit(Launcher(settings, environment).run())


def _check_script(script: str) -> None:
    if not (Path(script).is_file() if script.endswith(".py") else shutil.which(script)):
        raise ConfigError(
            f"{script}: expected a Python script or a program, as in plsc launch --nproc_per_node 2 train.py, or "
            f"plsc launch --nproc_per_node 2 plsc train --config run.yaml"
        )


def _with_one_name(flags: list[str]) -> list[str]:
    """--gpus in place of --selected_gpus, at which Paddle's launcher would become its older form."""
    given = [flag for flag in flags if flag.partition("=")[0] in ("--gpus", "--selected_gpus", "--devices")]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)}: expected one of these flags, which mean the same")
    old, new = "--selected_gpus=", "--gpus="
    return [new + flag.removeprefix(old) if flag.startswith(old) else flag for flag in flags]


def _with_address(flag: str) -> str:
    """--master with an IP address in place of a name. Paddle's launcher compares it with its own address as text."""
    if not flag.startswith("--master=") or "://" in flag:
        return flag
    name, separator, port = flag.removeprefix("--master=").rpartition(":")
    if not (name and separator and port.isdigit()):
        raise ConfigError(f"{flag}: expected HOST:PORT, as in --master=10.0.0.1:29500")
    try:
        return f"--master={socket.gethostbyname(name)}:{port}"
    except OSError as error:
        raise ConfigError(f"{flag}: the host has no address: {error.strerror}; give an IP address") from None
