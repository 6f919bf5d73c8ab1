"""The topology: rank and number of ranks from the launcher's environment."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import paddle
import pytest

from plsc.distributed.launching.launcher import PADDLE_LAUNCHER
from plsc.distributed.topology import Topology, devices_asked_of_launcher, init_topology, place_from_environment
from plsc.errors import DistributedError
from tests._support.images import CLASSES
from tests._support.ranks import run
from tests._support.scripts import INTRODUCTION, SMALL


@pytest.mark.parametrize("rank, world_size", [(-1, 1), (1, 1), (4, 4), (0, 0)])
def test_a_rank_outside_of_the_world_is_refused(rank, world_size):
    with pytest.raises(DistributedError, match=f"got rank {rank} of world size {world_size}, expected 0 <= rank < wor"):
        Topology(rank, world_size)


def test_rank_0_is_the_main_rank():
    assert [Topology(rank, 3).is_main for rank in range(3)] == [True, False, False]
    assert [Topology(device=device).on_gpu for device in ("cpu", "gpu:0")] == [False, True]


def test_the_launcher_sets_rank_and_world_size(monkeypatch):
    monkeypatch.delenv("PADDLE_TRAINER_ID", raising=False)
    monkeypatch.delenv("PADDLE_TRAINERS_NUM", raising=False)
    assert place_from_environment() == (0, 1)
    monkeypatch.setenv("PADDLE_TRAINER_ID", "2")
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "4")
    assert place_from_environment() == (2, 4)
    monkeypatch.setenv("PADDLE_TRAINER_ID", "two")
    with pytest.raises(DistributedError, match="PADDLE_TRAINER_ID is 'two', expected an integer; start the ranks with"):
        place_from_environment()


@pytest.mark.parametrize(
    "command, asked",
    [
        ("python -m paddle.distributed.launch --selected_gpus=0,1 train.py", ("--selected_gpus=0,1", 2)),
        ("python -m paddle.distributed.launch --gpus 0,1,2 train.py", ("--gpus 0,1,2", 3)),
        ("python -m paddle.distributed.launch --nproc_per_node 2 train.py", None),
        ("python train.py --gpus 0,1", None),
    ],
)
def test_a_launcher_that_was_asked_for_devices_is_recognized(command, asked):
    assert devices_asked_of_launcher(command.split(" ")) == asked


def test_an_address_that_does_not_resolve_is_named(monkeypatch):
    def refuse():
        raise ValueError("(InvalidArgument) IPv4 network nohost:6170 cannot be obtained. Name not known.\n  [Hint: n]")

    monkeypatch.setattr(paddle.distributed, "init_parallel_env", refuse)
    monkeypatch.setenv("PADDLE_TRAINER_ID", "0")
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    monkeypatch.setenv("PADDLE_MASTER", "nohost:6170")
    message = (
        r"the ranks cannot be connected: .*nohost:6170 cannot .* known\.; PADDLE_MASTER is 'nohost:6170'; every mach"
    )
    with pytest.raises(DistributedError, match=message):
        init_topology()


@pytest.mark.ranks
@pytest.mark.slow
def test_ranks_meet_where_the_name_of_the_machine_has_no_address(tmp_path):
    """As in containers without a network."""
    rename = ["unshare", "--uts", "sh", "-c", 'hostname no-address.invalid && exec "$@"', "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*rename, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to give the machine another name")
    script = tmp_path / "join.py"
    script.write_text(
        "import paddle\n"
        "from plsc.distributed.topology import init_topology\n"
        "init_topology()\n"
        "total = paddle.ones([1])\n"
        "paddle.distributed.all_reduce(total)\n"
        "print('sum', total.item())\n"
    )
    command = [*rename, sys.executable, "-m", PADDLE_LAUNCHER, "--devices", "cpu", "--nproc_per_node", 2]
    _, output = run([*command, "--log_dir", tmp_path / "log", script], log_dir=tmp_path / "log", cwd=tmp_path)
    assert output.count("sum 2.0") >= 1


@pytest.mark.ranks
@pytest.mark.slow
def test_two_machines_train_as_one(tmp_path, data_dir):
    """Two launchers on loopback, one rank each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{free.getsockname()[1]}"
    script = tmp_path / "train.py"
    script.write_text(
        INTRODUCTION.format(
            classes=CLASSES,
            extra=f"""{SMALL.format(batch=5)}
    ins.set_dataset_dir({str(data_dir)!r}); ins.set_model_save_dir("{tmp_path}/output")""",
        )
    )

    def machine(rank):
        nodes = ["--master", master, "--nnodes", 2, "--rank", rank, "--nproc_per_node", 1]
        return run(
            [sys.executable, "-m", "paddle.distributed.launch", *nodes, "--log_dir", tmp_path / f"log{rank}", script],
            cwd=tmp_path,
        )

    with ThreadPoolExecutor(2) as pool:
        outputs = [output for _, output in pool.map(machine, range(2))]
    assert sum("lfw: accuracy" in output for output in outputs) == 1
    names = {path.name for path in (tmp_path / "output" / "0").iterdir()}
    assert {"classes-000000000.safetensors", "classes-000000003.safetensors"} <= names
