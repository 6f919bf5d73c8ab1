"""The layering of docs/architecture.md, held by walking the imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "plsc"
FILES = sorted(ROOT.rglob("*.py"))

# A room may import rooms of a lower floor, and its own. utils/ holds the old import paths as well, which
# point upwards on purpose.
FLOORS = {
    "errors": 0, "version": 0, "utils": 1, "config": 1, "distributed": 2, "metrics": 2,
    "losses": 3, "data": 3, "serving": 4, "models": 4, "engine": 5, "entry": 6, "__init__": 7, "cli_settings": 7,
    "data_cli": 7, "serve_cli": 7, "demo": 8, "cli": 9, "__main__": 10,
}
OLD_PATHS = {"utils/jpeg_reader.py", "utils/base64_reader.py", "utils/verification.py"}


def room(path):
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else path.stem


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downward_only(path):
    own = room(path)
    assert own in FLOORS, f"{own} has no floor: add it to FLOORS and to docs/architecture.md"
    if str(path.relative_to(ROOT)) in OLD_PATHS:
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "plsc" or len(parts) < 2 or parts[1] not in FLOORS:
            continue
        assert parts[1] == own or FLOORS[parts[1]] <= FLOORS[own], f"{own} imports {name}"


def text(path):
    return path.read_text()


def test_only_distributed_names_paddle_distributed():
    for path in FILES:
        if room(path) != "distributed":
            assert not any(name.startswith("paddle.distributed") for name in imports(path)), path
            code = ast.unparse(ast.parse(text(path)))
            assert "paddle.distributed." not in code.replace("paddle.distributed.launch", ""), path


def test_only_the_topology_reads_the_launchers_environment():
    for path in FILES:
        if path.name != "topology.py":
            assert "PADDLE_TRAINER" not in text(path), path


@pytest.mark.parametrize("folder, forbidden", [
    ("metrics", "paddle"), ("distributed/partition.py", "paddle"), ("data", "paddle"),
    ("losses/margin.py", "plsc.distributed"), ("data", "plsc.distributed.topology"),
    ("data", "plsc.distributed.collectives"),
])
def test_rooms_that_must_not_know(folder, forbidden):
    paths = [ROOT / folder] if folder.endswith(".py") else [p for p in FILES if room(p) == folder]
    assert paths
    for path in paths:
        assert not any(name == forbidden or name.startswith(forbidden + ".") for name in imports(path)), path


def test_serving_needs_nothing_of_training():
    for path in FILES:
        if room(path) == "serving":
            needed = {name.split(".")[1] for name in imports(path) if name.startswith("plsc.")}
            assert not needed & {"engine", "models", "losses", "distributed", "entry"}, path


def test_no_file_outgrows_its_room():
    assert {str(p): n for p in FILES if (n := len(text(p).splitlines())) > 350} == {}
