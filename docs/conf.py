"""How Sphinx makes the site of the documentation: `make docs`.

The source folder is that of the repository, so that links between README.md, docs/ and examples/ are the same in the
site and on GitHub.
"""

from __future__ import annotations

import re

from sphinx.application import Sphinx

from plsc.version import __version__

project = "PLSC"
author = "The PLSC developers"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = [
    *("README.md", "README.zh-CN.md", "CHANGELOG.md", "CONTRIBUTING.md"),
    *("docs/*.md", "docs/api/*.md", "docs/zh-CN/*.md", "examples/README.md", "examples/*/README.md"),
]
# Folders that are not looked into.
exclude_patterns = [".*", "*.egg-info", "build", "dist", "output", "demo_output", "plsc", "tests", "docs/_build"]
nitpicky = True
# Types in signatures that have no page: those of other libraries, and those of this one that scripts do not use.
nitpick_ignore_regex = [
    ("py:class", r"(?!plsc\.).*"),
    (
        "py:class",
        r"plsc\.(models\.registry\.F|data\.sources\._Opener|engine\.(observers\.TrainingClock|dataloading\.Loader))",
    ),
]

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
# Blocks without a language are commands and output.
highlight_language = "none"

# Docstrings write names, shapes and values in single backquotes.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "pydata_sphinx_theme"
html_title = f"PLSC {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_sidebars = {"**": ["all-pages"]}
html_additional_pages = {"index": "front.html"}  # leads to docs/index.html
html_show_sourcelink = False
html_copy_source = False
toc_object_entries_show_parents = "hide"
html_theme_options = {
    "navbar_center": [],
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
copybutton_exclude = ".linenos, .gp, .go"

linkcheck_timeout = 20
linkcheck_retries = 2
# GitHub makes the anchors of its pages by a script.
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]
# A server on the reader's machine.
linkcheck_ignore = [r"http://127\.0\.0\.1"]


def link_pages(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Make links of the pages that a docstring names, as docs/losses.md."""
    lines[:] = [re.sub(r"\b(docs/[\w-]+)\.md\b", r":doc:`\1.md </\1>`", line) for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", link_pages)
