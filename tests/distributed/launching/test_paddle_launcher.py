"""The launcher under `plsc launch` on machines with any number of GPUs. They are faked; the launcher is Paddle's."""

from __future__ import annotations

import subprocess
import sys

import pytest

from plsc.distributed.launching.paddle_launcher import check_fit
from plsc.errors import ConfigError
from tests._support.ranks import WORKERS, clean_environment

# What a rank is told of its place and its device.
SCRIPT = """
import os
names = ("PADDLE_TRAINER_ID", "PADDLE_TRAINERS_NUM", "FLAGS_selected_gpus", "PADDLE_DISTRI_BACKEND")
with open("ranks-" + os.environ["PADDLE_TRAINER_ID"], "w") as file:
    file.write(" ".join(os.environ.get(name, "-") for name in names))
    file.write(" " + repr(os.environ.get("CUDA_VISIBLE_DEVICES")))
"""


@pytest.fixture
def start(tmp_path):
    """Start ranks on a machine with so many GPUs; returns (exit status, output, what each rank was told)."""

    def run(gpus, *flags, **environment):
        (tmp_path / "script.py").write_text(SCRIPT)
        done = subprocess.run(
            [sys.executable, WORKERS / "fake_gpus.py", str(gpus), *flags, "script.py"],
            cwd=tmp_path,
            env={**clean_environment(), **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
        )
        return done.returncode, done.stdout, [path.read_text() for path in sorted(tmp_path.glob("ranks-*"))]

    return run


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(
    "gpus, flags, environment, told",
    [
        (2, ["--gpus=0,1"], {}, ["0 2 0 - None", "1 2 1 - None"]),
        (2, ["--nproc_per_node=2"], {}, ["0 2 0 - None", "1 2 1 - None"]),
        (2, ["--gpus=5,4"], {"CUDA_VISIBLE_DEVICES": "4,5"}, ["0 2 1 - '4,5'", "1 2 0 - '4,5'"]),
        (1, ["--devices=cpu", "--nproc_per_node=2"], {}, ["0 2 - gloo ''", "1 2 - gloo ''"]),
        (2, ["--devices=cpu", "--nproc_per_node=2"], {}, ["0 2 - gloo ''", "1 2 - gloo ''"]),
        (2, ["--nproc_per_node=2"], {"PADDLE_DEVICES": "cpu"}, ["0 2 - gloo ''", "1 2 - gloo ''"]),
        (0, ["--nproc_per_node=2"], {"CUDA_VISIBLE_DEVICES": ""}, ["0 2 - gloo ''", "1 2 - gloo ''"]),
        (0, ["--nproc_per_node=2"], {"CUDA_VISIBLE_DEVICES": "0"}, ["0 2 - gloo '0'", "1 2 - gloo '0'"]),
        (0, ["--devices=cpu"], {}, ["0 1 - gloo ''"]),
        # Entries for which there is no GPU, and spaces.
        (1, [], {"CUDA_VISIBLE_DEVICES": "0,1"}, ["0 1 0 - '0,1'"]),
        (2, [], {"CUDA_VISIBLE_DEVICES": "4,5,-1"}, ["0 2 0 - '4,5,-1'", "1 2 1 - '4,5,-1'"]),
        (2, ["--gpus=4,5"], {"CUDA_VISIBLE_DEVICES": "4, 5"}, ["0 2 0 - '4, 5'", "1 2 1 - '4, 5'"]),
        (2, ["--gpus=GPU-b"], {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, ["0 1 1 - 'GPU-a,GPU-b'"]),
    ],
)
def test_ranks_run_on_the_devices_that_were_asked_for(start, gpus, flags, environment, told):
    status, output, found = start(gpus, *flags, **environment)
    assert status == 0, output
    assert found == told


@pytest.mark.slow
def test_too_few_gpus_are_one_message(start):
    status, output, found = start(1, "--nproc_per_node=2")
    assert status == 1 and not found
    assert "Traceback" not in output
    assert output.splitlines()[-1] == (
        "plsc launch: --nproc_per_node=2: Paddle finds GPUs 0 here, expected one for each rank; start 1 at most, or "
        "CPU ranks: --devices=cpu --nproc_per_node=2"
    )


@pytest.mark.slow
def test_a_flag_of_the_older_launcher_beside_a_master_is_checked_too(start):
    """With a master, Paddle's launcher does not become its older form."""
    status, output, found = start(1, "--nproc_per_node=2", "--master=127.0.0.1:1", "--backend=auto")
    assert status == 1 and not found
    assert output.splitlines()[-1].startswith("plsc launch: --nproc_per_node=2: Paddle finds GPUs 0 here, expected")


@pytest.mark.parametrize(
    "ranks, asked, gpus",
    [(0, "", ""), (2, "", ""), (0, "", "0 1"), (1, "", "0 1"), (2, "", "0 1"), (0, "1", "0 1"), (2, "0 1", "0 1 2")],
)
def test_ranks_that_have_their_gpus(ranks, asked, gpus):
    check_fit(ranks, asked.split(), gpus.split())


@pytest.mark.parametrize(
    "ranks, asked, gpus, message",
    [
        (
            3,
            "",
            "0 1",
            "--nproc_per_node=3: Paddle finds GPUs 0,1 here, expected one for each rank; start 2 at most, or",
        ),
        (0, "0 1", "", "--gpus=0,1: Paddle finds no GPU here, expected GPU 0 too; .* --devices=cpu --nproc_per_node=2"),
        (
            0,
            "0 2",
            "0 1",
            "--gpus=0,2: Paddle finds GPUs 0,1 here, expected GPU 2 too; correct --gpus or CUDA_VISIBLE_",
        ),
        (0, "0 0", "0 1", "--gpus=0,0: a GPU is named twice, expected each once, since a rank takes a whole one"),
        (1, "0 1", "0 1", "--nproc_per_node=1 and --gpus=0,1: expected as many GPUs as ranks; leave one"),
        (3, "0 1", "0 1 2", "--nproc_per_node=3 and --gpus=0,1: expected as many GPUs as ranks; leave one"),
    ],
)
def test_ranks_that_do_not_fit(ranks, asked, gpus, message):
    with pytest.raises(ConfigError, match=message):
        check_fit(ranks, asked.split(), gpus.split())


@pytest.mark.ranks
@pytest.mark.slow
def test_the_launcher_says_nothing_of_itself_unless_a_rank_fails(start, tmp_path):
    without_ccache = {"PYTHONWARNINGS": "ignore:No ccache found"}  # of the import in the program that fakes GPUs
    assert start(0, "--devices=cpu", "--nproc_per_node=2", **without_ccache)[:2] == (0, "")
    assert "LAUNCH INFO" in start(0, "--devices=cpu", "--log_level=INFO")[1]
    (tmp_path / "other.py").write_text("raise SystemExit('a fault')")
    done = start(0, "--devices=cpu", "other.py")
    assert done[0] == 1 and "LAUNCH ERROR" in done[1] and "a fault" in done[1]
