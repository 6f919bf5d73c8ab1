"""The demo's ranks: on CPUs, whatever the machine has."""

from __future__ import annotations

import sys

import pytest

from plsc import demo


def test_ranks_are_cpu_ranks_also_where_there_are_gpus(monkeypatch, tmp_path):
    """With one GPU, Paddle's launcher would end with an IndexError for two ranks; with two it would take both."""
    commands = []

    def start(command, **options):
        commands.append(command)
        raise OSError("not started")

    monkeypatch.setattr(demo.subprocess, "Popen", start)
    with pytest.raises(OSError, match="not started"):
        demo.run_demo(tmp_path / "output", "small", ranks=2)
    assert commands[0][:7] == [
        *(sys.executable, "-m", "plsc.distributed.launching.paddle_launcher"),
        *("--devices", "cpu", "--nproc_per_node", "2"),
    ]
