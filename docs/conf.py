"""Settings of the documentation: ``sphinx-build -W docs docs/_build``."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent / "benchmarks")]

import executed
import page as figures

import svision_dask

project = "svision-dask"
author = "svision-dask developers"
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_click"]
exclude_patterns = ["_build"]
html_theme = "pydata_sphinx_theme"
html_title = "svision-dask"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False

MADE = re.compile(r"\]\(\.\./benchmarks/results/(\w+)\.md\)")
"""Links to tables that the page of benchmarks holds; in the repository they are files."""

_printed: dict[str, dict[int, str]] = {}


def run_blocks(app: Any) -> None:
    """Run the pages' code, but for builders that only look at the pages."""
    if app.builder.name in {"linkcheck", "dummy"}:
        return
    with tempfile.TemporaryDirectory() as folder:
        _printed.update(executed.outputs(Path(folder)))


def fill_in(_app: Any, docname: str, source: list[str]) -> None:
    """Replace the markers of a page by what is made for it."""
    text = executed.with_outputs(docname, source[0], _printed.get(docname, {}))
    text = text.replace("<!-- benchmarks -->", figures.tables())
    text = MADE.sub(r"](benchmarks.md#\1)", text)
    source[0] = text.replace("<!-- api -->", api())


def api() -> str:
    """Every public name with its docstring."""
    lines = ["```{eval-rst}"]
    for name in svision_dask.__all__:
        kind = "class" if isinstance(getattr(svision_dask, name), type) else "function"
        lines += [f".. auto{kind}:: svision_dask.{name}", *(["   :members:"] if kind == "class" else []), ""]
    return "\n".join([*lines, "```"])


def made_pages(*_: Any) -> list[str]:
    """Pages that may be new though their files are not: what is run, the benchmarks, and the docstrings."""
    return [*executed.RUN, "benchmarks", "reference/api", "reference/cli"]


def setup(app: Any) -> None:
    """Connect what is above."""
    app.connect("env-get-outdated", made_pages)
    app.connect("builder-inited", run_blocks)
    app.connect("source-read", fill_in)
