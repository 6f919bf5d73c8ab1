"""The layers of docs/architecture.md, checked on the import statements of every module, those in functions included."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "plsc"
FILES = sorted(ROOT.rglob("*.py"))

# A module may import modules of its own package and of packages with a lower number.
LAYERS = {
    "errors": 0,
    "version": 0,
    "utils": 1,
    "loss_types": 2,
    "config": 3,
    "metrics": 3,
    "remote": 3,
    "distributed": 4,
    "data": 4,
    "checkpoint": 5,
    "models": 5,
    "losses": 5,
    "inference": 6,
    "pretrained": 6,
    "engine": 7,
    "doctor": 8,
    "export": 8,
    "report": 8,
    "serving": 8,
    "entry": 9,
    "compat": 9,
    "__init__": 10,
    "demo": 11,
    "cli": 12,
    "__main__": 13,
}
# Import paths of PLSC 0.x: each file only re-exports what plsc/compat/ defines.
OLD_PATHS = {"utils/jpeg_reader.py", "utils/base64_reader.py", "utils/verification.py"}


def module_name(path):
    return ".".join(["plsc", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def package_of(path):
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import, which this test does not follow"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(path):
    """The modules of plsc that a file imports. `from plsc.a import b` counts as plsc.a.b where that is a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downward_only(path):
    own = package_of(path)
    assert own in LAYERS, f"{own} has no layer: add it to LAYERS and to docs/architecture.md"
    if str(path.relative_to(ROOT)) in OLD_PATHS:
        return
    for name in imported_modules(path):
        other = package_of(MODULES[name])
        assert other == own or LAYERS[other] < LAYERS[own], f"{module_name(path)} imports {name}"


def test_no_module_is_in_an_import_cycle():
    graph = {name: set(imported_modules(path)) - {name} for name, path in MODULES.items()}
    while True:
        leaves = {name for name, needed in graph.items() if not needed}
        if not leaves:
            break
        graph = {name: needed - leaves for name, needed in graph.items() if name not in leaves}
    # What is left lies in a cycle, or above one; cut off what nothing left imports.
    while unneeded := set(graph) - set().union(*graph.values()):
        graph = {name: needed for name, needed in graph.items() if name not in unneeded}
    assert not graph, f"import cycle among {sorted(graph)}"


def test_only_distributed_names_paddle_distributed():
    for path in FILES:
        if package_of(path) != "distributed":
            assert not any(name.startswith("paddle.distributed") for name in imported_names(path)), path
            code = ast.unparse(ast.parse(path.read_text()))
            assert "paddle.distributed." not in code.replace("paddle.distributed.launch", ""), path


def test_only_the_topology_reads_the_launchers_environment():
    for path in FILES:
        if path.name != "topology.py":
            assert "PADDLE_TRAINER" not in path.read_text(), path


@pytest.mark.parametrize(
    "folder, forbidden",
    [
        ("metrics", "paddle"),
        ("utils/ranges.py", "paddle"),
        ("data", "paddle"),
        ("data", "plsc.distributed"),
        ("losses/margins", "plsc.distributed"),
    ],
)
def test_packages_that_must_not_import(folder, forbidden):
    paths = [path for path in FILES if path.relative_to(ROOT).as_posix().startswith(folder)]
    assert paths
    for path in paths:
        assert not any(name == forbidden or name.startswith(forbidden + ".") for name in imported_names(path)), path


@pytest.mark.parametrize("folder", ["serving", "inference"])
def test_serving_needs_nothing_of_training(folder):
    for path in FILES:
        if package_of(path) == folder:
            needed = {package_of(MODULES[name]) for name in imported_modules(path)}
            assert not needed & {"engine", "export", "models", "losses", "distributed", "entry"}, path


def test_private_paddle_operators_are_called_in_one_file():
    for path in FILES:
        if path.relative_to(ROOT).as_posix() != "losses/ops.py":
            assert "_C_ops" not in path.read_text(), path
