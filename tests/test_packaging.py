"""The wheel, the source distribution and the images: what is in them, and that what they name is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests._support.ranks import clean_environment

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = None

ROOT = Path(__file__).parents[1]
DOCKERFILES = [ROOT / "Dockerfile", ROOT / "Dockerfile.gpu"]
needs_tomllib = pytest.mark.skipif(tomllib is None, reason="needs tomllib of Python 3.11")


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tracked_files():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("needs the checkout with git")
    return [line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Names in the wheel, and in the source distribution, as built from what git tracks."""
    pytest.importorskip("setuptools", minversion="77")
    source, made = (tmp_path_factory.mktemp(name) for name in ("source", "made"))
    for name in tracked_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    code = "import sys; from setuptools import build_meta as m; to = sys.argv[1]; m.build_wheel(to); m.build_sdist(to)"
    command = [sys.executable, "-c", code, str(made)]
    done = subprocess.run(command, cwd=source, env=clean_environment(), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with zipfile.ZipFile(next(made.glob("*.whl"))) as file:
        wheel = set(file.namelist())
    with tarfile.open(next(made.glob("*.tar.gz"))) as file:
        sdist = {name.partition("/")[2] for name in file.getnames()}
    return wheel, sdist


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(built):
    packages = ("plsc/", "plsc_serving/", "face_service/")
    expected = {name for name in tracked_files() if name.startswith(packages) and not name.endswith("README.md")}
    assert {name for name in built[0] if ".dist-info/" not in name} == expected


def test_the_source_distribution_has_all_that_is_tracked_but_for_the_settings_of_the_checkout(built):
    left_out = {name for name in tracked_files() if name.startswith((".ci/", ".git", ".pre-commit"))}
    assert set(tracked_files()) - built[1] == left_out


@needs_tomllib
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_names_what_is_there(path):
    text, known = path.read_text(), project()
    versions = re.findall(r"^ARG PYTHON=(\S+)", text, re.MULTILINE)
    assert [f"Programming Language :: Python :: {version}" in known["classifiers"] for version in versions] == [True]
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)", text, re.MULTILINE)
    assert set(extras.split(",")) <= set(known["optional-dependencies"])
    (program,) = re.findall(r'^ENTRYPOINT \["(\S+)"\]', text, re.MULTILINE)
    assert program in known["scripts"]
    copied = re.findall(r"^COPY (\S+) ", text, re.MULTILINE)
    assert copied == [".", "--from=build"]


def test_the_image_of_gpus_takes_the_release_of_paddle_that_the_readme_names():
    (release,) = re.findall(r"^ARG PADDLE=(\S+)", (ROOT / "Dockerfile.gpu").read_text(), re.MULTILINE)
    assert f"pip install {release} -i " in (ROOT / "README.md").read_text()
