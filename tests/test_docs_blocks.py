"""Each code block of the pages for new users does what the page says, or the page says why it is not run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from plsc import Config
from tests._support.ranks import run
from tests._support.servers import free_port

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("first-run", "why-shard", "recipes", "troubleshooting", "glossary")
BLOCK = re.compile(r"((?:^[^\n]*\n){0,2})^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REASON = re.compile(r"^\*Not run by the tests[^:\n]*: ([^\n]+)\*\n\n?$", re.MULTILINE)


class Block(NamedTuple):
    """A code block: its language, its text, the file that the line above it names, and why it is not run."""

    language: str
    text: str
    file: str
    reason: str


def blocks(page):
    found = []
    for before, language, text in BLOCK.findall((DOCS / f"{page}.md").read_text()):
        file = re.search(r"`([\w.]+)`:\n\n?$", before)
        reason = REASON.search(before)
        found.append(Block(language, text, file[1] if file else "", reason[1] if reason else ""))
    return found


def script_of(page):
    """A Bash script that does what a reader of the page does: writes the files, runs the commands."""
    lines = []
    for block in blocks(page):
        if block.reason or block.language == "text":
            continue
        if block.file:
            lines.append(f"cat >{block.file} <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK\n")
        elif block.language == "python":
            lines.append(f"python <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK\n")
        elif block.language == "sh":
            lines.append(block.text)
    return "\n".join(lines)


def printed_by(page):
    """The lines of output that a page shows directly below what prints them."""
    found = blocks(page)
    shown = [after.text for block, after in zip(found, found[1:]) if not block.reason and after.language == "text"]
    return "".join(shown).replace("...\n", "").splitlines()


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_run_or_says_why_not(page):
    for block in blocks(page):
        assert block.reason or block.language in ("sh", "python", "yaml", "text", "{image}"), block
        assert not (block.reason and block.language == "text"), f"output is never run: {block.text}"


@pytest.mark.parametrize("page", PAGES)
def test_settings_in_the_pages_are_accepted(page, tmp_path):
    for number, block in enumerate(blocks(page)):
        if block.language == "yaml":
            path = tmp_path / f"{number}.yaml"
            path.write_text(block.text)
            Config.from_file(path)


def test_a_block_without_a_reason_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.DOCS", tmp_path)
    (tmp_path / "page.md").write_text(
        "*Not run by the tests: no GPU.*\n\n```sh\nfalse\n```\n\n`a.py`:\n\n```python\n1\n```\n\n```sh\ntrue\n```\n"
    )
    first, second, third = blocks("page")
    assert (first.reason, second.file, third) == ("no GPU.", "a.py", Block("sh", "true\n", "", ""))
    assert "false" not in script_of("page")


def test_the_memory_in_the_recipes_is_that_of_the_formula():
    page = (DOCS / "recipes.md").read_text()
    table = re.findall(
        r"^\| (\d+) ([kM]) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE
    )
    assert len(table) == 9
    for count, unit, cards, *columns in table:
        parameters = int(count) * {"k": 1_000, "M": 1_000_000}[unit] * 512
        for text, size in zip(columns, (8, 4, 3.008, 2), strict=True):
            assert float(text) == pytest.approx(parameters * size / int(cards) / 2**30, rel=0.05), (count, unit, cards)


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("page", [page for page in PAGES if script_of(page)])
def test_the_blocks_of_a_page_run_one_after_the_other(page, tmp_path):
    for package in ("faiss", "matplotlib", "starlette") if page == "first-run" else ():
        pytest.importorskip(package)
    address = f"127.0.0.1:{(port := free_port())}"
    script = script_of(page).replace("plsc serve ", f"plsc serve --port {port} ").replace("127.0.0.1:8866", address)
    begin = f"set -euo pipefail\nPATH={Path(sys.executable).parent}:$PATH\n"
    begin += "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
    _, output = run(["bash", "-c", begin + script], cwd=tmp_path, timeout=900)
    for line in printed_by(page):
        assert line in output, f"{line!r} is not in {output[-6000:]}"
    if page == "first-run":
        same, other = map(float, re.search(r"same class (-?[\d.]+), another class (-?[\d.]+)", output).groups())
        assert same > other
        assert re.search(r'"cosine": ?0\.\d+, ?"same": ?true', output)
