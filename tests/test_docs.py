"""The documentation says what is so."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer.main

from plsc import Entry
from plsc.cli.main import app
from plsc.loss_types import LOSSES

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "README.zh-CN.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "zh-CN").glob("*.md")),
]


def test_the_page_of_settings_is_that_of_the_configuration():
    page = runpy.run_path(str(ROOT / "docs" / "make_settings.py"))["settings_page"]()
    assert (ROOT / "docs" / "settings.md").read_text() == page, "run python docs/make_settings.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_the_pages_name_exist(page):
    named = re.findall(r"`((?:plsc|tests|docs|benchmarks|examples)/[\w/]+\.(?:py|md))`", page.read_text())
    named += re.findall(r"\]\((?!http)([\w./-]+\.md)\)", page.read_text())
    for name in named:
        assert (ROOT / name).exists() or (page.parent / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_setters_that_the_pages_name_exist(page):
    for setter in re.findall(r"\bset_[a-z_]+(?=[`(])", page.read_text()):
        foreign = ("set_device", "set_flags", "set_num_threads", "set_service_name", "set_value")
        assert hasattr(Entry, setter) or setter in foreign, f"{page.name} names {setter}"


def test_the_tree_of_the_readme_is_true():
    tree = (ROOT / "README.md").read_text().split("```\nplsc/\n")[1].split("\ndocs/")[0]
    packages, parent = set(), ROOT / "plsc"
    for line in tree.splitlines():
        names, _, meaning = re.fullmatch(r"( *(?:[\w.]+/?, )*[\w.]+/?)(  +)(.*)", line).groups()
        if not names.startswith("   "):
            parent = ROOT / "plsc"
        paths = [parent / name for name in names.strip().split(", ")]
        assert all(path.exists() for path in paths), line
        packages.update(path for path in paths if path.is_dir())
        if paths[0].is_dir():
            for file in re.findall(r"\b\w+\.py\b", meaning):
                assert (paths[0] / file).exists(), line
            if not names.startswith("   "):
                parent = paths[0]
    top = {path.parent for path in (ROOT / "plsc").glob("*/__init__.py")}
    assert top <= packages, f"the tree lacks {sorted(path.name for path in top - packages)}"


def commands(page):
    """The lines of all code blocks but the tree, without comments."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(block for block in blocks if not block.startswith("plsc/")).splitlines()
    return [line.split("#")[0].rstrip() for line in lines]


def test_both_readmes_give_the_same_commands():
    assert commands(ROOT / "README.zh-CN.md") == commands(ROOT / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_python_blocks_import_exists(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in (
                "plsc",
                "plsc_serving",
                "face_service",
            ):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page.name}: from {node.module} import {alias.name}"


def plsc_calls(page):
    """The arguments of every `plsc ...` in code blocks and code spans."""
    text = page.read_text().replace("\\\n", " ")
    spans = re.findall(r"`(plsc [^`\n]+)`", text)
    lines = spans + [line.strip() for line in text.splitlines() if line.strip().startswith("plsc ")]
    # What a launcher runs is a call of its own; the words after a script are the script's.
    for call in (call for line in lines for call in re.sub(r"\.py .*", ".py", line).split("plsc ")[1:]):
        yield shlex.split(re.split(r"\s#|\s\s+\(|[|>;]", call)[0].replace("'", ""))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_flags_that_the_pages_name_exist(page):
    for words in plsc_calls(page):
        command, path = typer.main.get_command(app), []
        while words and words[0] in getattr(command, "commands", {}):
            path.append(words.pop(0))
            command = command.commands[path[-1]]
        assert path or not words or words[0].startswith("-"), f"{page.name}: there is no command plsc {words[0]}"
        known = {flag for option in command.params for flag in [*option.opts, *option.secondary_opts]} | {"--help"}
        flags = {word.split("=")[0].strip("[],.)") for word in words if word.lstrip("[").startswith("--")}
        assert flags <= known, f"{page.name}: plsc {' '.join(path)} has no {sorted(flags - known)}"


def test_every_loss_has_a_row_and_every_parameter_a_place():
    page = (ROOT / "docs" / "losses.md").read_text()
    table = page[page.index("| `set_loss_type`") : page.index("### Softmax")]
    for kind, loss in LOSSES.items():
        assert f"`{kind}`" in table, kind
        for name in loss.parameters.names():
            assert re.search(rf"\b{name}\b[, ]", page[page.index("### Softmax") :]), (kind, name)
