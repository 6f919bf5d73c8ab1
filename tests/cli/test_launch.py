"""`plsc launch` on the command line: which words are its own, which are Paddle's, and which are the script's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from plsc.cli import launch as launch_module
from plsc.cli.launch import PADDLE_FLAGS, RARE_FLAGS
from plsc.cli.main import app
from plsc.errors import ConfigError


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """Run `plsc launch` with these words; returns (result, settings of the launcher)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PADDLE_LOG_DIR", raising=False)
    Path("train.py").write_text("")
    made = []

    class FakeLauncher:
        def __init__(self, settings, environment):
            made.append(settings)

        def run(self):
            return 75

    monkeypatch.setattr(launch_module, "Launcher", FakeLauncher)
    return lambda *words: (CliRunner().invoke(app, ["launch", *words]), made[-1] if made else None)


def test_flags_of_paddle_are_passed_on_and_words_after_the_script_are_the_scripts(launched):
    result, settings = launched(
        *(
            "--nproc_per_node",
            "2",
            "--gpus=0,1",
            "--restarts",
            "7",
            "--master",
            "localhost:1",
            "--nnodes=2",
            "--rank",
            "1",
        ),
        *("train.py", "--restarts", "1", "--lr=0.1", "--nosuch", "--", "-x"),
    )
    assert result.exit_code == 75, result.output
    assert set(settings.flags) == {"--nproc_per_node=2", "--gpus=0,1", "--master=127.0.0.1:1", "--nnodes=2", "--rank=1"}
    assert settings.command == ["train.py", "--restarts", "1", "--lr=0.1", "--nosuch", "--", "-x"]
    assert (settings.restarts, settings.grace, settings.log_dir) == (7, 120, Path("log"))


def test_the_folder_of_the_logs(launched, monkeypatch):
    assert launched("--log_dir", "here", "train.py")[1].log_dir == Path("here")
    monkeypatch.setenv("PADDLE_LOG_DIR", "there")
    assert launched("train.py")[1].log_dir == Path("there")


def test_a_program_may_take_the_place_of_a_script(launched):
    assert launched("sh", "-c", "true")[1].command == ["sh", "-c", "true"]


def test_what_cannot_be_run_is_refused(launched):
    for script in ("nosuch.py", "nosuch-program"):
        error = launched(script)[0].exception
        assert isinstance(error, ConfigError)
        assert f"{script}: expected a Python script or a program, as in plsc launch" in str(error)
    assert launched()[0].exit_code == 2


def test_a_master_is_an_address(launched):
    assert launched("--master", "etcd://a:1", "train.py")[1].flags == ["--master=etcd://a:1"]
    for master, message in (("a", "expected HOST:PORT"), ("no.invalid:1", "the host has no address")):
        error = launched("--master", master, "train.py")[0].exception
        assert isinstance(error, ConfigError)
        assert f"--master={master}: {message}" in str(error)


def test_gpus_have_several_names_but_one_meaning(launched):
    """Users of PLSC 0.x know --selected_gpus, at which Paddle's launcher would become its older form."""
    assert launched("--selected_gpus=0,1", "train.py")[1].flags == ["--gpus=0,1"]
    assert launched("--selected_gpus", "3", "train.py", "--selected_gpus", "4")[1].flags == ["--gpus=3"]
    assert launched("--devices", "cpu", "train.py")[1].flags == ["--devices=cpu"]
    error = launched("--selected_gpus=0,1", "--gpus=0", "train.py")[0].exception
    assert isinstance(error, ConfigError)
    assert str(error) == "--gpus=0 and --selected_gpus=0,1: expected one of these flags, which mean the same"


def test_an_unknown_flag_is_refused_before_the_script(launched):
    result, settings = launched("--nproc", "2", "train.py")
    assert result.exit_code == 2 and settings is None
    assert "No such option: --nproc" in result.output


def test_a_number_of_ranks_is_a_number(launched):
    result, settings = launched("--nproc_per_node", "two", "train.py")
    assert result.exit_code == 2 and settings is None and "'--nproc_per_node'" in result.output


@pytest.mark.slow
def test_every_flag_of_paddles_launchers_is_known():
    for module in ("paddle.distributed.launch", "paddle.distributed.fleet.launch"):
        code = f"import sys; sys.argv[:] = ['launch', '--help']; from {module}{{}}"
        code = code.format(
            ".context.args_envs import parse_args; parse_args()"
            if module.endswith("distributed.launch")
            else " import _parse_args; _parse_args()"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        flags = set(re.findall(r"^  +(?:-h, )?--(\w+)", done.stdout, re.MULTILINE))
        flags |= set(re.findall(r"(?<=, )--(\w+) \w+", done.stdout))
        assert "nproc_per_node" in flags, done.stdout + done.stderr
        assert flags - {"help"} <= {*PADDLE_FLAGS, *RARE_FLAGS, "log_dir"}
