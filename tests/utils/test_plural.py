"""Numbers of things in messages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from plsc.utils.plural import counted

ROOT = Path(__file__).parents[2] / "plsc"
# Words after a number that count nothing: verbs, and what is always several.
_NO_NOUNS = {"is", "was", "has", "holds", "names", "means", "returned", "does", "needs", "states", "begins", "says"}
_NO_NOUNS |= {"gives", "takes", "expects", "exists", "computes", "refuses", "ends", "as", "this", "less"}


@pytest.mark.parametrize(
    "noun, several",
    [
        ("file", "files"),
        ("entry", "entries"),
        ("retry", "retries"),
        ("day", "days"),
        ("class", "classes"),
        ("process", "processes"),
        ("batch", "batches"),
        ("epoch", "epochs"),
        ("class folder", "class folders"),
        ("row group", "row groups"),
    ],
)
def test_one_and_several(noun, several):
    assert counted(1, noun) == counted(np.int64(1), noun) == f"1 {noun}"
    assert [counted(number, noun) for number in (0, 2, 11)] == [f"{number} {several}" for number in (0, 2, 11)]


def spelled_out(path):
    """(line, text) where a message puts a number before a plural: f"{len(files)} files", "%d files"."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for word in re.findall(r"%d (?:[a-z]+ )?([a-z]+s)\b", node.value):
                yield node.lineno, f"%d {word}"
        if isinstance(node, ast.JoinedStr):
            for value, text in zip(node.values, node.values[1:]):
                is_number = isinstance(value, ast.FormattedValue) and isinstance(value.value, ast.Call)
                is_number = is_number and getattr(value.value.func, "id", "") in ("len", "sum")
                if is_number and isinstance(text, ast.Constant):
                    for word in re.findall(r"^ ([a-z]+s)\b", text.value):
                        yield node.lineno, f"{{{ast.unparse(value.value)}}} {word}"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_messages_count_by_the_helper(path):
    if "pipeline_service" in path.parts:  # runs without PLSC
        return
    found = [(line, text) for line, text in spelled_out(path) if text.rpartition(" ")[2] not in _NO_NOUNS]
    assert not found, f"{path}: write counted(number, noun) of plsc.utils.plural"
