"""Settings of the site, which `sphinx-build -W -b html docs build/site` builds. `reference.py` makes its reference."""

import re
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import attrs
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parent.parent))

from docs import reference

project = "asap-sansio"
author = "The asap-sansio authors"
copyright = author  # noqa: A001 - Sphinx's name
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = project
html_copy_source = False
exclude_patterns = ["build"]
smartquotes = False  # options such as `--host` stay as they are typed

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3  # links to a section of a page, as in `restarts.md#a-section`

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80


def setup(app: Any) -> None:
    """Register a directive for each generated text, and the conversion of docstrings."""
    for name, text in reference.PAGES.items():
        app.add_directive(name, type(name, (_Generated,), {"text": staticmethod(text)}))
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("autodoc-process-signature", _signature)


class _Generated(SphinxDirective):
    """Shows the Markdown that `text` makes of the code."""

    optional_arguments = 1
    text: Callable[..., str]

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(self.text(*self.arguments), allow_section_headings=True)


def _docstring(_app: Any, _what: str, _name: str, value: Any, _options: Any, lines: list[str]) -> None:
    lines[:] = reference.restructured(lines, reference.parameters_of(value))


def _signature(
    _app: Any, what: str, _name: str, value: Any, _options: Any, signature: str | None, returned: str | None
) -> tuple[str, str | None] | None:
    # The machine makes states, not users; nobody makes protocols and members of enumerations. How isn't shown.
    private = what == "class" and attrs.has(value) and any(one.name.startswith("_") for one in attrs.fields(value))
    abstract = what == "class" and (issubclass(value, Enum) or getattr(value, "_is_protocol", False))
    if private or abstract:
        return "", None
    # Sphinx can't read a signature with defaults such as `<function f>`.
    shown = _OBJECT.sub("...", _FUNCTION.sub(r"\1", signature or "")).replace("= NOTHING", "= ...")
    return (shown, returned) if signature else None


_FUNCTION = re.compile(r"<function (\w+)>")
_OBJECT = re.compile(r"<[\w.]+ object>")
