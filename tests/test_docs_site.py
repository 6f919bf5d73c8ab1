"""The site of the documentation: every public name and every page has a place in it. `make docs` builds it."""

from __future__ import annotations

import inspect
import pydoc
import re
from pathlib import Path

import pytest

import plsc

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {page.name: page.read_text() for page in sorted((DOCS / "api").glob("*.md"))}
NAMES = [name for page in PAGES.values() for name in re.findall(r"^\.\. auto\w+:: ([\w.]+)", page, re.MULTILINE)]


def test_every_public_name_is_in_the_reference():
    assert {f"plsc.{name}" for name in plsc.__all__ if name != "__version__"} <= set(NAMES)


def test_every_method_of_the_facade_is_in_the_reference():
    methods = [value for name, value in vars(plsc.Entry).items() if inspect.isroutine(value) and name[0] != "_"]
    assert {f"plsc.Entry.{method.__name__}" for method in methods} <= set(NAMES)  # an old name of one is left out


@pytest.mark.parametrize("name", NAMES)
def test_what_the_reference_names_exists_and_is_documented(name):
    found = pydoc.locate(name)
    assert found is not None, f"there is no {name}"
    assert inspect.getdoc(found)


def test_no_name_is_in_the_reference_twice():
    assert sorted(NAMES) == sorted(set(NAMES))


def test_every_page_has_a_place_in_the_site():
    listed = re.findall(r"^(?:[^\n<`|]*<)?([\w./-]+)>?$", (DOCS / "index.md").read_text(), re.MULTILINE)
    for page in [
        *DOCS.glob("*.md"),
        DOCS / "api" / "index.md",
        *DOCS.parent.glob("*.md"),
        *DOCS.parent.glob("examples/**/*.md"),
    ]:
        if page != DOCS / "index.md":
            assert any((DOCS / f"{name}.md").resolve() == page for name in listed), page
    (api,) = re.findall(r"```{toctree}\n:hidden:\n\n(.*?)```", PAGES["index.md"], re.DOTALL)
    assert sorted(f"{name}.md" for name in [*api.split(), "index"]) == sorted(PAGES)
