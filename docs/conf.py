"""How `make docs` makes pages of docs/ and of the docstrings."""

import re

from jaxz import __version__

project, release = "jaxz", __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
html_theme = "pydata_sphinx_theme"
html_theme_options = {"show_prev_next": False, "navigation_with_keys": False, "show_toc_level": 2}
html_sidebars = {"index": []}
exclude_patterns, templates_path = ["_build", "_templates", "jupyter_execute"], ["_templates"]
highlight_language = "none"
myst_heading_anchors = 4
nb_execution_mode = "off"  # a test executes them
autodoc_member_order = "bysource"
numpydoc_show_class_members = False


def as_plain_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text: what is indented or in columns stands as it is, `this` is code, and * | _ mean
    themselves."""
    if any(re.fullmatch(" *---+", line) for line in lines):
        return  # sections of numpydoc, of a class that is inherited from
    found, literal = [], False
    for line in lines:
        if (line.startswith("    ") or "   " in line) != literal and line:
            literal = not literal
            found += ["", "::", ""] if literal else [""]
        found.append(f"    {line}" if literal and line else line)
    paragraphs = re.split(r"(\n\n::\n\n(?:    .*\n|\n)+)", "\n".join(found) + "\n")
    paragraphs[::2] = [re.sub(r"`([^`]+)`|[*|]|_(?!\w)", marked, text) for text in paragraphs[::2]]
    lines[:] = "".join(paragraphs).split("\n")


def marked(found: re.Match) -> str:
    return rf"\ ``{found[1]}``\ " if found[1] else rf"\{found[0]}"


def linked(app, name, source: list[str]) -> None:
    """The measured figures stand beside the programs that measure them, outside of this directory."""
    source[0] = source[0].replace("../benchmarks/RESULTS.md", "measured.md")


def setup(app) -> None:
    app.connect("autodoc-process-docstring", as_plain_text, priority=100)  # before numpydoc
    app.connect("source-read", linked)
