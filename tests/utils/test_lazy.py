"""Packages that are not installed."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from plsc.utils.lazy import OLDEST_PADDLE, PADDLE_PACKAGES, SERVER_PACKAGES
from tests._support.ranks import run

ROOT = Path(__file__).parents[2]


def extras():
    tomllib = pytest.importorskip("tomllib", reason="part of Python since 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def train_with(paddle):
    """Train in a new interpreter where this expression stands for Paddle: None hides it. Returns the output."""
    code = f"import sys, types; sys.modules['paddle'] = {paddle}; import plsc; plsc.Entry().train()"
    status, output = run([sys.executable, "-c", code], check=False)
    assert status != 0
    return output


def test_the_first_use_without_paddle_says_what_to_install_and_where_gpu_builds_are():
    expected = f"MissingDependencyError: PLSC needs paddle, which is not installed: pip install {PADDLE_PACKAGES}"
    assert expected in train_with(None)
    assert "paddlepaddle-gpu>=3.3,<3.4' -i https://www.paddlepaddle.org.cn/packages/stable/cu126/" in PADDLE_PACKAGES


@pytest.mark.parametrize("version, is_too_old", [("2.6.2", True), ("3.1.1", True), ("3.2.0", False), ("0.0.0", False)])
def test_a_paddle_that_is_too_old_is_named(version, is_too_old):
    output = train_with(f"types.SimpleNamespace(__version__={version!r})")
    assert (f"PLSC needs Paddle 3.2 or newer, found {version}: pip install {PADDLE_PACKAGES}" in output) == is_too_old
    assert is_too_old or "MissingDependencyError" not in output  # it fails later, since this is no Paddle


def test_extras_take_no_paddle_that_is_too_old():
    """The public index has paddlepaddle-gpu up to 2.6.2 only: an extra asking for a newer one cannot be installed."""
    (cpu,) = (package for package in extras()["cpu"] if "paddle" in package)
    assert cpu in PADDLE_PACKAGES
    oldest = re.fullmatch(r"paddlepaddle>=(\d+)\.(\d+)\.\d+,<.*", cpu)
    assert tuple(map(int, oldest.groups())) >= OLDEST_PADDLE
    assert not [package for package in extras()["gpu"] if "paddle" in package]


def test_readme_has_the_command_for_each_cuda():
    for name in ("README.md", "README.zh-CN.md"):
        text = (ROOT / name).read_text()
        for cuda in ("cu118", "cu126", "cu129", "cu130"):
            command = f"pip install paddlepaddle-gpu==3.3.1 -i https://www.paddlepaddle.org.cn/packages/stable/{cuda}/"
            assert command in text, (name, cuda)


def test_the_packages_of_the_server_are_those_of_the_metadata():
    assert sorted(shlex.split(SERVER_PACKAGES)) == sorted(extras()["serve"])


def test_no_message_names_the_name_that_belongs_to_another_library():
    for path in (Path(__file__).parents[2] / "plsc").rglob("*.py"):
        assert "plsc[" not in path.read_text(), path
