"""Packages that are not installed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from plsc.utils.lazy import SERVER_PACKAGES
from tests._support.ranks import run


def test_the_first_use_without_paddle_says_what_to_install():
    code = "import sys; sys.modules['paddle'] = None; import plsc; plsc.Entry().train()"
    status, output = run([sys.executable, "-c", code], check=False)
    assert status != 0
    assert "PLSC needs paddle, which is not installed: pip install paddlepaddle (or paddlepaddle-gpu" in output


def test_the_packages_of_the_server_are_those_of_the_metadata():
    tomllib = pytest.importorskip("tomllib", reason="part of Python since 3.11")
    metadata = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert sorted(shlex.split(SERVER_PACKAGES)) == sorted(metadata["project"]["optional-dependencies"]["serve"])


def test_no_message_names_the_name_that_belongs_to_another_library():
    for path in (Path(__file__).parents[2] / "plsc").rglob("*.py"):
        assert "plsc[" not in path.read_text(), path
