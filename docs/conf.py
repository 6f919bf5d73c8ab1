"""How Sphinx makes the site of the documentation: `make docs`.

The source folder is that of the repository, so that links between README.md, docs/ and examples/ are the same in the
site and on GitHub.
"""

from __future__ import annotations

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
    *("docs/*.md", "docs/api/*.md", "examples/*/README.md"),
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
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "show_nav_level": 1,
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
copybutton_exclude = ".linenos, .gp, .go"
