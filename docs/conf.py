"""How Sphinx builds the documentation. ``scripts/docs`` calls it; any warning is an error."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

_PACKAGE = Path(__file__).parent.parent / "air_executor" / "__init__.py"

project = "AirExecutor"
author = "the AirExecutor authors"
copyright = author
[release] = re.findall(r'^__version__ = "(.*)"$', _PACKAGE.read_text(), re.MULTILINE)
version = release

extensions = ["myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
nitpicky = True

myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]
# Prompts and output are not part of what is copied.
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True

html_theme = "furo"
html_title = f"AirExecutor {release}"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}

#: Elements by which a page has a browser load something, and the attribute that says from where.
_LOADS = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}

#: A page must work without a network, and tell nobody who reads it.
_FOREIGN = re.compile(r"^(https?:)?//")


class _Loads(HTMLParser):
    """Collects what a page loads from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at one element."""
        where = dict(attrs).get(_LOADS.get(tag, ""))
        if where and _FOREIGN.match(where):
            self.foreign.append(where)


def _check_that_nothing_is_loaded_from_elsewhere(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    found = []
    for path in Path(app.outdir).rglob("*.html"):
        page = _Loads()
        page.feed(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(app.outdir)} loads {where}" for where in page.foreign]
    for path in Path(app.outdir).rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        found += [f"{path.name} loads {where}" for where in re.findall(r"url\(['\"]?((?:https?:)?//[^)'\"]+)", text)]
    if found:
        raise ExtensionError("pages must load nothing from elsewhere:\n" + "\n".join(found))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the check of the pages."""
    app.connect("build-finished", _check_that_nothing_is_loaded_from_elsewhere)
    return {"parallel_read_safe": True}
